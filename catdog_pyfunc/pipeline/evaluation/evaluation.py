"""How good a model is on labelled pictures, with intervals; whatever model can be asked."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from catdog_pyfunc.classifier import Prediction
from catdog_pyfunc.errors import InvalidData
from catdog_pyfunc.pipeline.console import progress
from catdog_pyfunc.pipeline.data.dataset import Dataset
from catdog_pyfunc.pipeline.evaluation import metrics
from catdog_pyfunc.pipeline.evaluation.intervals import Estimate, bootstrap, wilson
from catdog_pyfunc.pipeline.evaluation.metrics import Reliability, reliability
from catdog_pyfunc.pipeline.evaluation.predictors import Predictor, probability_table

_CHUNK = 64
_TIMED_PICTURES, _TIMED_S = 100, 3.0


@dataclass(frozen=True)
class LabelledImage:
    """A labelled picture.

    Attributes:
        name: What to call it in a gallery.
        truth: Its class's name.
        read: Gives its file's bytes.
    """

    name: str
    label: str
    read: Callable[[], bytes]


@dataclass(frozen=True)
class Evaluation:
    """What a model did on labelled pictures.

    Attributes:
        classes: C names, the order of `confusion` and `probabilities`.
        photos: N pictures.
        predictions: N answers.
        probabilities: (N, C); NaN for a picture that couldn't be read.
        estimates: Metric → estimate. Shares have Wilson's interval: accuracy, precision_<class>, recall_<class>, accepted
            (of readable pictures, `in_domain`), accuracy_accepted, unreadable. The others a bootstrap's: balanced_accuracy,
            f1_<class>, auroc, log_loss (nats), calibration_error. An unreadable picture counts as wrong; the
            last three are of readable ones. NaN where nothing could be measured.
        calibration: How far confidence is from accuracy; readable pictures.
        confusion: (C, C) counts, truth down and answer across; readable pictures.
        latency_p50_ms: Median time of a call with one picture; None if it wasn't measured.
        latency_p99_ms: Likewise, the 99th percentile.
    """

    classes: tuple[str, ...]
    images: tuple[LabelledImage, ...] = field(repr=False)
    predictions: tuple[Prediction, ...] = field(repr=False)
    probabilities: npt.NDArray[np.float64] = field(repr=False)
    estimates: dict[str, Estimate]
    calibration: Reliability
    confusion: npt.NDArray[np.int64]
    latency_p50_ms: float | None = None
    latency_p99_ms: float | None = None

    @property
    def labels(self) -> tuple[str, ...]:
        """N class names."""
        return tuple(photo.label for photo in self.images)

    @property
    def correct(self) -> npt.NDArray[np.bool_]:
        """(N,), whether each answer was the truth."""
        return np.array([p.label == photo.label for photo, p in zip(self.images, self.predictions, strict=True)], bool)

    @property
    def accuracy(self) -> Estimate:
        """Over all pictures; an unreadable one counts as wrong."""
        return self.estimates["accuracy"]

    @property
    def mistakes(self) -> tuple[tuple[LabelledImage, Prediction], ...]:
        """The wrong answers, the most confident first and pictures that couldn't be read last."""
        wrong = [pair for pair, correct in zip(self._pairs(), self.correct, strict=True) if not correct]
        return tuple(sorted(wrong, key=lambda pair: -(pair[1].confidence or 0.0)))

    @property
    def least_sure(self) -> tuple[tuple[LabelledImage, Prediction], ...]:
        """The pictures that could be read, the least confident answer first."""
        known = [pair for pair in self._pairs() if pair[1].confidence is not None]
        return tuple(sorted(known, key=lambda pair: pair[1].confidence or 0.0))

    def _pairs(self) -> list[tuple[LabelledImage, Prediction]]:
        return list(zip(self.images, self.predictions, strict=True))

    def metrics(self, prefix: str = "") -> dict[str, float]:
        """The figures by name, for MLflow: `test/accuracy`, `test/accuracy_low`, `test/accuracy_high`, `test/recall_cat`.

        Args:
            prefix: What stands before the slash; empty: no slash either.

        Returns:
            Every estimate's value and the latencies, where there is one; the interval of accuracy alone.
        """
        named = {name: estimate.value for name, estimate in self.estimates.items()}
        named |= {"accuracy_low": self.accuracy.low, "accuracy_high": self.accuracy.high}
        if self.latency_p50_ms is not None and self.latency_p99_ms is not None:
            named |= {"latency_p50_ms": self.latency_p50_ms, "latency_p99_ms": self.latency_p99_ms}
        before = f"{prefix}/" if prefix else ""
        return {before + _metric_name(name): value for name, value in named.items() if not math.isnan(value)}


def labelled_images(dataset: Dataset, split: str) -> list[LabelledImage]:
    """The pictures of a data set's split ("train", "val", "test" or "all"), named by class folder and file."""
    return [
        LabelledImage(
            f"{example.path.parent.name}/{example.path.name}", dataset.classes[example.label], example.path.read_bytes
        )
        for example in dataset.examples(split)
    ]


def evaluate(
    predict: Predictor,
    images: Sequence[LabelledImage],
    *,
    classes: Sequence[str] | None = None,
    seed: int = 0,
    latency: bool = True,
) -> Evaluation:
    """Let a model answer labelled pictures.

    Args:
        ask: The model; see `answers`.
        photos: The pictures.
        classes: What the model knows; None: the keys of its `probabilities`, and where it gives none, the labels that it
            answers with and the truths.
        seed: Of the bootstrap.
        latency: Whether to time calls with one picture, for 3 seconds at most.

    Returns:
        The evaluation.

    Raises:
        InvalidData: There are no pictures; a truth is none of the model's classes; or the answers can't be read.
    """
    if not images:
        raise InvalidData("there is no picture to evaluate on: give data that has some")
    predictions: list[Prediction] = []
    starts = range(0, len(images), _CHUNK)
    for start in progress(starts, f"evaluating, {_CHUNK} pictures each", len(starts)):
        predictions += predict([photo.read() for photo in images[start : start + _CHUNK]], False)
        if start == 0:
            _check_classes(images, predictions, classes)  # before the rest is asked for nothing
    known = tuple(classes or _check_classes(images, predictions, classes))
    timed = _latencies(predict, images, predictions) if latency else []
    median, tail = np.percentile(timed, [50, 99]).tolist() if timed else (None, None)
    return _measured(known, tuple(images), tuple(predictions), seed, median, tail)


def _check_classes(
    images: Sequence[LabelledImage], predictions: Sequence[Prediction], classes: Sequence[str] | None
) -> tuple[str, ...]:
    """The classes that a model knows, if all truths are among them."""
    labels = sorted({photo.label for photo in images})
    known = tuple(classes or next((p.probabilities for p in predictions if p.probabilities), ()))
    if known:
        unknown = [label for label in labels if label not in known]
        if unknown:
            raise _unknown(unknown, "knows", known)
        return known
    answered = sorted({p.label for p in predictions if p.label is not None})
    if answered and not set(answered) & set(labels):
        raise _unknown(labels, "answers", answered)
    return tuple(sorted({*labels, *answered}))


def _unknown(unknown: Sequence[str], verb: str, known: Sequence[str]) -> InvalidData:
    alike = {name.strip().casefold(): name for name in known}
    meant = [(name, alike[name.strip().casefold()]) for name in unknown if name.strip().casefold() in alike]
    hint = "".join(f"; {name!r} is {other!r} but for case or spaces: rename it" for name, other in meant[:3])
    return InvalidData(
        f"the data has classes {_listed(unknown)} that the model doesn't know; it {verb} {_listed(known)}{hint}"
    )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def _latencies(predict: Predictor, images: Sequence[LabelledImage], predictions: Sequence[Prediction]) -> list[float]:
    """Milliseconds of calls with one picture, each a different one that could be read."""
    readable = [photo for photo, p in zip(images, predictions, strict=True) if p.label is not None]
    if not readable:
        return []
    count = min(len(readable), _TIMED_PICTURES)
    pictures = [readable[k * len(readable) // count].read() for k in range(count)]
    predict(pictures[:1], False)  # what only a first call does isn't measured
    timed: list[float] = []
    ends = time.perf_counter() + _TIMED_S
    for picture in pictures:
        began = time.perf_counter()
        predict([picture], False)
        timed.append(1000 * (time.perf_counter() - began))
        if time.perf_counter() > ends:
            break
    return timed


def _measured(
    classes: tuple[str, ...],
    images: tuple[LabelledImage, ...],
    predictions: tuple[Prediction, ...],
    seed: int,
    median: float | None,
    tail: float | None,
) -> Evaluation:
    index = {name: place for place, name in enumerate(classes)}
    labels = np.array([index[image.label] for image in images], np.int64)
    # A label that the model names among no probabilities, or a picture that couldn't be read: nothing's answer.
    answers = np.array([index.get(p.label, -1) if p.label is not None else -1 for p in predictions], np.int64)
    table = probability_table(predictions, classes)
    read = np.array([p.label is not None for p in predictions], bool)
    correct = answers == labels
    confidences = np.array([p.confidence for p in predictions if p.confidence is not None], np.float64)
    of_labels = bootstrap(metrics.of_labels(labels, answers, classes), len(images), seed)
    probable = metrics.of_probabilities(labels[read], table[read], confidences, correct[read])
    confusion = np.zeros((len(classes), len(classes)), np.int64)
    np.add.at(confusion, (labels[answers >= 0], answers[answers >= 0]), 1)
    estimates = {"accuracy": wilson(int(correct.sum()), len(images)), "balanced_accuracy": of_labels["balanced_accuracy"]}
    for name, place in index.items():
        of, called = labels == place, answers == place
        estimates[f"precision_{name}"] = wilson(int((of & called).sum()), int(called.sum()))
        estimates[f"recall_{name}"] = wilson(int((of & called).sum()), int(of.sum()))
        estimates[f"f1_{name}"] = of_labels[f"f1_{name}"]
    estimates |= bootstrap(probable, int(read.sum()), seed) | _refusals(predictions, correct, read)
    return Evaluation(
        classes, images, predictions, table, estimates, reliability(confidences, correct[read]), confusion, median, tail
    )


def _refusals(
    predictions: Sequence[Prediction], correct: npt.NDArray[np.bool_], read: npt.NDArray[np.bool_]
) -> dict[str, Estimate]:
    estimates = {}
    if any(p.in_domain is not None for p in predictions):
        accepted = read & np.array([p.in_domain is True for p in predictions], bool)
        estimates["accepted"] = wilson(int(accepted.sum()), int(read.sum()))
        estimates["accuracy_accepted"] = wilson(int((correct & accepted).sum()), int(accepted.sum()))
    estimates["unreadable"] = wilson(int((~read).sum()), len(predictions))
    return estimates


def _metric_name(name: str) -> str:
    """MLflow allows letters, digits and some signs in a metric's name."""
    return "".join(letter if letter.isalnum() or letter in "_-. " else "_" for letter in name)
