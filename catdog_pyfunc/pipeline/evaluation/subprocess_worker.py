"""A model in a process of its own, as a program: `python isolated.py FOLDER` loads it, then answers a line with a line.

It imports nothing of this project, so that the code that travels with the model is what answers, as when it is served.
"""

from __future__ import annotations

import base64
import json
import os
import sys
from collections.abc import Sequence
from typing import Any


def call(model: Any, images: Sequence[bytes], explain: bool = False, column: str = "image") -> Any:
    """Ask a pyfunc.

    Args:
        model: As `mlflow.pyfunc.load_model` gives it.
        images: Files of pictures.
        explain: Whether heat maps are wanted; left out if the model has no such parameter.
        column: Where the pictures go, unless the model's signature has exactly one column.

    Returns:
        Whatever the model answers.
    """
    import pandas as pd

    inputs = model.metadata.get_input_schema()
    names = inputs.input_names() if inputs is not None and inputs.has_input_names() else []
    params = model.metadata.get_params_schema()
    explains = explain and params is not None and any(param.name == "explain" for param in params.params)
    frame = pd.DataFrame({names[0] if len(names) == 1 else column: list(images)})
    return model.predict(frame, params={"explain": True}) if explains else model.predict(frame)


def main(folder: str) -> None:
    """Load the model, say so, and answer until the input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever the model prints must not stand between the answers
    model: Any = None

    def answer(said: dict[str, Any]) -> None:
        answers.write(json.dumps(said, default=_plain) + "\n")
        answers.flush()

    try:
        import mlflow

        model = mlflow.pyfunc.load_model(folder)
        answer({"loaded": True})
    except BaseException as failure:
        answer({"error": _said(failure)})
        return
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            output = call(model, [base64.b64decode(image) for image in asked["images"]], asked["explain"])
            answer({"rows": output.to_dict("records") if hasattr(output, "to_dict") else output})
        except Exception as failure:
            answer({"error": _said(failure)})


def _plain(value: Any) -> Any:
    if isinstance(value, (bytes, bytearray)):
        return base64.b64encode(value).decode()
    return value.tolist() if hasattr(value, "tolist") else str(value)


def _said(failure: BaseException) -> str:
    lines = [line for line in str(failure).splitlines() if line.strip()]
    return f"{type(failure).__name__}: {lines[0] if lines else ''}"[:500]


if __name__ == "__main__":
    sys.path.pop(0)  # this folder: its files would pass for packages
    main(sys.argv[1])
