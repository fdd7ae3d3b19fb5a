"""The custom `mlflow.pyfunc.PythonModel`: DataFrame ↔ Classifier, signature and settings."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.models import ModelSignature
from mlflow.pyfunc.model import PythonModel, PythonModelContext
from mlflow.types.schema import ColSpec, DataType, Object, ParamSchema, ParamSpec, Property, Schema, TensorSpec

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
            params: `{"explain": True}` for a column `heatmap`.

        Returns:
            A row a picture: label (str), confidence (float), probabilities (class name → float), error (str),
            in_domain (bool), domain_score (float) and, if asked for, heatmap (base64 of a PNG). In a row with an error the
            others are null.
        """
        explain = bool((params or {}).get("explain", False))
        return to_frame(self._classifier.predict(model_input[COLUMN].tolist(), explain=explain), explain=explain)


def signature(classes: Sequence[str]) -> ModelSignature:
    """What goes in and comes out, for REST, Spark and the UI.

    Args:
        classes: Class names; each becomes a field of `probabilities`.

    Returns:
        One column `image` in; the columns that `to_frame` makes out; `explain` as the parameter.
    """
    probabilities = Object([Property(name, DataType.double, required=False) for name in classes])
    outputs: list[ColSpec | TensorSpec] = [
        ColSpec(DataType.string, "label", required=False),
        ColSpec(DataType.double, "confidence", required=False),
        ColSpec(probabilities, "probabilities", required=False),
        ColSpec(DataType.string, "error", required=False),
        ColSpec(DataType.boolean, "in_domain", required=False),
        ColSpec(DataType.double, "domain_score", required=False),
        ColSpec(DataType.string, "heatmap", required=False),
    ]
    # Not `binary`: MLflow would decode its base64 itself, under `dataframe_*` only and dropping what it doesn't know, so
    # that url-safe text or a data URI became another file. A `string` column hands cells over as they came, bytes too.
    params = ParamSchema([ParamSpec("explain", DataType.boolean, False)])
    return ModelSignature(Schema([ColSpec(DataType.string, COLUMN)]), Schema(outputs), params)


def to_frame(predictions: Sequence[Prediction], *, explain: bool = False) -> pd.DataFrame:
    """Lay predictions out as the model answers them; null stays null in JSON."""
    columns = ["label", "confidence", "probabilities", "error", "in_domain", "domain_score"]
    rows = [(p.label, p.confidence, p.probabilities or None, p.error, p.in_domain, p.domain_score) for p in predictions]
    frame = pd.DataFrame(rows, columns=columns, dtype=object)
    if explain:
        pictures = [base64.b64encode(p.heatmap).decode() if p.heatmap else None for p in predictions]
        frame["heatmap"] = pd.Series(pictures, dtype=object)
    return frame


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
