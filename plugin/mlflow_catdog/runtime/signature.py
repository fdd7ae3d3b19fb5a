"""What a model takes and returns, as far as requests need it, from its MLflow signature."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_DATATYPES = {"double": "FP64", "float": "FP32", "long": "INT64", "integer": "INT32", "boolean": "BOOL"}  # MLflow → V2


@dataclass(frozen=True)
class Signature:
    """A model's one input column and its outputs.

    Attributes:
        column: Takes the images.
        takes_bytes: Whether the column is of type binary; if not, it takes base64.
        explains: Whether there is a parameter `explain`.
        outputs: Name → datatype in the Open Inference Protocol; empty if the signature doesn't tell.
        classes: Names in the output `probabilities`; empty if there is none.
    """

    column: str
    takes_bytes: bool
    explains: bool
    outputs: Mapping[str, str]
    classes: tuple[str, ...]


def read(metadata: Any, image_column: str) -> Signature:
    """Read a signature.

    Args:
        metadata: An `mlflow.models.Model`.
        image_column: The column that takes the images.

    Returns:
        Its part that matters here.
    """
    inputs, outputs, params = (
        metadata.get_input_schema(),
        metadata.get_output_schema(),
        metadata.get_params_schema(),
    )
    named = inputs is not None and inputs.has_input_names()
    types = {column.name: column.type.name for column in inputs.inputs} if named else {}
    returned = outputs.inputs if outputs is not None and outputs.has_input_names() else ()
    return Signature(
        column=image_column,
        takes_bytes=types.get(image_column) == "binary",
        explains="explain" in (param.name for param in params or ()),
        outputs={column.name: _DATATYPES.get(getattr(column.type, "name", ""), "BYTES") for column in returned},
        classes=tuple(
            each.name
            for column in returned
            if column.name == "probabilities"
            for each in getattr(column.type, "properties", ())
        ),
    )
