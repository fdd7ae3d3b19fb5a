"""A model that predicts what `model_config` says, for tests of the gate in a process of its own."""

from __future__ import annotations

import hashlib
from typing import Any

import mlflow
import pandas as pd

DEFAULTS: dict[str, Any] = {
    "labels": {},  # SHA-256 of an image → label; any other image is corrupt
    "classes": ["cat", "dog"],
    "confidence": 0.9,
    "rows": "complete",  # or "no label", or "too few"
}


class Scripted(mlflow.pyfunc.PythonModel):
    def load_context(self, context: Any) -> None:
        self.config = {**DEFAULTS, **context.model_config}

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        rows = pd.DataFrame([self.row(image) for image in model_input["image"]])
        if self.config["rows"] == "no label":
            return rows.drop(columns="label")
        return rows.iloc[1:] if self.config["rows"] == "too few" else rows

    def row(self, image: bytes) -> dict[str, Any]:
        label = self.config["labels"].get(hashlib.sha256(image).hexdigest())
        if label is None:
            return {"label": None, "confidence": None, "probabilities": None, "error": "this image is corrupt"}
        return {"label": label, "confidence": self.config["confidence"], "probabilities": None, "error": None}


mlflow.models.set_model(Scripted())
