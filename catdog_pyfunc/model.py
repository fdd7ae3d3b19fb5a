"""The custom `mlflow.pyfunc.PythonModel`: DataFrame ↔ Classifier, signature and settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.models import ModelSignature
from mlflow.pyfunc.model import PythonModel, PythonModelContext
from mlflow.types.schema import ColSpec, DataType, Object, Property, Schema, TensorSpec

from catdog_pyfunc import bundle as bundles
from catdog_pyfunc.classifier import Classifier, Prediction
from catdog_pyfunc.errors import InvalidSetting
from catdog_pyfunc.preprocess import DEFAULT_LIMITS, Limits

COLUMN = "image"
ARTIFACT = "bundle"  # the bundle's name among the model's artifacts
SETTINGS: Mapping[str, Any] = {"engine": "auto", "threads": 0, **asdict(DEFAULT_LIMITS)}


class CatDogModel(PythonModel):
    """Pictures in, rows out: preprocessing, network, softmax and class names in one.

    `model_config` (when serving: `SERVING_MODEL_CONFIG`, a JSON object in the environment) may set `engine` ("auto", "onnx",
    "torch"), `threads` (0: one a core), `max_bytes` and `max_pixels`.
    """

    def load_context(self, context: PythonModelContext) -> None:
        """Open the bundle, with the settings in `context.model_config`."""
        settings = _settings(context.model_config or {})
        self._classifier = Classifier(
            bundles.read(Path(context.artifacts[ARTIFACT])),
            engine=settings["engine"],
            threads=settings["threads"] or None,
            limits=Limits(settings["max_bytes"], settings["max_pixels"]),
        )

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Classify pictures.

        Args:
            context: Not used: `load_context` has opened everything.
            model_input: One picture a row, in the column `image`: its file's bytes, base64 or a data URI.
            params: None are known.

        Returns:
            A row a picture: label (str), confidence (float), probabilities (class name → float), error (str). In a row with
            an error the others are null.
        """
        return to_frame(self._classifier.predict(model_input[COLUMN].tolist()))


def signature(classes: Sequence[str]) -> ModelSignature:
    """What goes in and comes out, for REST, Spark and the UI.

    Args:
        classes: Class names; each becomes a field of `probabilities`.

    Returns:
        One binary column in; label, confidence, probabilities and error out.
    """
    probabilities = Object([Property(name, DataType.double, required=False) for name in classes])
    outputs: list[ColSpec | TensorSpec] = [
        ColSpec(DataType.string, "label", required=False),
        ColSpec(DataType.double, "confidence", required=False),
        ColSpec(probabilities, "probabilities", required=False),
        ColSpec(DataType.string, "error", required=False),
    ]
    return ModelSignature(inputs=Schema([ColSpec(DataType.binary, COLUMN)]), outputs=Schema(outputs))


def to_frame(predictions: Sequence[Prediction]) -> pd.DataFrame:
    """Lay predictions out as the model answers them; null stays null in JSON."""
    rows = [(p.label, p.confidence, p.probabilities or None, p.error) for p in predictions]
    return pd.DataFrame(rows, columns=["label", "confidence", "probabilities", "error"], dtype=object)


def _settings(given: Mapping[str, Any]) -> dict[str, Any]:
    unknown = sorted(set(given) - set(SETTINGS))
    if unknown:
        raise InvalidSetting(f"model_config has unknown {', '.join(map(repr, unknown))}; it may hold {', '.join(SETTINGS)}")
    settings = {**SETTINGS, **given}
    for key, least in (("threads", 0), ("max_bytes", 1), ("max_pixels", 1)):
        value = settings[key]
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise InvalidSetting(f"model_config has {key}={value!r}; give a whole number of at least {least}")
    return settings
