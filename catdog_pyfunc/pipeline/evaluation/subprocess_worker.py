"""Runs a model in a process of its own: `python subprocess_worker.py FOLDER` answers each line of input with a line.

Imports nothing of this project, so that the code that travels with the model is what predicts, as when it is served.
"""

from __future__ import annotations

import base64
import json
import os
import sys
from collections.abc import Sequence
from typing import Any


def call(model: Any, images: Sequence[bytes], explain: bool, column: str) -> Any:
    """Call a pyfunc.

    Args:
        model: A model that `mlflow.pyfunc.load_model` returned.
        images: Contents of image files.
        explain: Whether to request heat maps; ignored if the model has no such parameter.
        column: Column of the images, unless the model's signature has exactly one column.

    Returns:
        Whatever the model returns.
    """
    import pandas as pd

    inputs = model.metadata.get_input_schema()
    names = inputs.input_names() if inputs is not None and inputs.has_input_names() else []
    params = model.metadata.get_params_schema()
    explains = explain and params is not None and any(param.name == "explain" for param in params.params)
    frame = pd.DataFrame({names[0] if len(names) == 1 else column: list(images)})
    return model.predict(frame, params={"explain": True}) if explains else model.predict(frame)


def main(folder: str) -> None:
    """Load the model, report that, and answer requests until the input ends."""
    responses = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # keeps what the model prints out of the responses

    def respond(response: dict[str, Any]) -> None:
        responses.write(json.dumps(response, default=_plain) + "\n")
        responses.flush()

    try:
        import mlflow

        model: Any = mlflow.pyfunc.load_model(folder)
    except BaseException as failure:
        respond({"error": _described(failure)})
        return
    respond({"loaded": True})
    for line in sys.stdin:
        request = json.loads(line)
        images = [base64.b64decode(image) for image in request["images"]]
        try:
            output = call(model, images, request["explain"], request["column"])
            respond({"output": output.to_dict("records") if hasattr(output, "to_dict") else output})
        except Exception as failure:
            respond({"error": _described(failure)})


def _plain(value: Any) -> Any:
    if isinstance(value, (bytes, bytearray)):
        return base64.b64encode(value).decode()
    return value.tolist() if hasattr(value, "tolist") else str(value)


def _described(failure: BaseException) -> str:
    lines = [line for line in str(failure).splitlines() if line.strip()]
    return f"{type(failure).__name__}: {lines[0] if lines else ''}"[:500]


if __name__ == "__main__":
    sys.path.pop(0)  # this folder: its files would pass for packages
    main(sys.argv[1])
