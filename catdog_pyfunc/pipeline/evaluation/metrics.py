"""Metrics as functions of the images' weights, so that a value and its bootstrap interval share one definition."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from catdog_pyfunc.pipeline.evaluation.intervals import Metric, Weights

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
_BINS = 15  # of confidence, equally wide
_MIN_PROBABILITY = 1e-12  # keeps the log-loss of a certain mistake finite


def label_metrics(labels: Indices, predicted: Indices, classes: Sequence[str]) -> dict[str, Metric]:
    """Metrics that depend on labels only.

    Args:
        labels: (N,) class indices.
        predicted: (N,) class indices; -1 for none of the classes.
        classes: C names.

    Returns:
        `balanced_accuracy` (the mean recall of the classes that occur) and `f1_<class>` of each class.
    """
    named: dict[str, Metric] = {"balanced_accuracy": partial(_balanced_accuracy, labels, predicted == labels, len(classes))}
    for index, name in enumerate(classes):
        named[f"f1_{name}"] = partial(_f1, labels == index, predicted == index)
    return named


def probability_metrics(labels: Indices, probabilities: Floats, confidences: Floats, correct: Mask) -> dict[str, Metric]:
    """Metrics that depend on probabilities, of readable images.

    Args:
        labels: (N,) class indices.
        probabilities: (N, C).
        confidences: (N,), of the predicted label.
        correct: (N,), whether the prediction is the label.

    Returns:
        `auroc` (of two classes: the second's; of more: the mean over classes of one against the rest), `log_loss` (nats) and
        `calibration_error` (expected calibration error over 15 bins; Naeini et al., AAAI 2015).
    """
    likelihoods = np.maximum(probabilities[np.arange(len(labels)), labels], _MIN_PROBABILITY)
    return {
        "auroc": _mean_auroc(labels, probabilities),
        "log_loss": partial(_mean, -np.log(likelihoods)),
        "calibration_error": partial(_calibration_error, _bin_index(confidences), confidences - correct),
    }


def auroc(positive: Mask, scores: Floats) -> Metric:
    """Area under the ROC curve: the probability that a positive scores higher than a negative, ties counting half.

    (Hanley and McNeil, Radiology 143:29, 1982.)

    Args:
        positive: (N,).
        scores: (N,).

    Returns:
        The metric; NaN where there are no positives, or no negatives.
    """
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.diff(scores[order], prepend=-np.inf))  # of each group of equal scores

    def area(weights: Weights) -> Floats:
        ordered = weights[:, order]
        positives = np.add.reduceat(ordered * positive[order], starts, axis=1)  # (B, groups)
        negatives = np.add.reduceat(ordered * ~positive[order], starts, axis=1)
        below = negatives.cumsum(axis=1) - negatives / 2
        return _ratio((positives * below).sum(axis=1), positives.sum(axis=1) * negatives.sum(axis=1))

    return area


@dataclass(frozen=True)
class Reliability:
    """Confidence and accuracy in bins of confidence.

    Attributes:
        confidence: Mean confidence of each bin that is not empty.
        accuracy: Fraction of correct predictions in it.
        counts: Number of predictions in it.
    """

    confidence: Floats
    accuracy: Floats
    counts: Indices


def reliability(confidences: Floats, correct: Mask) -> Reliability:
    """Compare confidence and accuracy in 15 bins of equal width, the bins of `calibration_error`.

    Args:
        confidences: (N,), 0..1.
        correct: (N,), whether the prediction is the label.

    Returns:
        The comparison.
    """
    bins = _bin_index(confidences)
    counts = np.bincount(bins, minlength=_BINS)
    filled = counts > 0
    confidence = np.bincount(bins, confidences, _BINS)[filled] / counts[filled]
    accuracy = np.bincount(bins, correct.astype(np.float64), _BINS)[filled] / counts[filled]
    return Reliability(confidence, accuracy, counts[filled])


def _bin_index(confidences: Floats) -> Indices:
    return np.minimum((confidences * _BINS).astype(np.int64), _BINS - 1)


def _mean_auroc(labels: Indices, probabilities: Floats) -> Metric:
    classes = range(1, 2) if probabilities.shape[1] == 2 else range(probabilities.shape[1])
    areas = [auroc(labels == index, probabilities[:, index]) for index in classes]
    return lambda weights: _mean_of_known(np.stack([area(weights) for area in areas]))


def _balanced_accuracy(labels: Indices, correct: Mask, classes: int, weights: Weights) -> Floats:
    member = np.eye(classes)[labels]  # (N, C)
    return _mean_of_known(_ratio((weights * correct) @ member, weights @ member).T)


def _f1(label: Mask, predicted: Mask, weights: Weights) -> Floats:
    return _ratio(2 * (weights @ (label & predicted)), weights @ label + weights @ predicted)


def _mean(values: Floats, weights: Weights) -> Floats:
    return _ratio(weights @ values, weights.sum(axis=1))


def _calibration_error(bins: Indices, gaps: Floats, weights: Weights) -> Floats:
    member = np.eye(_BINS)[bins] * gaps[:, None]  # (N, bins)
    return _ratio(np.abs(weights @ member).sum(axis=1), weights.sum(axis=1))


def _ratio(numerator: Floats, denominator: Floats) -> Floats:
    """Element by element; NaN where the denominator is 0."""
    ratio: Floats = np.divide(numerator, denominator, out=np.full(np.shape(numerator), np.nan), where=denominator != 0)
    return ratio


def _mean_of_known(values: Floats) -> Floats:
    """(K, B) → (B,), leaving NaN out."""
    known = ~np.isnan(values)
    return _ratio(np.where(known, values, 0).sum(axis=0), known.sum(axis=0).astype(np.float64))
