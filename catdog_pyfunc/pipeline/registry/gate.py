"""May a challenger take the champion's place? Both answer the same photos; every check says what it saw and what it asks."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import mlflow
import numpy as np
from mlflow.models import MetricThreshold
from mlflow.models.evaluation import EvaluationResult
from mlflow.models.evaluation.validation import ModelValidationFailedException

from catdog_pyfunc import internals
from catdog_pyfunc.errors import CatDogError, InvalidData, InvalidSetting, ModelFailed
from catdog_pyfunc.pipeline.console import log
from catdog_pyfunc.pipeline.evaluation.evaluation import Evaluation, LabelledImage, evaluate
from catdog_pyfunc.pipeline.evaluation.predictors import Predictor
from catdog_pyfunc.pipeline.evaluation.subprocess_model import SubprocessModel, subprocess_model

_LATENCY_ROUNDS, _LATENCY_CALLS = 4, 25  # 100 lone calls a model, in turns: what else the machine does hits both
OK, FAILED = "ok", "FAILED"


@dataclass(frozen=True)
class Thresholds:
    """What a challenger must reach.

    Attributes:
        min_accuracy: At least, whatever the champion does.
        alpha: Refused if a champion no better would be ahead as far as that with less than this probability.
        log_loss_margin: May be higher than the champion's by so much, nats.
        calibration_margin: Likewise, the expected calibration error.
        recall_margin: Every class's recall may be lower by so much.
        latency_ratio: p99 of a lone picture's latency may be so many times the champion's.
        latency_allowed_ms: And is never held against a model that stays below this.
    """

    min_accuracy: float = 0.8
    alpha: float = 0.05
    log_loss_margin: float = 0.05
    calibration_margin: float = 0.05
    recall_margin: float = 0.05
    latency_ratio: float = 1.5
    latency_allowed_ms: float = 50.0

    def __post_init__(self) -> None:
        for name in ("min_accuracy", "alpha"):
            if not 0 <= getattr(self, name) <= 1:
                raise InvalidSetting(f"{name} is {getattr(self, name)}; give a share from 0 to 1")
        for name in ("log_loss_margin", "calibration_margin", "recall_margin", "latency_ratio", "latency_allowed_ms"):
            if not getattr(self, name) >= 0:
                raise InvalidSetting(f"{name} is {getattr(self, name)}; give 0 or more")


@dataclass(frozen=True)
class Check:
    """One question of the gate.

    Attributes:
        name: What was looked at.
        challenger: What was seen.
        champion: What was seen there; "" for no champion, or nothing to compare.
        needed: What the challenger must reach.
        passed: Whether it does.
    """

    name: str
    challenger: str
    champion: str
    needed: str
    passed: bool


@dataclass
class GateReport:
    """What the gate saw.

    Attributes:
        checks: In the order they were made.
        challenger: Its answers; None if it couldn't be asked.
        champion: Likewise; None for no champion, too.
    """

    checks: list[Check] = field(default_factory=list)
    challenger: Evaluation | None = None
    champion: Evaluation | None = None

    @property
    def failed(self) -> tuple[str, ...]:
        """Names of the checks that were not passed."""
        return tuple(check.name for check in self.checks if not check.passed)


def run_gate(
    challenger: str,
    champion: str | None,
    images: Sequence[LabelledImage],
    thresholds: Thresholds,
    *,
    seed: int = 0,
    forced: bool = False,
) -> GateReport:
    """Ask both models the same photos, each in a process of its own, with the code and weights of its artifact.

    Args:
        challenger: A model's URI.
        champion: Of the one it would replace; None for none.
        photos: Labelled.
        thresholds: What the challenger must reach.
        seed: Of the bootstrap.
        forced: Somebody has decided already: a challenger that needs pickle is measured all the same.

    Returns:
        What was seen. A challenger that can't be loaded, or can't answer, is refused and no error.

    Raises:
        InvalidData: The photos can't be used.
        RegistryError: There is no such model.
    """
    report = GateReport()
    with contextlib.ExitStack() as models:
        try:
            opened, needs_pickle = _open(models, challenger, unpickle=forced)
        except ModelFailed as failure:
            report.checks.append(Check("loads without pickle", str(failure), "", "yes", False))
            return report
        report.checks.append(Check("loads without pickle", "no" if needs_pickle else "yes", "", "yes", not needs_pickle))
        report.checks.append(_broken_pictures(opened.predict, images[0].read()))
        try:
            log(f"asking the challenger, {challenger}")
            report.challenger = evaluate(opened.predict, images, seed=seed, latency=False)
        except ModelFailed as failure:
            report.checks.append(Check("answers", str(failure), "", "an answer for every photo", False))
            return report
        report.checks.append(_at_least("accuracy", report.challenger, thresholds.min_accuracy))
        rival = _ask_champion(models, champion, images, report, seed) if champion else None
        if report.champion:
            report.checks += _compare(report.challenger, report.champion, thresholds)
        report.checks.append(_latency(opened, rival, images, thresholds))
    return report


def _open(models: contextlib.ExitStack, uri: str, *, unpickle: bool) -> tuple[SubprocessModel, bool]:
    try:
        return models.enter_context(subprocess_model(uri)), False
    except ModelFailed:
        if not unpickle:
            raise
    return models.enter_context(subprocess_model(uri, pickle=True)), True


def _ask_champion(
    models: contextlib.ExitStack, uri: str, images: Sequence[LabelledImage], report: GateReport, seed: int
) -> SubprocessModel | None:
    assert report.challenger is not None
    try:
        opened, _ = _open(models, uri, unpickle=True)
        log(f"asking the champion, {uri}")
        report.champion = evaluate(opened.predict, images, seed=seed, latency=False)
    except ModelFailed as failure:  # a champion that is broken must not keep its successor out
        report.checks.append(Check("champion answers", "", str(failure), "nothing: not compared", True))
        return None
    except InvalidData as failure:
        report.checks.append(Check("same classes", "", str(failure), "photos that the champion knows", False))
        return None
    mine, theirs = report.challenger.classes, report.champion.classes
    same = set(theirs) <= set(mine)
    report.checks.append(Check("same classes", ", ".join(mine), ", ".join(theirs), "all of the champion's", same))
    return opened


def _broken_pictures(predict: Predictor, good: bytes) -> Check:
    """A broken picture must be a row that says so, and must not take others with it."""
    broken = [b"", b"no picture", b"%PDF-1.7", good[: len(good) // 2], b"\x89PNG\r\n\x1a\n" + bytes(40), bytes(1000)]
    name, needed = "broken pictures", f"{len(broken)} of {len(broken)} named, the good one answered"
    try:
        alone = predict([good], False)[0]
        *answers, between = predict([*broken, good], False)
    except CatDogError as failure:
        return Check(name, str(failure), "", needed, False)
    named = sum(answer.label is None and bool(answer.error) for answer in answers)
    stands = between.label == alone.label is not None
    seen = f"{named} of {len(broken)} named, the good one {'answered' if stands else 'lost'}"
    return Check(name, seen, "", needed, named == len(broken) and stands)


def _at_least(name: str, evaluation: Evaluation, least: float) -> Check:
    value = evaluation.estimates[name].value
    return Check(name, f"{value:.4f}", "", f"≥ {least:.4f}", _holds(value, least, greater=True))


def _compare(challenger: Evaluation, champion: Evaluation, thresholds: Thresholds) -> list[Check]:
    p = mcnemar(challenger.correct, champion.correct)
    mine, theirs = (evaluation.estimates["accuracy"].value for evaluation in (challenger, champion))
    checks = [
        Check(
            "accuracy vs champion",
            f"{mine:.4f}",
            f"{theirs:.4f}",
            f"not worse beyond chance: p = {p:.4f} ≥ {thresholds.alpha:g}",
            _holds(p, thresholds.alpha, greater=True),
        )
    ]
    margins = {"log_loss": thresholds.log_loss_margin, "calibration_error": thresholds.calibration_margin}
    recalls = [name for name, estimate in challenger.estimates.items() if name.startswith("recall_") and estimate.n]
    margins |= dict.fromkeys(recalls, -thresholds.recall_margin)
    for name, margin in margins.items():
        mine, theirs = (evaluation.estimates[name].value for evaluation in (challenger, champion))
        limit, greater = theirs + margin, name in recalls
        sign = "≥" if greater else "≤"
        checks.append(
            Check(name, f"{mine:.4f}", f"{theirs:.4f}", f"{sign} {limit:.4f}", _holds(mine, limit, greater=greater))
        )
    return checks


def mcnemar(challenger: np.ndarray, champion: np.ndarray) -> float:
    """How likely equal models would leave the challenger as far behind as it is, or further.

    The exact one-sided test on the pictures that only one got right (McNemar 1947, Psychometrika 12:153).

    Args:
        challenger: (N,) bool, whether the answer was right.
        champion: (N,) bool, on the same pictures.

    Returns:
        p, 0..1; 1 where they never differ.
    """
    only_champion = int((champion & ~challenger).sum())
    only_one = only_champion + int((challenger & ~champion).sum())
    p: float = sum(math.comb(only_one, k) for k in range(only_champion, only_one + 1)) / 2**only_one
    return p


def _latency(
    challenger: SubprocessModel, champion: SubprocessModel | None, images: Sequence[LabelledImage], thresholds: Thresholds
) -> Check:
    log("timing lone pictures")
    pictures = [photo.read() for photo in images[:_LATENCY_CALLS]]
    models = [challenger, champion] if champion else [challenger]
    times: list[list[float]] = [[] for _ in models]
    for _ in range(_LATENCY_ROUNDS):
        for model, taken in zip(models, times, strict=True):
            model.predict(pictures[:1])  # it may have fallen asleep
            taken += [_time_ms(model, picture) for picture in pictures]
    mine, *theirs = (float(np.percentile(taken, 99)) for taken in times)
    limit = max([thresholds.latency_allowed_ms, *(value * thresholds.latency_ratio for value in theirs)])
    champions = f"{theirs[0]:.1f}" if theirs else ""
    return Check("p99 latency, ms", f"{mine:.1f}", champions, f"≤ {limit:.1f}", _holds(mine, limit, greater=False))


def _time_ms(model: SubprocessModel, picture: bytes) -> float:
    started = time.perf_counter()
    model.predict([picture])
    return 1000.0 * (time.perf_counter() - started)


def _holds(value: float, threshold: float, *, greater: bool) -> bool:
    """MLflow's own comparison; not-a-number never holds."""
    logging.getLogger(internals.VALIDATION_LOGGER).setLevel(logging.WARNING)  # two lines of log a comparison
    result = EvaluationResult(metrics={"value": value}, artifacts={})  # type: ignore[no-untyped-call]
    needed = MetricThreshold(threshold=threshold, greater_is_better=greater)  # type: ignore[no-untyped-call]
    try:
        mlflow.validate_evaluation_results({"value": needed}, result)
    except ModelValidationFailedException:
        return False
    return True


def checks_table(checks: Iterable[Check]) -> list[list[str]]:
    """The checks as rows of text under a head: check, challenger, champion, needed, verdict."""
    head = ["check", "challenger", "champion", "needed", "verdict"]
    return [head, *([c.name, c.challenger, c.champion, c.needed, OK if c.passed else FAILED] for c in checks)]
