"""What a model says of pictures, whatever model it is."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from mlflow.pyfunc import PyFuncModel

from catdog_pyfunc.classifier import Classifier, Prediction
from catdog_pyfunc.errors import CatDogError, InvalidData, ModelFailed
from catdog_pyfunc.pipeline.evaluation.subprocess_worker import call

Predictor = Callable[[Sequence[bytes], bool], list[Prediction]]
"""Pictures, and whether to explain → predictions, one a picture in the same order."""


def classifier_predictor(classifier: Classifier) -> Predictor:
    """Ask a classifier of this project's directly, without DataFrames."""
    return lambda pictures, explain: classifier.predict(pictures, explain=explain)


def pyfunc_predictor(model: PyFuncModel, column: str = "image") -> Predictor:
    """Ask any MLflow model that takes a picture a row and answers with a label and a confidence.

    Args:
        model: As `mlflow.pyfunc.load_model` gives it. Heat maps are asked for only if its signature has `explain`.
        column: Where the pictures go, unless the model's signature has exactly one column.

    Returns:
        The question. It raises `InvalidData` if the answers hold no label and confidence, `ModelFailed` if the model raises.
    """
    return _asking(lambda pictures, explain: call(model, pictures, explain, column))


def function_predictor(predict: Callable[[pd.DataFrame], Any], column: str = "image") -> Predictor:
    """Ask a function that takes a DataFrame with a picture a row in `column`, and answers as a pyfunc does; see there."""
    return _asking(lambda pictures, explain: predict(pd.DataFrame({column: list(pictures)})))


def _asking(answer: Callable[[Sequence[bytes], bool], Any]) -> Predictor:
    def predict(pictures: Sequence[bytes], explain: bool) -> list[Prediction]:
        try:
            said = answer(pictures, explain)
        except CatDogError:
            raise
        except Exception as failure:  # whatever a stranger's code raises
            reason = next(iter(str(failure).splitlines()), "")
            raise ModelFailed(
                f"the model failed on {len(pictures)} pictures: {type(failure).__name__}: {reason}"
            ) from failure
        predictions = to_predictions(said)
        if len(predictions) != len(pictures):
            raise InvalidData(
                f"the model answered {len(pictures)} pictures with {len(predictions)} rows: it must give one each"
            )
        return predictions

    return predict


def to_predictions(output: Any) -> list[Prediction]:
    """Read what a pyfunc returned.

    Args:
        output: A DataFrame, or a list of dicts, with `label` and `confidence` (0..1) and, if the model knows them,
            `probabilities` (class name → 0..1), `error`, `in_domain`, `domain_score`, `heatmap` (base64 of a PNG). A row
            whose `label` is null is a picture that couldn't be read.

    Returns:
        One prediction a row.

    Raises:
        InvalidData: There is no label or no confidence, or a confidence isn't a probability.
    """
    rows: list[Any] = output.to_dict("records") if isinstance(output, pd.DataFrame) else output
    if not isinstance(rows, list) or not all(isinstance(row, Mapping) for row in rows):
        raise InvalidData(
            f"the model answered with {type(output).__name__}: it must give a DataFrame with label and confidence"
        )
    columns = list(output.columns) if isinstance(output, pd.DataFrame) else sorted({str(key) for row in rows for key in row})
    if rows and not {"label", "confidence"} <= set(columns):
        raise InvalidData(f"the model answered with {', '.join(map(str, columns))}: it must give label and confidence")
    return [_prediction(number, row) for number, row in enumerate(rows)]


def probability_table(predictions: Sequence[Prediction], classes: Sequence[str]) -> npt.NDArray[np.float64]:
    """The probability of each class.

    Args:
        predictions: N of them. One without probabilities has its confidence for its label; of two classes the other gets the
            rest, of more they share it evenly, which is the least that can be assumed.
        classes: C names.

    Returns:
        (N, C); NaN for a picture that couldn't be read.
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
    known = {key: value for key, value in row.items() if not _missing(value)}
    if "label" not in known:
        return Prediction(error=str(known.get("error", "the model gave no label")))
    heatmap, in_domain, score = known.get("heatmap"), known.get("in_domain"), known.get("domain_score")
    return Prediction(
        label=str(known["label"]),
        confidence=_probability(number, "confidence", known.get("confidence")),
        probabilities=_probabilities(number, known.get("probabilities", {})),
        in_domain=None if in_domain is None else bool(in_domain),
        domain_score=None if score is None else float(score),
        heatmap=base64.b64decode(heatmap) if heatmap else None,
    )


def _probabilities(number: int, given: Any) -> dict[str, float]:
    if not isinstance(given, Mapping):
        raise InvalidData(
            f"row {number} has probabilities of type {type(given).__name__}: give class name → share, or leave them out"
        )
    return {str(name): _probability(number, f"probability of {name}", value) for name, value in given.items()}


def _probability(number: int, what: str, value: Any) -> float:
    try:
        share = float(value)
    except (TypeError, ValueError):
        share = math.nan
    if not -1e-6 <= share <= 1 + 1e-6:  # so that NaN fails, too
        raise InvalidData(f"row {number} has {what} {value!r}: it must be a number from 0 to 1")
    return min(max(share, 0.0), 1.0)


def _missing(value: Any) -> bool:
    return value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value))
