"""What is measured: each metric a function of the pictures' weights, so that value and interval have one definition."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from catdog_pyfunc.pipeline.evaluation.intervals import Metric, Weights

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]
_LEAST_PROBABILITY = 1e-12  # log-loss of a certain mistake stays finite


def of_labels(labels: Indices, answers: Indices, classes: Sequence[str]) -> dict[str, Metric]:
    """What depends on labels alone.

    Args:
        truths: (N,) class indices.
        answers: (N,) likewise; -1 for a picture that couldn't be read.
        classes: C names.

    Returns:
        `balanced_accuracy` (the mean of the recalls of those classes that occur) and each class's `f1_<class>`.
    """
    metrics: dict[str, Metric] = {"balanced_accuracy": partial(_balanced_accuracy, labels, answers == labels, len(classes))}
    for index, name in enumerate(classes):
        metrics[f"f1_{name}"] = partial(_f1, labels == index, answers == index)
    return metrics


def of_probabilities(
    labels: Indices, probabilities: Floats, confidences: Floats, correct: npt.NDArray[np.bool_]
) -> dict[str, Metric]:
    """What depends on probabilities, for pictures that could be read.

    Args:
        truths: (N,) class indices.
        probabilities: (N, C).
        confidences: (N,), the answered label's.
        right: (N,), whether that was the truth.

    Returns:
        `auroc` (two classes: of the second; more: the mean over classes of one against the rest), `log_loss` (nats) and
        `calibration_error` (as `calibrate.reliability` defines it).
    """
    return {
        "auroc": _mean_auroc(labels, probabilities),
        "log_loss": partial(_mean, -np.log(np.maximum(probabilities[np.arange(len(labels)), labels], _LEAST_PROBABILITY))),
        "calibration_error": partial(_calibration_error, bin_index(confidences), confidences - correct),
    }


def auroc(positive: npt.NDArray[np.bool_], scores: Floats) -> Metric:
    """The area under the ROC curve: how often a positive scores higher than a negative, ties counting half.

    (Hanley and McNeil, Radiology 143:29, 1982.)

    Args:
        positive: (N,).
        scores: (N,).

    Returns:
        The metric; NaN where there are no positives, or no negatives.
    """
    order = np.argsort(scores, kind="stable")
    firsts = np.flatnonzero(np.diff(scores[order], prepend=-np.inf))  # where each group of equal scores begins

    def area(weights: Weights) -> Floats:
        held = weights[:, order]
        positives = np.add.reduceat(held * positive[order], firsts, axis=1)  # (B, groups)
        negatives = np.add.reduceat(held * ~positive[order], firsts, axis=1)
        below = negatives.cumsum(axis=1) - negatives / 2
        return _ratio((positives * below).sum(axis=1), positives.sum(axis=1) * negatives.sum(axis=1))

    return area


def _mean_auroc(labels: Indices, probabilities: Floats) -> Metric:
    classes = range(1, 2) if probabilities.shape[1] == 2 else range(probabilities.shape[1])
    areas = [auroc(labels == index, probabilities[:, index]) for index in classes if len(labels)]
    return lambda weights: _mean_of_known(np.stack([area(weights) for area in areas]))


def _balanced_accuracy(labels: Indices, correct: npt.NDArray[np.bool_], classes: int, weights: Weights) -> Floats:
    member = np.eye(classes)[labels]  # (N, C)
    return _mean_of_known(_ratio((weights * correct) @ member, weights @ member).T)


def _f1(label: npt.NDArray[np.bool_], answer: npt.NDArray[np.bool_], weights: Weights) -> Floats:
    return _ratio(2 * (weights @ (label & answer)), weights @ label + weights @ answer)


def _mean(values: Floats, weights: Weights) -> Floats:
    return _ratio(weights @ values, weights.sum(axis=1))


def _calibration_error(bins: Indices, gaps: Floats, weights: Weights) -> Floats:
    member = np.eye(int(bins.max()) + 1)[bins] * gaps[:, None]  # (N, bins)
    return _ratio(np.abs(weights @ member).sum(axis=1), weights.sum(axis=1))


def _ratio(above: Floats, below: Floats) -> Floats:
    ratio: Floats = np.divide(above, below, out=np.full(np.shape(above), np.nan), where=below != 0)
    return ratio


def _mean_of_known(values: Floats) -> Floats:
    """(K, B) → (B,), leaving NaN out."""
    known = ~np.isnan(values)
    return _ratio(np.where(known, values, 0).sum(axis=0), known.sum(axis=0).astype(np.float64))


@dataclass(frozen=True)
class Reliability:
    """How far confidence is from accuracy, in bins of confidence.

    Attributes:
        confidence: Mean confidence of each bin that holds something.
        accuracy: Share of right answers in it.
        counts: How many answers it holds.
        error: Expected calibration error: the mean distance of the two, weighted by the counts (Naeini et al., AAAI 2015).
    """

    confidence: npt.NDArray[np.float64]
    accuracy: npt.NDArray[np.float64]
    counts: npt.NDArray[np.int64]
    error: float


def bin_index(confidences: npt.NDArray[np.float64], bins: int = 15) -> npt.NDArray[np.int64]:
    """Which of the bins of equal width each confidence, 0..1, falls into: (N,) → (N,)."""
    return np.minimum((confidences * bins).astype(np.int64), bins - 1)


def reliability(confidences: npt.NDArray[np.float64], right: npt.NDArray[np.bool_], bins: int = 15) -> Reliability:
    """Compare confidence and accuracy in bins of equal width.

    Args:
        confidences: (N,), 0..1.
        right: (N,), whether the answer was right.
        bins: How many.

    Returns:
        The comparison.
    """
    place = bin_index(confidences, bins)
    counts = np.bincount(place, minlength=bins)
    held = counts > 0
    confidence = np.bincount(place, confidences, bins)[held] / counts[held]
    accuracy = np.bincount(place, right.astype(np.float64), bins)[held] / counts[held]
    error = float((np.abs(confidence - accuracy) * counts[held]).sum() / max(counts.sum(), 1))
    return Reliability(confidence, accuracy, counts[held], error)
