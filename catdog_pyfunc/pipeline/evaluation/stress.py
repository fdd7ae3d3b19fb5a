"""A model under corruptions: accuracy, calibration and acceptance by kind and severity."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import product

import numpy as np
import pandas as pd

from catdog_pyfunc.cpu import available_cores
from catdog_pyfunc.pipeline.console import progress
from catdog_pyfunc.pipeline.evaluation.corruptions import CORRUPTIONS, NONE, SEVERITIES, corrupt, corrupt_at_random
from catdog_pyfunc.pipeline.evaluation.evaluation import Evaluation, LabelledImage, measure
from catdog_pyfunc.pipeline.evaluation.intervals import Estimate, bootstrap
from catdog_pyfunc.pipeline.evaluation.predictors import Predictor

METRICS = ("accuracy", "calibration_error", "accepted")
"""The estimates that are compared; models without `in_domain` have no `accepted`."""
_CHUNK = 64  # images per call


@dataclass(frozen=True)
class StressTest:
    """A model's evaluations on the same images, each time corrupted in another way.

    Attributes:
        baseline: On images that were only scaled, as all are before they are corrupted.
        corrupted: (corruption, severity) → evaluation, in the order of `CORRUPTIONS`.
    """

    baseline: Evaluation
    corrupted: dict[tuple[str, int], Evaluation]

    @property
    def metrics(self) -> tuple[str, ...]:
        """Those of `METRICS` that the model has."""
        return tuple(name for name in METRICS if name in self.baseline.estimates)

    @property
    def accuracy(self) -> Estimate:
        """Mean accuracy of all corruptions; the interval resamples photos, as versions of one photo are not independent."""
        correct = np.mean([evaluation.correct for evaluation in self.corrupted.values()], axis=0)
        mean = bootstrap({"accuracy": lambda weights: weights @ correct / len(correct)}, len(correct), self.baseline.seed)
        return mean["accuracy"]

    def means(self) -> dict[str, float]:
        """Mean of each metric over all corruptions, and the mean accuracy of each corruption: `accuracy_fog`."""
        values = {
            name: [evaluation.estimates[name].value for evaluation in self.corrupted.values()] for name in self.metrics
        }
        for (corruption, _), evaluation in self.corrupted.items():
            values.setdefault(f"accuracy_{corruption}", []).append(evaluation.accuracy.value)
        named = {name: float(np.mean(several)) for name, several in values.items()}
        return {name: value for name, value in named.items() if not math.isnan(value)}

    def table(self) -> pd.DataFrame:
        """One row per corruption and severity, the baseline first, with the interval and n of each metric."""
        rows = []
        for (corruption, severity), evaluation in {(NONE, 0): self.baseline, **self.corrupted}.items():
            row: dict[str, object] = {"corruption": corruption, "severity": severity}
            for name in self.metrics:
                estimate = evaluation.estimates[name]
                row |= {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
            rows.append({**row, "n": len(evaluation.images)})
        return pd.DataFrame(rows)


def stress_test(predict: Predictor, images: Sequence[LabelledImage], classes: Sequence[str], seed: int = 0) -> StressTest:
    """Evaluate a model on images that are only scaled, and under each of the 36 corruptions.

    Args:
        predict: The model; see `predictors`. It is called 37 times with each image.
        images: Readable images, each with a label that the model knows.
        classes: The model's classes.
        seed: Seed of what is random in a corruption, and of the bootstrap.

    Returns:
        The evaluations.

    Raises:
        InvalidData: There are no images.
        ModelFailed: The model raised, hung, or returned predictions that cannot be used.
    """
    kinds = [(NONE, 0), *product(CORRUPTIONS, SEVERITIES)]
    corrupted = [
        replace(image, read=partial(_read, image, partial(corrupt, corruption=name, severity=severity, seed=seed)))
        for name, severity in kinds
        for image in images
    ]
    predictions = [prediction for contents in read_batches(corrupted) for prediction in predict(contents, False)]
    evaluations = []
    for number in range(len(kinds)):
        found = predictions[number * len(images) : (number + 1) * len(images)]
        evaluations.append(measure(tuple(classes), list(zip(images, found, strict=True)), seed))
    return StressTest(evaluations[0], dict(zip(kinds[1:], evaluations[1:], strict=True)))


def stratified_sample(images: Sequence[LabelledImage], limit: int, seed: int = 0) -> list[LabelledImage]:
    """Draw images with each class in proportion; the draw depends on the images' names, not on their order.

    Args:
        images: The images.
        limit: How many are drawn, if there are more.
        seed: Seed of the draw.

    Returns:
        At most `limit` images, in the order they came.
    """
    shuffled = sorted(range(len(images)), key=lambda k: hashlib.sha256(f"{seed} {images[k].name}".encode()).digest())
    totals, drawn = Counter(image.label for image in images), Counter[str]()
    quantiles: dict[int, float] = {}  # of each image within its class
    for place in shuffled:
        label = images[place].label
        drawn[label] += 1
        quantiles[place] = (drawn[label] - 0.5) / totals[label]
    return [images[place] for place in sorted(sorted(shuffled, key=quantiles.__getitem__)[:limit])]


def randomly_corrupted(images: Sequence[LabelledImage], seed: int = 0) -> list[LabelledImage]:
    """The same images, each corrupted in one of the 36 ways when it is read: independent trials, unlike all of one photo."""
    return [replace(image, read=partial(_read, image, partial(corrupt_at_random, seed=seed))) for image in images]


def read_batches(images: Sequence[LabelledImage]) -> Iterator[list[bytes]]:
    """Read images, and thereby corrupt them, on all cores; 64 at a time."""
    starts = range(0, len(images), _CHUNK)
    with ThreadPoolExecutor(available_cores()) as pool:
        for start in progress(starts, f"evaluating corrupted images, {_CHUNK} per step", len(starts)):
            yield list(pool.map(lambda image: image.read(), images[start : start + _CHUNK]))


def _read(image: LabelledImage, change: Callable[[bytes], bytes]) -> bytes:
    return change(image.read())
