"""The custom `mlflow.pyfunc.PythonModel`: DataFrame ↔ Classifier, signature and settings."""

from __future__ import annotations

import base64
import gc
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from mlflow.models import ModelSignature
from mlflow.pyfunc.model import PythonModel, PythonModelContext
from mlflow.types.schema import ColSpec, DataType, Object, ParamSchema, ParamSpec, Property, Schema, TensorSpec

from catdog_pyfunc import bundle as bundles
from catdog_pyfunc import internals
from catdog_pyfunc.classifier import Classifier, Prediction
from catdog_pyfunc.errors import InvalidSetting
from catdog_pyfunc.images import IMAGE_COLUMN
from catdog_pyfunc.preprocessing import DEFAULT_LIMITS, Limits

Cells = pd.DataFrame | pd.Series | Mapping[str, Any] | Sequence[Any] | np.ndarray
ARTIFACT = "bundle"  # the bundle's name among the model's artifacts
SETTINGS: Mapping[str, Any] = {"engine": "auto", "threads": 0, **asdict(DEFAULT_LIMITS)}


class CatDogModel(PythonModel):
    """Pictures in, rows out: preprocessing, network, softmax and class names in one.

    `model_config` (when serving: `SERVING_MODEL_CONFIG`, a JSON object in the environment) may set `engine` ("auto", "onnx",
    "torch"), `threads` (0: one a core), `max_bytes` and `max_pixels`.
    """

    def load_context(self, context: PythonModelContext) -> None:
        """Open the bundle, with the settings in `context.model_config`.

        Raises:
            InvalidSetting: A setting is unknown, or has a value that can't be used.
            InvalidBundle: The bundle is damaged, incomplete or from a newer version.
        """
        _refuse_unknown(_asked_when_serving())
        settings = _settings(context.model_config or {})
        self._classifier = Classifier(
            bundles.read(Path(context.artifacts[ARTIFACT])),
            engine=settings["engine"],
            threads=settings["threads"] or None,
            limits=Limits(settings["max_bytes"], settings["max_pixels"]),
        )
        if internals.SERVED_MODEL in os.environ:
            # What MLflow, pandas and the model made while loading stays: looking through it again and again for garbage
            # stops every request for 50 ms and more (8 clients: p99 58 ms instead of 90, 7 % more photos a second).
            gc.collect()
            gc.freeze()

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame | list[dict[str, Any]]:
        """Classify pictures.

        Args:
            context: Not used: `load_context` has opened everything.
            model_input: One picture a cell, as its file's bytes, base64 or a data URI: a DataFrame with a column `image`, as
                MLflow makes of whatever it gets. A dict with `image`, a Series, list or NumPy array do, too.
            params: `{"explain": True}` for a column `heatmap`.

        Returns:
            A row a picture: label (str), confidence (float), probabilities (class name → float), error (str),
            in_domain (bool), domain_score (float) and, if asked for, heatmap (base64 of a PNG). In a row with an error the
            others are null. In MLflow's scoring server a list of such rows: it sends the same JSON for both, and making
            and unmaking a DataFrame would be a tenth of the time that a photo takes.
        """
        explain = bool((params or {}).get("explain", False))
        rows = [_row(answer, explain) for answer in self._classifier.predict(_cells(model_input), explain=explain)]
        if os.environ.get(internals.IN_SCORING_SERVER) == "true":
            return rows
        return pd.DataFrame(rows, columns=_columns(explain), dtype=object)


def signature(classes: Sequence[str]) -> ModelSignature:
    """What goes in and comes out, for REST, Spark and the UI.

    Args:
        classes: Class names; each becomes a field of `probabilities`.

    Returns:
        One column `image` in; the columns of an answer out; `explain` as the parameter.
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
    return ModelSignature(Schema([ColSpec(DataType.string, IMAGE_COLUMN)]), Schema(outputs), params)


def _cells(given: Cells) -> list[object]:
    cells = given[IMAGE_COLUMN] if isinstance(given, (pd.DataFrame, Mapping)) else given
    if isinstance(cells, (str, bytes)):
        return [cells]
    cells = cells.ravel().tolist() if isinstance(cells, np.ndarray) else list(cells)
    # MLflow makes one row of {"image": [text, text]}.
    return list(cells[0]) if len(cells) == 1 and isinstance(cells[0], (list, tuple, np.ndarray)) else cells


def _columns(explain: bool) -> list[str]:
    columns = ["label", "confidence", "probabilities", "error", "in_domain", "domain_score"]
    return [*columns, "heatmap"] if explain else columns


def _row(answer: Prediction, explain: bool) -> dict[str, Any]:
    row = {name: getattr(answer, name) for name in _columns(False)}
    row["probabilities"] = answer.probabilities or None  # null, as the others
    if explain:
        row["heatmap"] = base64.b64encode(answer.heatmap).decode() if answer.heatmap else None
    return row


def _settings(given: Mapping[str, Any]) -> dict[str, Any]:
    _refuse_unknown(given)
    settings = {**SETTINGS, **given}
    for key, least in (("threads", 0), ("max_bytes", 1), ("max_pixels", 1)):
        value = settings[key]
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise InvalidSetting(f"model_config has {key}={value!r}; give a whole number of at least {least}")
    return settings


def _refuse_unknown(given: Iterable[str]) -> None:
    unknown = sorted(set(given) - set(SETTINGS))
    if unknown:
        raise InvalidSetting(f"model_config has unknown {', '.join(map(repr, unknown))}; it may hold {', '.join(SETTINGS)}")


def _asked_when_serving() -> Iterable[str]:
    # MLflow drops unknown keys before the model sees them, and only warns: a misspelt limit would go unnoticed.
    asked = json.loads(os.environ.get(internals.SERVING_MODEL_CONFIG) or "{}")
    return asked if isinstance(asked, dict) else ()
