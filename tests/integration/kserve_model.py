"""Reads an InferenceService with kserve's own models, in an environment with kserve: `python kserve_model.py FILE`.

Prints the manifest that the models write back; a field that they don't know is missing there. They raise if a required one
is not set.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import kserve
import yaml
from kubernetes import client


def read(kind: str, value: Any) -> Any:
    """A value as an object of the model's type."""
    if container := re.fullmatch(r"list\[(.+)\]", kind):
        return [read(container[1], entry) for entry in value]
    name = re.sub(r"^K8sIoApi\w+?(?=V\d)", "", kind)
    model = getattr(kserve, name, None) or getattr(client, name, None)
    if model is None:  # str, int, bool, object, dict(str, str), quantities
        return value
    fields = {key: (field, model.openapi_types[field]) for field, key in model.attribute_map.items()}
    known = {fields[key][0]: read(fields[key][1], entry) for key, entry in value.items() if key in fields}
    return model(**known)


def written(value: Any) -> Any:
    """The object as a manifest again."""
    if isinstance(value, list):
        return [written(entry) for entry in value]
    if not hasattr(value, "attribute_map"):
        return value
    fields = {key: getattr(value, field) for field, key in value.attribute_map.items()}
    return {key: written(entry) for key, entry in fields.items() if entry is not None}


if __name__ == "__main__":
    manifest = yaml.safe_load(Path(sys.argv[1]).read_text())
    print(json.dumps(written(read("V1beta1InferenceService", manifest))))
