"""A model that answers as `model_config` says: for tests that want a model to be good at this and bad at that."""

from __future__ import annotations

import hashlib
import time
from typing import Any

import mlflow
import pandas as pd

DEFAULTS: dict[str, Any] = {
    "labels": {},  # SHA-256 of a picture → label; what isn't here is broken
    "classes": ["cat", "dog"],
    "confidence": 0.9,
    "broken": "row",  # or "raise", or "guess": what comes of a broken picture
    "delay_s": 0.0,
}


class Scripted(mlflow.pyfunc.PythonModel):
    def load_context(self, context: Any) -> None:
        self.config = {**DEFAULTS, **context.model_config}

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        time.sleep(self.config["delay_s"])
        return pd.DataFrame([self.row(image) for image in model_input["image"]])

    def row(self, image: bytes) -> dict[str, Any]:
        label = self.config["labels"].get(hashlib.sha256(image).hexdigest())
        if label is None and self.config["broken"] == "raise":
            raise ValueError("this picture is broken")
        if label is None and self.config["broken"] == "row":
            return {"label": None, "confidence": None, "probabilities": None, "error": "this picture is broken"}
        classes, confidence = self.config["classes"], self.config["confidence"]
        rest = (1 - confidence) / (len(classes) - 1)
        label = label or classes[0]
        probability_table = {name: confidence if name == label else rest for name in classes}
        return {"label": label, "confidence": confidence, "probabilities": probability_table, "error": None}


mlflow.models.set_model(Scripted())
