"""How good a classifier is, with intervals, measured through the artifact that serves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from catdog_pyfunc.classifier import Classifier, Prediction
from catdog_pyfunc.errors import InvalidData
from catdog_pyfunc.pipeline.calibrate import Reliability, reliability
from catdog_pyfunc.pipeline.data import Example
from catdog_pyfunc.pipeline.progress import track

_CHUNK = 64
_LEAST_PROBABILITY = 1e-12  # log-loss of a certain mistake stays finite


@dataclass(frozen=True)
class Proportion:
    """A share of n trials with its 95 % Wilson score interval (Wilson 1927, JASA 22:209)."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.value:.4f} (95 % interval {self.low:.4f}–{self.high:.4f}, n = {self.n})"


@dataclass(frozen=True)
class Mistake:
    """A picture that was called something else, or that couldn't be read."""

    path: Path
    truth: str
    prediction: Prediction


@dataclass(frozen=True)
class Evaluation:
    """What a classifier did on labelled pictures.

    Attributes:
        accuracy: Over all pictures; an unreadable one counts as wrong.
        recalls: Class name → share of its pictures that were found.
        log_loss: Mean negative log-probability of the truth, nats, over readable pictures.
        calibration: How far confidence is from accuracy; readable pictures.
        accepted: Share of readable pictures that are `in_domain`.
        confusion: (C, C) counts, truth down and answer across; readable pictures.
        classes: Class names, the order of `confusion`.
        mistakes: Worst first: by confidence.
    """

    accuracy: Proportion
    recalls: dict[str, Proportion]
    log_loss: float
    calibration: Reliability
    accepted: Proportion
    confusion: npt.NDArray[np.int64]
    classes: tuple[str, ...]
    mistakes: tuple[Mistake, ...]

    def metrics(self, side: str) -> dict[str, float]:
        """The figures by name, for MLflow: `test/accuracy`, `test/accuracy_low`, `test/recall_cat`."""
        return {
            f"{side}/accuracy": self.accuracy.value,
            f"{side}/accuracy_low": self.accuracy.low,
            f"{side}/accuracy_high": self.accuracy.high,
            f"{side}/log_loss": self.log_loss,
            f"{side}/calibration_error": self.calibration.error,
            f"{side}/accepted": self.accepted.value,
            **{f"{side}/recall_{_metric_name(name)}": recall.value for name, recall in self.recalls.items()},
        }


def wilson(right: int, n: int) -> Proportion:
    """The share `right / n` with its 95 % Wilson score interval."""
    if n == 0:
        return Proportion(math.nan, 0.0, 1.0, 0)
    z = 1.959964  # standard normal, 97.5 %
    p = right / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return Proportion(p, max(0.0, centre - half), min(1.0, centre + half), n)


def evaluate(classifier: Classifier, examples: Sequence[Example], names: Sequence[str]) -> Evaluation:
    """Let a classifier answer labelled pictures.

    Args:
        classifier: As loaded from the artifact.
        examples: The pictures.
        names: The class names that `Example.label` counts.

    Returns:
        The evaluation.

    Raises:
        InvalidData: A class that the classifier doesn't know, or no pictures.
    """
    classes = classifier.bundle.description.classes
    unknown = sorted(set(names) - set(classes))
    if unknown:
        raise InvalidData(
            f"the data has classes {', '.join(unknown)} that the model doesn't know; it knows {', '.join(classes)}"
        )
    if not examples:
        raise InvalidData("there is no picture to evaluate on: give data with a test side")
    predictions = _answer(classifier, examples)
    truths = [names[example.label] for example in examples]
    right = [prediction.label == truth for prediction, truth in zip(predictions, truths, strict=True)]
    confusion = np.zeros((len(classes), len(classes)), np.int64)
    losses = []
    for prediction, truth in zip(predictions, truths, strict=True):
        if prediction.label is not None:
            confusion[classes.index(truth), classes.index(prediction.label)] += 1
            losses.append(-math.log(max(prediction.probabilities[truth], _LEAST_PROBABILITY)))
    recalls = {
        name: wilson(sum(r for r, t in zip(right, truths, strict=True) if t == name), truths.count(name)) for name in names
    }
    mistakes = [
        Mistake(example.path, truth, prediction)
        for example, truth, prediction in zip(examples, truths, predictions, strict=True)
        if prediction.label != truth
    ]
    mistakes.sort(key=lambda mistake: -(mistake.prediction.confidence or 0.0))
    return Evaluation(
        accuracy=wilson(sum(right), len(right)),
        recalls=recalls,
        log_loss=float(np.mean(losses)) if losses else math.nan,
        calibration=_calibration(predictions, right),
        accepted=wilson(sum(p.in_domain is True for p in predictions), sum(p.error is None for p in predictions)),
        confusion=confusion,
        classes=classes,
        mistakes=tuple(mistakes),
    )


def _calibration(predictions: Sequence[Prediction], right: Sequence[bool]) -> Reliability:
    known = [(p.confidence, r) for p, r in zip(predictions, right, strict=True) if p.confidence is not None]
    return reliability(np.array([confidence for confidence, _ in known]), np.array([r for _, r in known], dtype=bool))


def _answer(classifier: Classifier, examples: Sequence[Example]) -> list[Prediction]:
    starts = range(0, len(examples), _CHUNK)
    predictions: list[Prediction] = []
    for start in track(starts, "evaluating, 64 pictures each", len(starts)):
        predictions += classifier.predict([example.path.read_bytes() for example in examples[start : start + _CHUNK]])
    return predictions


def _metric_name(name: str) -> str:
    """MLflow allows letters, digits and some signs in a metric's name."""
    return "".join(letter if letter.isalnum() or letter in "_-. " else "_" for letter in name)
