"""The gate: may a challenger take the champion's place? Both predict the same images, and every check must pass."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from catdog_pyfunc.classifier import Prediction
from catdog_pyfunc.errors import InvalidData, InvalidSetting, ModelFailed
from catdog_pyfunc.pipeline.console import log
from catdog_pyfunc.pipeline.evaluation.evaluation import Evaluation, LabelledImage, evaluate, measure
from catdog_pyfunc.pipeline.evaluation.predictors import Predictor
from catdog_pyfunc.pipeline.evaluation.stress import randomly_corrupted, read_batches
from catdog_pyfunc.pipeline.evaluation.subprocess_model import subprocess_model
from catdog_pyfunc.pipeline.registry import checks
from catdog_pyfunc.pipeline.registry.checks import Check


@dataclass(frozen=True)
class Thresholds:
    """What a challenger must reach.

    Attributes:
        min_accuracy: Lowest accuracy that passes, whatever the champion's is.
        alpha: Significance level of McNemar's test of the accuracy against the champion's; a lower p is refused.
        log_loss_margin: How far the log-loss may lie above the champion's, in nats.
        calibration_margin: How far the expected calibration error may lie above the champion's.
        recall_margin: How far the recall of each class may lie below the champion's.
        latency_ratio: How many times the champion's single-image latency passes.
        latency_allowed_ms: Single-image latency that always passes, in ms.
        stress: Whether McNemar's test must pass on corrupted images, too; takes as many more predictions.
    """

    min_accuracy: float = 0.8
    alpha: float = 0.05
    log_loss_margin: float = 0.05
    calibration_margin: float = 0.05
    recall_margin: float = 0.05
    latency_ratio: float = 1.5
    latency_allowed_ms: float = 50.0
    stress: bool = False

    def __post_init__(self) -> None:
        for name in ("min_accuracy", "alpha"):
            if not 0 <= getattr(self, name) <= 1:
                raise InvalidSetting(f"{name} is {getattr(self, name)}; give a fraction from 0 to 1")
        for name in ("log_loss_margin", "calibration_margin", "recall_margin", "latency_ratio", "latency_allowed_ms"):
            if not getattr(self, name) >= 0:  # so that NaN is refused, too
                raise InvalidSetting(f"{name} is {getattr(self, name)}; give 0 or more")


@dataclass
class GateReport:
    """What the gate found.

    Attributes:
        checks: In the order they were made.
        challenger: The challenger's evaluation; None if it failed.
        champion: The champion's evaluation, on the images of its own classes; None if it failed or there is no champion.
    """

    checks: list[Check] = field(default_factory=list)
    challenger: Evaluation | None = None
    champion: Evaluation | None = None

    @property
    def failed(self) -> tuple[str, ...]:
        """Names of the checks that failed."""
        return tuple(check.name for check in self.checks if not check.passed)


def run_gate(
    challenger_uri: str,
    champion_uri: str | None,
    images: Sequence[LabelledImage],
    thresholds: Thresholds,
    *,
    seed: int = 0,
    forced: bool = False,
) -> GateReport:
    """Compare two models on the same images, each in a process of its own and with the code of its own artifact.

    Whatever goes wrong in the challenger is a failed check; whatever goes wrong in the champion means that it is not
    compared, and must not keep its successor out.

    Args:
        challenger_uri: The model that is to be promoted.
        champion_uri: The model it would replace; None for none.
        images: Labelled images.
        thresholds: What the challenger must reach.
        seed: Seed of the bootstrap.
        forced: Evaluate a challenger that needs pickle all the same: somebody has decided to promote it.

    Returns:
        The report.

    Raises:
        InvalidData: There are no images, or the challenger does not know the class of some.
        RegistryError: There is no such model.
    """
    report = GateReport()
    with contextlib.ExitStack() as models:
        try:
            challenger, needs_pickle = _load(models, challenger_uri, unpickle=forced)
        except ModelFailed as failure:
            report.checks.append(Check("loads without pickle", str(failure), "", "yes", False))
            return report
        report.checks.append(Check("loads without pickle", "no" if needs_pickle else "yes", "", "yes", not needs_pickle))
        log(f"evaluating the challenger, {challenger_uri}")
        if not _judge_alone(report, challenger, images, thresholds, seed):
            return report
        champion = None
        if champion_uri:
            log(f"evaluating the champion, {champion_uri}")
            champion = _compare(report, models, champion_uri, images, thresholds, seed)
        if champion and thresholds.stress:
            log("evaluating both on corrupted images")
            report.checks.append(_compare_corrupted(report, challenger, champion, thresholds.alpha, seed))
        log("timing single-image calls")
        report.checks += checks.latency(
            challenger, champion, images, thresholds.latency_ratio, thresholds.latency_allowed_ms
        )
    return report


def comparison(challenger: Evaluation, champion: Evaluation, thresholds: Thresholds) -> list[Check]:
    """Check that predictions are not worse than the champion's, on the same images and classes."""
    recalls = [f"recall_{label}" for label in sorted(set(challenger.labels))]
    return [
        checks.accuracy_comparison(challenger, champion, thresholds.alpha),
        checks.no_higher("log_loss", challenger, champion, thresholds.log_loss_margin),
        checks.no_higher("calibration_error", challenger, champion, thresholds.calibration_margin),
        *(checks.no_lower(name, challenger, champion, thresholds.recall_margin) for name in recalls),
    ]


def _load(models: contextlib.ExitStack, uri: str, *, unpickle: bool) -> tuple[Predictor, bool]:
    """The model, and whether it needs pickle."""
    try:
        return models.enter_context(subprocess_model(uri)).predict, False
    except ModelFailed:
        if not unpickle:
            raise
    return models.enter_context(subprocess_model(uri, pickle=True)).predict, True


def _judge_alone(
    report: GateReport, challenger: Predictor, images: Sequence[LabelledImage], thresholds: Thresholds, seed: int
) -> bool:
    """Evaluate the challenger; False if it failed, so that there is nothing more to do."""
    try:
        report.challenger = evaluate(challenger, images, seed=seed, latency=False)
    except ModelFailed as failure:
        report.checks.append(Check("predictions", str(failure), "", "one for every image", False))
        return False
    readable = next((image for image, p in zip(images, report.challenger.predictions, strict=True) if p.label), images[0])
    report.checks.append(checks.corrupt_images(challenger, readable.read()))
    report.checks.append(checks.minimum_accuracy(report.challenger, thresholds.min_accuracy))
    return True


def _compare(
    report: GateReport,
    models: contextlib.ExitStack,
    uri: str,
    images: Sequence[LabelledImage],
    thresholds: Thresholds,
    seed: int,
) -> Predictor | None:
    """Evaluate the champion, and compare on the classes that it knows; None if there is no champion to compare with."""
    assert report.challenger is not None
    try:
        champion, _ = _load(models, uri, unpickle=True)
        report.champion = evaluate(champion, images, seed=seed, latency=False, skip_unknown=True)
    except ModelFailed as failure:
        report.checks.append(checks.not_compared(failure))
        return None
    except InvalidData as failure:
        report.checks.append(Check("same classes", "", str(failure), "images of the champion's classes", False))
        return None
    report.checks += checks.class_checks(report.challenger, report.champion)
    challenger = report.challenger.restricted_to(report.champion.classes)
    report.checks += comparison(challenger, report.champion, thresholds)
    return champion


def _compare_corrupted(report: GateReport, challenger: Predictor, champion: Predictor, alpha: float, seed: int) -> Check:
    """Compare once more on the champion's images, each corrupted in one way that its content draws: independent pairs."""
    assert report.challenger is not None
    assert report.champion is not None
    images, name = report.champion.images, "accuracy under corruptions vs champion"
    mine: list[Prediction] = []
    theirs: list[Prediction] = []
    for contents in read_batches(randomly_corrupted(images, seed)):
        try:
            mine += challenger(contents, False)
        except ModelFailed as failure:
            return Check(name, str(failure), "", "one prediction for every image", False)
        try:
            theirs += champion(contents, False)
        except ModelFailed as failure:
            return checks.not_compared(failure)
    evaluations = [measure(report.champion.classes, list(zip(images, found, strict=True)), seed) for found in (mine, theirs)]
    return replace(checks.accuracy_comparison(evaluations[0], evaluations[1], alpha), name=name)
