"""The gate's checks: each states what was found and what was required."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest

from catdog_pyfunc.errors import ModelFailed
from catdog_pyfunc.pipeline.evaluation.evaluation import Evaluation, LabelledImage
from catdog_pyfunc.pipeline.evaluation.predictors import Predictor

PASSED, FAILED = "ok", "FAILED"
_LATENCY_IMAGES, _LATENCY_ROUNDS = 10, 10


@dataclass(frozen=True)
class Check:
    """One check of the gate.

    Attributes:
        name: What was checked.
        challenger: What was found for the challenger.
        champion: What was found for the champion; "" if it was not looked at.
        required: What the challenger must reach.
        passed: Whether it does.
    """

    name: str
    challenger: str
    champion: str
    required: str
    passed: bool


def checks_table(checks: Iterable[Check]) -> list[list[str]]:
    """Render checks as a table.

    Args:
        checks: The checks.

    Returns:
        Rows of cells for `console.text_table`: a head, then one row per check.
    """
    head = ["check", "challenger", "champion", "required", "verdict"]
    return [head, *([c.name, c.challenger, c.champion, c.required, PASSED if c.passed else FAILED] for c in checks)]


def not_compared(failure: ModelFailed) -> Check:
    """A champion that fails must not keep its successor out."""
    return Check("champion", "", str(failure), "nothing: not compared", True)


def corrupt_images(predict: Predictor, readable: bytes) -> Check:
    """Check that each corrupt image yields an error row, and leaves the other rows of the batch alone.

    Args:
        predict: The challenger.
        readable: An image that it has a label for.

    Returns:
        The check "corrupt images".
    """
    corrupt = [b"", b"no image", b"%PDF-1.7", readable[: len(readable) // 2], b"\x89PNG\r\n\x1a\n" + bytes(40), bytes(1000)]
    name, required = "corrupt images", f"{len(corrupt)} of {len(corrupt)} error rows, the readable image's label"
    try:
        expected = predict([readable], False)[0].label
        *rows, last = predict([*corrupt, readable], False)
    except ModelFailed as failure:
        return Check(name, str(failure), "", required, False)
    errors = sum(row.label is None and bool(row.error) for row in rows)
    kept = last.label == expected is not None
    found = f"{errors} of {len(corrupt)} error rows, the readable image's label{'' if kept else ' lost'}"
    return Check(name, found, "", required, errors == len(corrupt) and kept)


def minimum_accuracy(challenger: Evaluation, minimum: float) -> Check:
    """Check the accuracy of the challenger alone."""
    accuracy = challenger.accuracy.value
    return Check("accuracy", f"{accuracy:.4f}", "", f"≥ {minimum:.4f}", accuracy >= minimum)


def class_checks(challenger: Evaluation, champion: Evaluation) -> list[Check]:
    """Check that the challenger knows all of the champion's classes, and report what it knows besides."""
    mine, theirs = challenger.classes, champion.classes
    new = [f"{name} (recall {challenger.estimates[f'recall_{name}'].value:.4f})" for name in mine if name not in theirs]
    checks = [Check("same classes", ", ".join(mine), ", ".join(theirs), "all of the champion's", set(theirs) <= set(mine))]
    return checks + ([Check("new classes", ", ".join(new), "", "nothing: reported only", True)] if new else [])


def accuracy_comparison(challenger: Evaluation, champion: Evaluation, alpha: float) -> Check:
    """Check that the challenger's accuracy is not worse than the champion's beyond chance.

    Args:
        challenger: On the same images as the champion.
        champion: On the same images as the challenger.
        alpha: Significance level of McNemar's test.

    Returns:
        The check "accuracy vs champion".
    """
    p = mcnemar(challenger.correct, champion.correct)
    mine, theirs = (f"{evaluation.accuracy.value:.4f}" for evaluation in (challenger, champion))
    return Check("accuracy vs champion", mine, theirs, f"not worse beyond chance: p = {p:.4f} ≥ {alpha:g}", p >= alpha)


def no_higher(name: str, challenger: Evaluation, champion: Evaluation, margin: float) -> Check:
    """Check that a metric is at most the champion's plus a margin; NaN fails."""
    mine, theirs = challenger.estimates[name].value, champion.estimates[name].value
    limit = theirs + margin
    return Check(name, f"{mine:.4f}", f"{theirs:.4f}", f"≤ {limit:.4f}", mine <= limit)


def no_lower(name: str, challenger: Evaluation, champion: Evaluation, margin: float) -> Check:
    """Check that a metric is at least the champion's minus a margin; NaN fails."""
    mine, theirs = challenger.estimates[name].value, champion.estimates[name].value
    limit = theirs - margin
    return Check(name, f"{mine:.4f}", f"{theirs:.4f}", f"≥ {limit:.4f}", mine >= limit)


def mcnemar(challenger: npt.NDArray[np.bool_], champion: npt.NDArray[np.bool_]) -> float:
    """How likely a challenger as good as the champion would be at least as far behind as this one.

    The exact one-sided test on the images that only one of the two got right (McNemar 1947, Psychometrika 12:153).

    Args:
        challenger: (N,), whether each prediction was correct.
        champion: (N,), on the same images.

    Returns:
        p, 0..1; 1 if they never differ.
    """
    only_champion = int((champion & ~challenger).sum())
    only_one = int((champion != challenger).sum())
    return float(binomtest(only_champion, only_one, alternative="greater").pvalue) if only_one else 1.0


def latency(
    challenger: Predictor, champion: Predictor | None, images: Sequence[LabelledImage], ratio: float, allowed_ms: float
) -> list[Check]:
    """Check the time of a single-image call.

    Both models are called in turns, ten times with each of ten images. Of each image only the fastest call counts, because
    other load on the machine can only slow a call down; the latency is the median of those.

    Args:
        challenger: The challenger.
        champion: The champion; None to compare with `allowed_ms` alone.
        images: Images of which the first ten are used.
        ratio: The challenger may take this many times the champion's latency.
        allowed_ms: A latency that always passes, in ms.

    Returns:
        The check "latency, ms"; before it, a row saying so if the champion failed meanwhile.
    """
    contents = [image.read() for image in images[:_LATENCY_IMAGES]]
    fastest, champions = [math.inf] * len(contents), [math.inf] * len(contents)
    notes: list[Check] = []
    for index, content in [*enumerate(contents)] * _LATENCY_ROUNDS:
        try:
            fastest[index] = min(fastest[index], _call_ms(challenger, content))
        except ModelFailed as failure:
            return [*notes, Check("latency, ms", str(failure), "", "every call succeeds", False)]
        try:
            if champion:
                champions[index] = min(champions[index], _call_ms(champion, content))
        except ModelFailed as failure:
            notes.append(not_compared(failure))
            champion = None
    mine, theirs = statistics.median(fastest), statistics.median(champions) if champion else 0.0
    limit = max(allowed_ms, ratio * theirs)
    return [
        *notes,
        Check("latency, ms", f"{mine:.1f}", f"{theirs:.1f}" if champion else "", f"≤ {limit:.1f}", mine <= limit),
    ]


def _call_ms(predict: Predictor, image: bytes) -> float:
    started = time.perf_counter()
    predict([image], False)
    return 1000 * (time.perf_counter() - started)
