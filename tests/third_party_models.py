"""Models that aren't this project's: one that answers pictures, and others that are broken in one way each."""

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
        {answering}
        return [{{"label": "cat" if len(cell) > 100 else "dog", "confidence": 0.5}} for cell in model_input["photo"]]

mlflow.models.set_model(Model())
"""
BREAKAGES = {
    "raises while it loads": ('raise RuntimeError("the weights are gone")', "pass", "RuntimeError: the weights are gone"),
    "ends while it loads": ("os._exit(7)", "pass", "ended with 7 before it could answer"),
    "raises when it answers": ("pass", 'raise RuntimeError("no such layer")', "RuntimeError: no such layer"),
    "can't read a picture": ("pass", 'return [{"label": None, "error": "upside down"}]', "a good picture: upside down"),
    "answers too much": ("pass", 'return ["cat", "dog"]', "answered one picture with 2 predictions"),
}


def save(folder: Path, requirements: list[str], loading: str = "pass", answering: str = "pass") -> Path:
    """Save a model that takes a column `photo` of type binary."""
    folder.mkdir(parents=True)
    code = folder / "stranger.py"
    code.write_text(_CODE.format(loading=loading, answering=answering))
    mlflow.pyfunc.save_model(
        str(folder / "model"),
        python_model=str(code),
        pip_requirements=requirements,
        signature=ModelSignature(Schema([ColSpec(DataType.binary, "photo")])),
    )
    return folder / "model"
