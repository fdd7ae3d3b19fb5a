"""Third-party models: one that predicts, and others that are broken in one way each."""

from __future__ import annotations

from pathlib import Path

import mlflow
from mlflow.models import ModelSignature
from mlflow.types.schema import ColSpec, DataType, Schema

_CODE = """
import os, time
import mlflow

class Model(mlflow.pyfunc.PythonModel):
    def load_context(self, context):
        {loading}

    def predict(self, context, model_input, params=None):
        {predicting}
        return [{{"label": "cat" if len(cell) > 100 else "dog", "confidence": 0.5}} for cell in model_input["photo"]]

mlflow.models.set_model(Model())
"""
BROKEN = {  # how → code in load_context, code in predict, what the user reads
    "raises while it loads": ('raise RuntimeError("the weights are gone")', "pass", "RuntimeError: the weights are gone"),
    "exits while it loads": ("os._exit(7)", "pass", "exited with code 7 before it was ready"),
    "raises when it predicts": ("pass", 'raise RuntimeError("no such layer")', "RuntimeError: no such layer"),
    "cannot read an image": ("pass", 'return [{"label": None, "error": "upside down"}]', "a valid image: upside down"),
    "predicts too much": ("pass", 'return ["cat", "dog"]', "returned 2 predictions for one image"),
}


def save(folder: Path, requirements: list[str], loading: str = "pass", predicting: str = "pass") -> Path:
    """Save a model that takes a column `photo` of type binary.

    Args:
        folder: To make, for the model's code and the model.
        requirements: Of the model.
        loading: A statement that runs when the model loads.
        predicting: A statement that runs before each prediction.

    Returns:
        The model's folder.
    """
    folder.mkdir(parents=True)
    code = folder / "third_party.py"
    code.write_text(_CODE.format(loading=loading, predicting=predicting))
    mlflow.pyfunc.save_model(
        str(folder / "model"),
        python_model=str(code),
        pip_requirements=requirements,
        signature=ModelSignature(Schema([ColSpec(DataType.binary, "photo")])),
    )
    return folder / "model"
