"""Label Studio's files: tasks to import there, with a model's predictions, and the annotations that it exports.

Its formats: labelstud.io/guide/predictions ("Import pre-annotated data") and labelstud.io/guide/export ("JSON").
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

from catdog_pyfunc.errors import InvalidData

LEAVE_OUT = "leave out"
"""The choice for an image that shows none of the classes: it comes back without a label."""
_CHOICES, _IMAGE = "label", "image"  # the control and the object in the labelling interface


@dataclass(frozen=True)
class Task:
    """One image to label.

    Attributes:
        path: Relative to the data folder, with slashes.
        label: The class that is suggested.
        score: How sure the model is of it, 0..1: Label Studio can sort by it.
    """

    path: str
    label: str
    score: float


def labelling_interface(classes: Sequence[str]) -> str:
    """The XML of a project that shows an image and asks for one of the classes."""
    choices = "".join(f"    <Choice value={quoteattr(name)}/>\n" for name in (*classes, LEAVE_OUT))
    control = f'<Choices name="{_CHOICES}" toName="{_IMAGE}" choice="single" showInline="true">'
    return f'<View>\n  <Image name="{_IMAGE}" value="$image"/>\n  {control}\n{choices}  </Choices>\n</View>\n'


def tasks_json(tasks: Iterable[Task], folder: Path, model_version: str) -> str:
    """Write tasks with pre-annotations, as Label Studio imports them.

    The images stay where they are: Label Studio serves them from its LOCAL_FILES_DOCUMENT_ROOT, which must be the parent of
    the data folder.

    Args:
        tasks: The images.
        folder: The data folder.
        model_version: Name of the model whose predictions they are.

    Returns:
        JSON.
    """
    return json.dumps([_task(task, folder.name, model_version) for task in tasks], indent=1, ensure_ascii=False)


def _task(task: Task, folder: str, model_version: str) -> dict[str, Any]:
    result = {"from_name": _CHOICES, "to_name": _IMAGE, "type": "choices", "value": {"choices": [task.label]}}
    return {
        "data": {"image": f"/data/local-files/?d={quote(f'{folder}/{task.path}')}", "path": task.path},
        "predictions": [{"model_version": model_version, "score": task.score, "result": [result]}],
    }


def read_export(file: Path) -> list[tuple[str, str]]:
    """Read what Label Studio exports as JSON for tasks of `tasks_json`.

    Args:
        file: The export.

    Returns:
        (path, label) of each image that was annotated; the label is "" for `LEAVE_OUT`. Of several annotations of an image
        the last counts; skipped ones do not.

    Raises:
        InvalidData: The file is not such an export.
    """
    try:
        exported = json.loads(file.read_text(encoding="utf-8"))
        labelled = [(str(task["data"]["path"]), _label(task)) for task in exported]
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        raise InvalidData(
            f"{file} is not what Label Studio exports as 'JSON' for tasks of this project: export it in that format, not "
            "JSON-MIN, with 'path' among the data of each task"
        ) from None
    return [(path, "" if label == LEAVE_OUT else label) for path, label in labelled if label is not None]


def _label(task: dict[str, Any]) -> str | None:
    labels = [
        str(result["value"]["choices"][0])
        for annotation in task["annotations"]
        if not annotation.get("was_cancelled")
        for result in annotation["result"]
        if result["type"] == "choices"
    ]
    return labels[-1] if labels else None
