"""Evaluates any predictor on labelled images: metrics with intervals, confusion matrix, calibration, latency."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from catdog_pyfunc.classifier import Prediction
from catdog_pyfunc.errors import InvalidData
from catdog_pyfunc.pipeline.console import progress
from catdog_pyfunc.pipeline.data.dataset import Dataset
from catdog_pyfunc.pipeline.evaluation import metrics
from catdog_pyfunc.pipeline.evaluation.intervals import Estimate, bootstrap, wilson
from catdog_pyfunc.pipeline.evaluation.metrics import Reliability
from catdog_pyfunc.pipeline.evaluation.predictors import Predictor, probability_table

_CHUNK = 64  # images per call
_TIMED_IMAGES, _TIMED_S = 100, 3.0


@dataclass(frozen=True)
class LabelledImage:
    """An image and its label.

    Attributes:
        name: What a gallery calls it.
        label: Its class name.
        read: Returns the bytes of its file.
    """

    name: str
    label: str
    read: Callable[[], bytes]


Result = tuple[LabelledImage, Prediction]


@dataclass(frozen=True)
class Evaluation:
    """A model's predictions on labelled images, and the metrics computed from them.

    Attributes:
        classes: C names: the order of `confusion` and `probabilities`.
        images: N images.
        predictions: N predictions.
        probabilities: (N, C); NaN for an unreadable image, one that the model returned no label for.
        estimates: Metric name → estimate. Fractions have a Wilson interval: accuracy, precision_<class>, recall_<class>,
            accepted (readable images with `in_domain`), accuracy_accepted, unreadable. The others have a bootstrap interval:
            balanced_accuracy, f1_<class>, auroc, log_loss (nats), calibration_error. An unreadable image counts as wrong;
            the last three metrics are computed on readable images. NaN where there is nothing to compute from.
        calibration: Confidence against accuracy in bins; readable images.
        confusion: (C, C) counts, rows are labels and columns are predictions; readable images.
        seed: Seed of the bootstrap.
        latency_p50_ms: Median time of a single-image call; None if it was not measured.
        latency_p99_ms: 99th percentile of the same calls.
    """

    classes: tuple[str, ...]
    images: tuple[LabelledImage, ...] = field(repr=False)
    predictions: tuple[Prediction, ...] = field(repr=False)
    probabilities: npt.NDArray[np.float64] = field(repr=False)
    estimates: dict[str, Estimate]
    calibration: Reliability
    confusion: npt.NDArray[np.int64]
    seed: int = 0
    latency_p50_ms: float | None = None
    latency_p99_ms: float | None = None

    @property
    def labels(self) -> tuple[str, ...]:
        """N class names."""
        return tuple(image.label for image in self.images)

    @property
    def correct(self) -> npt.NDArray[np.bool_]:
        """(N,), whether each prediction is the label."""
        return np.array([prediction.label == image.label for image, prediction in self._results()], bool)

    @property
    def accuracy(self) -> Estimate:
        """Accuracy on all images; an unreadable image counts as wrong."""
        return self.estimates["accuracy"]

    @property
    def mistakes(self) -> tuple[Result, ...]:
        """Wrong predictions, the most confident first; unreadable images come last."""
        wrong = [result for result, correct in zip(self._results(), self.correct, strict=True) if not correct]
        return tuple(sorted(wrong, key=lambda result: -(result[1].confidence or 0.0)))

    @property
    def least_confident(self) -> tuple[Result, ...]:
        """Readable images, the least confident prediction first."""
        readable = [result for result in self._results() if result[1].confidence is not None]
        return tuple(sorted(readable, key=lambda result: result[1].confidence or 0.0))

    def restricted_to(self, classes: Collection[str]) -> Evaluation:
        """Recompute everything on the images of some classes, without calling the model again.

        Args:
            classes: Class names; those that the model does not know are ignored.

        Returns:
            The evaluation of those images. A prediction of any other class is wrong; latencies stay as measured.

        Raises:
            InvalidData: No image has one of these labels.
        """
        known = tuple(name for name in self.classes if name in classes)
        restricted = measure(known, [result for result in self._results() if result[0].label in known], self.seed)
        return replace(restricted, latency_p50_ms=self.latency_p50_ms, latency_p99_ms=self.latency_p99_ms)

    def metrics(self, prefix: str = "") -> dict[str, float]:
        """The metrics by name, for MLflow: `test/accuracy`, `test/accuracy_low`, `test/accuracy_high`, `test/recall_cat`.

        Args:
            prefix: First part of each name, before a slash; empty for bare names.

        Returns:
            The value of every estimate that has one, the interval of accuracy, and the latencies if they were measured.
        """
        named = {name: estimate.value for name, estimate in self.estimates.items()}
        named |= {"accuracy_low": self.accuracy.low, "accuracy_high": self.accuracy.high}
        if self.latency_p50_ms is not None and self.latency_p99_ms is not None:
            named |= {"latency_p50_ms": self.latency_p50_ms, "latency_p99_ms": self.latency_p99_ms}
        start = f"{prefix}/" if prefix else ""
        return {start + _metric_name(name): value for name, value in named.items() if not math.isnan(value)}

    def _results(self) -> list[Result]:
        return list(zip(self.images, self.predictions, strict=True))


def labelled_images(dataset: Dataset, split: str) -> list[LabelledImage]:
    """The images of a dataset's split ("train", "val", "test" or "all"), named by class folder and file."""
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
    skip_unknown: bool = False,
    seed: int = 0,
    latency: bool = True,
) -> Evaluation:
    """Evaluate a model on labelled images.

    Args:
        predict: The model; see `predictors`.
        images: The images.
        classes: The model's classes; None for the keys of its `probabilities` or, if it returns none, for the labels of the
            images and of its predictions.
        skip_unknown: Leave out images whose label is none of the model's classes, instead of refusing them.
        seed: Seed of the bootstrap.
        latency: Whether to time single-image calls, for at most 3 seconds.

    Returns:
        The evaluation.

    Raises:
        InvalidData: There are no images, or labels (with `skip_unknown`: all labels) are none of the model's classes.
        ModelFailed: The model raised, hung, or returned predictions that cannot be used.
    """
    predictions: list[Prediction] = []
    starts = range(0, len(images), _CHUNK)
    for start in progress(starts, f"evaluating, {_CHUNK} images per step", len(starts)):
        predictions += predict([image.read() for image in images[start : start + _CHUNK]], False)
        if start == 0:
            _known_classes(images, predictions, classes, skip_unknown)  # before the remaining images are predicted in vain
    known = _known_classes(images, predictions, classes, skip_unknown)
    results = [result for result in zip(images, predictions, strict=True) if result[0].label in known]
    evaluation = measure(known, results, seed)
    timed = _latencies(predict, results) if latency else []
    if not timed:
        return evaluation
    median, tail = np.percentile(timed, [50, 99]).tolist()
    return replace(evaluation, latency_p50_ms=median, latency_p99_ms=tail)


def _known_classes(
    images: Sequence[LabelledImage], predictions: Sequence[Prediction], classes: Sequence[str] | None, skip_unknown: bool
) -> tuple[str, ...]:
    """The model's classes; without `probabilities` a model may know labels that it has not predicted."""
    labels = sorted({image.label for image in images})
    known = tuple(classes or next((p.probabilities for p in predictions if p.probabilities), ()))
    verb = "knows"
    if not known:
        predicted = sorted({p.label for p in predictions if p.label is not None})
        if not predicted or not set(predicted).isdisjoint(labels):
            return tuple(sorted({*labels, *predicted}))
        known, verb = tuple(predicted), "predicts"
    unknown = [label for label in labels if label not in known]
    if unknown and not (skip_unknown and len(unknown) < len(labels)):
        raise _unknown_labels(unknown, verb, known)
    return known


def _unknown_labels(unknown: Sequence[str], verb: str, known: Sequence[str]) -> InvalidData:
    folded = {name.strip().casefold(): name for name in known}
    meant = [(name, folded[name.strip().casefold()]) for name in unknown if name.strip().casefold() in folded]
    hint = "".join(f"; {name!r} differs from {other!r} in case or spaces only: rename it" for name, other in meant[:3])
    return InvalidData(
        f"the data has classes {_listed(unknown)} that the model does not know; it {verb} {_listed(known)}{hint}"
    )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def _latencies(predict: Predictor, results: Sequence[Result]) -> list[float]:
    """Milliseconds of single-image calls, each with another readable image."""
    readable = [image for image, prediction in results if prediction.label is not None]
    count = min(len(readable), _TIMED_IMAGES)
    contents = [readable[k * len(readable) // count].read() for k in range(count)]
    timed: list[float] = []
    if contents:
        predict(contents[:1], False)  # warm-up: what only a first call does is not timed
    deadline = time.perf_counter() + _TIMED_S
    for content in contents:
        started = time.perf_counter()
        predict([content], False)
        ended = time.perf_counter()
        timed.append(1000 * (ended - started))
        if ended > deadline:
            break
    return timed


def measure(classes: tuple[str, ...], results: Sequence[Result], seed: int) -> Evaluation:
    """Compute all metrics.

    Args:
        classes: C names; every image's label must be one of them.
        results: Images and their predictions.
        seed: Seed of the bootstrap.

    Returns:
        The evaluation, without latencies.

    Raises:
        InvalidData: There are no images.
    """
    if not results:
        raise InvalidData(f"there are no images{f' of {_listed(classes)}' if classes else ''} to evaluate on: give some")
    images, predictions = zip(*results, strict=True)
    index = {name: place for place, name in enumerate(classes)}
    labels = np.array([index[image.label] for image in images], np.int64)
    # -1: an unreadable image, or a prediction of another class
    predicted = np.array([-1 if p.label is None else index.get(p.label, -1) for p in predictions], np.int64)
    readable = np.array([p.label is not None for p in predictions], bool)
    correct = predicted == labels
    probabilities = probability_table(predictions, classes)
    confidences = np.array([p.confidence for p in predictions if p.confidence is not None], np.float64)
    from_labels = bootstrap(metrics.label_metrics(labels, predicted, classes), len(images), seed)
    from_probabilities = metrics.probability_metrics(
        labels[readable], probabilities[readable], confidences, correct[readable]
    )
    estimates = {"accuracy": wilson(int(correct.sum()), len(images)), "balanced_accuracy": from_labels["balanced_accuracy"]}
    for name, place in index.items():
        hits = int((correct & (labels == place)).sum())
        estimates[f"precision_{name}"] = wilson(hits, int((predicted == place).sum()))
        estimates[f"recall_{name}"] = wilson(hits, int((labels == place).sum()))
        estimates[f"f1_{name}"] = from_labels[f"f1_{name}"]
    estimates |= bootstrap(from_probabilities, int(readable.sum()), seed) | _rejections(predictions, correct, readable)
    calibration = metrics.reliability(confidences, correct[readable])
    confusion = np.zeros((len(classes), len(classes)), np.int64)
    np.add.at(confusion, (labels[predicted >= 0], predicted[predicted >= 0]), 1)
    return Evaluation(classes, images, predictions, probabilities, estimates, calibration, confusion, seed)


def _rejections(
    predictions: Sequence[Prediction], correct: npt.NDArray[np.bool_], readable: npt.NDArray[np.bool_]
) -> dict[str, Estimate]:
    estimates = {}
    if any(p.in_domain is not None for p in predictions):
        accepted = readable & np.array([p.in_domain is True for p in predictions], bool)
        estimates["accepted"] = wilson(int(accepted.sum()), int(readable.sum()))
        estimates["accuracy_accepted"] = wilson(int((correct & accepted).sum()), int(accepted.sum()))
    estimates["unreadable"] = wilson(int((~readable).sum()), len(predictions))
    return estimates


def _metric_name(name: str) -> str:
    """Replaces what MLflow does not allow in the name of a metric."""
    return "".join(letter if letter.isalnum() or letter in "_-. " else "_" for letter in name)
