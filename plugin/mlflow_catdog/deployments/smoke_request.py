"""Finds a model's image column, and builds the smoke test's request: its own input example, or else a drawn cat."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

from mlflow.models import Model
from mlflow.types import DataType

from catdog_pyfunc.images import IMAGE_COLUMN
from mlflow_catdog.deployments.errors import InvalidOption


def smoke_request(folder: Path) -> dict[str, Any]:
    """Build a body for `/invocations` that the model should be able to answer.

    Args:
        folder: The model, with its `MLmodel`.

    Returns:
        The serving example saved with the model; without one, a row with a drawn image.

    Raises:
        InvalidOption: There is no example, and the signature does not tell which column takes the image.
    """
    model = Model.load(folder)
    example = folder / ((model.saved_input_example_info or {}).get("serving_input_path") or "")
    # A model could name a file of this machine's, which would end up in the image.
    if example.is_file() and example.resolve().is_relative_to(folder.resolve()):
        body: dict[str, Any] = json.loads(example.read_text())
        return body
    return {"dataframe_split": {"columns": [_image_column(model)], "data": [[_drawn_image()]]}}


def image_column(folder: Path) -> str:
    """The column that takes images; `image` if the signature doesn't tell.

    Args:
        folder: The model, with its `MLmodel`.
    """
    try:
        return _image_column(Model.load(folder))
    except InvalidOption:  # it has an example, or `smoke_request` would have raised this: MLflow's formats work
        return IMAGE_COLUMN


def _image_column(model: Model) -> str:
    inputs = model.get_input_schema()  # type: ignore[no-untyped-call]
    if inputs is None or not inputs.has_input_names():
        return IMAGE_COLUMN
    candidates = [column.name for column in inputs.inputs if column.type in (DataType.string, DataType.binary)]
    if IMAGE_COLUMN in candidates:
        return IMAGE_COLUMN
    if len(candidates) == 1:
        return str(candidates[0])
    raise InvalidOption(
        f"the model takes {', '.join(inputs.input_names())}: it is unclear which of them is the image; "
        f"name it {IMAGE_COLUMN!r}, or log the model with an input_example"
    )


def _drawn_image() -> str:
    import numpy as np

    from catdog_pyfunc.pipeline.data import synthetic

    return base64.b64encode(synthetic.draw("cat", np.random.default_rng(0))).decode()
