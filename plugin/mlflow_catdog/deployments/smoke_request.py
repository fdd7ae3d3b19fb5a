"""The question that shows whether a model answers pictures: its own input example, or else a drawn cat in its column."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

from mlflow.models import Model
from mlflow.types import DataType

from mlflow_catdog.deployments.errors import InvalidOption

_COLUMN = "image"


def request_for(folder: Path) -> dict[str, Any]:
    """A body for `/invocations` that the model should answer.

    Args:
        folder: The model, with its `MLmodel`.

    Returns:
        What was saved with the model as its example of serving; without one, a row with a drawn picture.

    Raises:
        InvalidOption: There is no example, and the signature has no column that could take a picture.
    """
    model = Model.load(folder)
    example = (model.saved_input_example_info or {}).get("serving_input_path")
    if example and (folder / example).is_file():
        body: dict[str, Any] = json.loads((folder / example).read_text())
        return body
    return {"dataframe_split": {"columns": [_column(model)], "data": [[_picture()]]}}


def _column(model: Model) -> str:
    inputs = model.get_input_schema()  # type: ignore[no-untyped-call]
    if inputs is None or not inputs.has_input_names():
        return _COLUMN
    texts = [column.name for column in inputs.inputs if column.type in (DataType.string, DataType.binary)]
    if _COLUMN in texts or len(texts) == 1:
        return _COLUMN if _COLUMN in texts else str(texts[0])
    raise InvalidOption(
        f"the model takes {', '.join(inputs.input_names())}: which of them is the picture? "
        f"Call it {_COLUMN!r}, or log the model with an input_example"
    )


def _picture() -> str:
    import numpy as np

    from catdog_pyfunc.pipeline.data import synthetic

    return base64.b64encode(synthetic.draw("cat", np.random.default_rng(0))).decode()
