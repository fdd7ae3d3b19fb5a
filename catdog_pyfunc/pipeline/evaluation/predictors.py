"""Predictors: one call for whatever returns predictions for images, a classifier, an MLflow model or a function."""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from mlflow.pyfunc import PyFuncModel

from catdog_pyfunc.classifier import Classifier, Prediction
from catdog_pyfunc.errors import ModelFailed, first_line
from catdog_pyfunc.images import IMAGE_COLUMN
from catdog_pyfunc.pipeline.evaluation.subprocess_worker import call

Predictor = Callable[[Sequence[bytes], bool], list[Prediction]]
"""Takes images and whether to explain; returns one prediction per image, in the same order; raises `ModelFailed`."""

_TOLERANCE = 1e-6  # by which rounding may carry a probability out of 0..1


def classifier_predictor(classifier: Classifier) -> Predictor:
    """Call a classifier of this project directly, without DataFrames."""
    return lambda images, explain: classifier.predict(images, explain=explain)


def pyfunc_predictor(model: PyFuncModel, column: str = IMAGE_COLUMN) -> Predictor:
    """Call any MLflow model that takes one image per row and returns a label and a confidence.

    Args:
        model: A model that `mlflow.pyfunc.load_model` returned. Heat maps are requested only if its signature has `explain`.
        column: Column of the images, unless the model's signature has exactly one column.

    Returns:
        The predictor.
    """
    return _checked(lambda images, explain: call(model, images, explain, column))


def function_predictor(function: Callable[[pd.DataFrame], Any], column: str = IMAGE_COLUMN) -> Predictor:
    """Call a function that takes a DataFrame with one image per row in `column` and returns what a pyfunc would."""
    return _checked(lambda images, explain: function(pd.DataFrame({column: list(images)})))


def _checked(call_model: Callable[[Sequence[bytes], bool], Any]) -> Predictor:
    def predict(images: Sequence[bytes], explain: bool) -> list[Prediction]:
        try:
            output = call_model(images, explain)
        except Exception as failure:  # a third-party model may raise anything
            raise ModelFailed(
                f"the model failed on {len(images)} images: {type(failure).__name__}: {first_line(failure)}"
            ) from failure
        return to_predictions(output, len(images))

    return predict


def to_predictions(output: Any, n: int) -> list[Prediction]:
    """Read what a pyfunc returned.

    Args:
        output: A DataFrame or a list of dicts with `label` and `confidence` (0..1) and, optionally, `probabilities` (class
            name → 0..1), `error`, `in_domain`, `domain_score`, `heatmap` (an image as base64). A row whose `label` is null
            stands for an unreadable image.
        n: Number of images that the model was called with.

    Returns:
        N predictions, one per row.

    Raises:
        ModelFailed: There is no label or no confidence, not one row per image, or a value that cannot be read.
    """
    rows: list[Any] = output.to_dict("records") if isinstance(output, pd.DataFrame) else output
    if not isinstance(rows, list) or not all(isinstance(row, Mapping) for row in rows):
        raise ModelFailed(
            f"the model returned {type(output).__name__}: it must return a DataFrame with the columns label and confidence"
        )
    if len(rows) != n:
        raise ModelFailed(f"the model returned {len(rows)} rows for {n} images: it must return one row per image")
    columns = {str(key): None for row in rows for key in row}
    if rows and not {"label", "confidence"} <= set(columns):
        raise ModelFailed(f"the model returned the columns {', '.join(columns)}: it must return label and confidence")
    return [_prediction(number, row) for number, row in enumerate(rows)]


def probability_table(predictions: Sequence[Prediction], classes: Sequence[str]) -> npt.NDArray[np.float64]:
    """The probability of each class.

    Args:
        predictions: N predictions. One without probabilities gives its label its confidence, and the other classes equal
            parts of the rest: the least that can be assumed.
        classes: C names.

    Returns:
        (N, C); NaN for an unreadable image.
    """
    index = {name: place for place, name in enumerate(classes)}
    table = np.full((len(predictions), len(classes)), math.nan)
    for row, prediction in zip(table, predictions, strict=True):
        if prediction.label is None:
            continue
        if prediction.probabilities:
            row[:] = [prediction.probabilities.get(name, 0.0) for name in classes]
            continue
        assert prediction.confidence is not None
        row[:] = (1 - prediction.confidence) / max(len(classes) - 1, 1)
        if prediction.label in index:
            row[index[prediction.label]] = prediction.confidence
    return table


def _prediction(number: int, row: Mapping[str, Any]) -> Prediction:
    given = {key: value for key, value in row.items() if not _missing(value)}
    if "label" not in given:
        return Prediction(error=str(given.get("error", "the model returned no label")))
    return Prediction(
        label=str(given["label"]),
        confidence=_probability(number, "confidence", given.get("confidence")),
        probabilities=_probabilities(number, given.get("probabilities", {})),
        in_domain=bool(_number(number, "in_domain", given["in_domain"])) if "in_domain" in given else None,
        domain_score=_number(number, "domain_score", given["domain_score"]) if "domain_score" in given else None,
        heatmap=_heatmap(number, given["heatmap"]) if "heatmap" in given else None,
    )


def _probabilities(number: int, value: Any) -> dict[str, float]:
    if not isinstance(value, Mapping):
        raise ModelFailed(
            f"row {number} has probabilities of type {type(value).__name__}: they must be a dict of class name → probability"
        )
    return {str(name): _probability(number, f"probability of {name}", one) for name, one in value.items()}


def _probability(number: int, what: str, value: Any) -> float:
    probability = _number(number, what, value)
    if not -_TOLERANCE <= probability <= 1 + _TOLERANCE:  # NaN fails, too
        raise ModelFailed(f"row {number} has {what} {value!r}: it must be a number from 0 to 1")
    return min(max(probability, 0.0), 1.0)


def _number(number: int, what: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ModelFailed(f"row {number} has {what} {value!r}: it must be a number") from None


def _heatmap(number: int, value: Any) -> bytes:
    try:
        return base64.b64decode(value, validate=True)
    except (TypeError, ValueError, binascii.Error):
        raise ModelFailed(f"row {number} has a heatmap of type {type(value).__name__} that is no base64") from None


def _missing(value: Any) -> bool:
    return bool(pd.api.types.is_scalar(value) and pd.isna(value))
