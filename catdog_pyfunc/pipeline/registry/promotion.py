"""Promotion: evidence from the gate, verdict, move; each of them recorded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

import mlflow
from mlflow.entities.model_registry import ModelVersion

from catdog_pyfunc.errors import InvalidData, InvalidSetting, PromotionRefused
from catdog_pyfunc.pipeline import tracking
from catdog_pyfunc.pipeline.console import markdown_table
from catdog_pyfunc.pipeline.data import catalog
from catdog_pyfunc.pipeline.data.dataset import Dataset
from catdog_pyfunc.pipeline.data.mlflow_source import source_of
from catdog_pyfunc.pipeline.evaluation.evaluation import labelled_images
from catdog_pyfunc.pipeline.registry.audit_log import AUDITED_METRICS, FORCED, PROMOTED, REFUSED, Entry, open_audit_log
from catdog_pyfunc.pipeline.registry.checks import checks_table
from catdog_pyfunc.pipeline.registry.gate import GateReport, Thresholds, run_gate
from catdog_pyfunc.pipeline.registry.reconcile import commit, reconcile, record
from catdog_pyfunc.pipeline.registry.versions import NAME, PRODUCTION, check_alias, find_model, find_version

AUTO = "auto"
_MAX_FAILED = 20  # names of failed checks in the audit log


@dataclass(frozen=True)
class Promotion:
    """Which alias is to point to which version, and on what evidence.

    Attributes:
        version: Number of the version to promote.
        alias: Alias to move: production, staging, or a name of your own.
        name: Registered model.
        data: Images to decide on: a folder, sample, oxford-iiit-pet, or auto for those that the version was tested on.
        split: Split of the data to decide on.
        reason: Why, for the audit log; required by force.
        force: Move the alias even if checks fail.
        seed: Seed of the bootstrap intervals.
    """

    version: str
    alias: str = PRODUCTION
    name: str = NAME
    data: str = AUTO
    split: str = "test"
    reason: str = ""
    force: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        check_alias(self.alias)
        if self.force and not self.reason.strip():
            raise InvalidSetting("to force a promotion, give a reason: it stays in the audit log")


def promote(
    promotion: Promotion,
    thresholds: Thresholds | None = None,
    *,
    show: Callable[[list[list[str]]], None] = lambda rows: None,
) -> GateReport | None:
    """Point an alias to a version if that version passes the gate.

    Evidence and verdict are logged to the active MLflow run, or to a run of its own if none is active.

    Args:
        promotion: Which alias is to point to which version.
        thresholds: What the version must reach; None for the defaults.
        show: Called with the table of the checks as soon as there is a verdict.

    Returns:
        The gate's report; None if the alias points to the version already.

    Raises:
        RegistryError: There is no such model or version.
        InvalidData: The images are not available or cannot be used.
        PromotionRefused: The version did not pass: the alias was not moved, and the refusal is in the audit log.
        PromotionLost: Somebody else moved the alias meanwhile: it stays where they put it.

    Example:
        >>> report = promote(Promotion(version="2", reason="more images"))  # doctest: +SKIP
        >>> report.failed  # doctest: +SKIP
        ()
    """
    with tracking.active_or_new_run():
        return _promote(promotion, thresholds or Thresholds(), show)


def _promote(promotion: Promotion, thresholds: Thresholds, show: Callable[[list[list[str]]], None]) -> GateReport | None:
    name, alias = promotion.name, promotion.alias
    title = f"v{promotion.version} → {alias}"
    tracking.name_run(title)
    version = find_version(name, promotion.version)
    tracking.set_parent_run(version.run_id)
    audit_log = open_audit_log(name)
    seen = reconcile(audit_log)
    holder = find_model(name).aliases.get(alias)
    champion = None if holder is None else str(holder)
    if champion == str(version.version):
        return None
    dataset = _load_dataset(promotion, version)
    _log_inputs(promotion, thresholds, dataset, champion)
    report = run_gate(
        f"models:/{name}/{version.version}",
        f"models:/{name}/{champion}" if champion else None,
        labelled_images(dataset, promotion.split),
        thresholds,
        seed=promotion.seed,
        forced=promotion.force,
    )
    rows = checks_table(report.checks)
    show(rows)
    entry = _entry(promotion, str(version.version), champion, report, dataset.digest(promotion.split))
    tracking.name_run(title if entry.action == PROMOTED else f"{title}, {entry.action}")
    _log_verdict(report, entry.action, rows)
    if entry.action == REFUSED:
        record(audit_log, entry)
        raise _refused(name, entry)
    commit(audit_log, entry, seen)
    return report


def _entry(promotion: Promotion, version: str, champion: str | None, report: GateReport, digest: str) -> Entry:
    return Entry(
        PROMOTED if not report.failed else FORCED if promotion.force else REFUSED,
        promotion.alias,
        version,
        champion,
        promotion.reason,
        metrics=_audited_metrics(report),
        data_digest=digest,
        failed=report.failed[:_MAX_FAILED],
        run_id=tracking.active_run_id(),
    )


def _audited_metrics(report: GateReport) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for prefix, evaluation in (("", report.challenger), ("champion_", report.champion)):
        if evaluation:
            metrics |= {prefix + name: round(evaluation.estimates[name].value, 6) for name in AUDITED_METRICS}
    return metrics


def _refused(name: str, entry: Entry) -> PromotionRefused:
    still = f"models:/{name}@{entry.alias} is still version {entry.previous}"
    if entry.previous is None:
        still = f"{entry.alias!r} still points to no version"
    return PromotionRefused(
        f"version {entry.version} of {name} does not get {entry.alias!r}: {', '.join(entry.failed)}; {still}. "
        "To promote it all the same, force with a reason"
    )


def _load_dataset(promotion: Promotion, version: ModelVersion) -> Dataset:
    if promotion.data != AUTO:
        return catalog.load_dataset(promotion.data, promotion.split)
    source = source_of(mlflow.MlflowClient().get_run(version.run_id)) if version.run_id else None
    if not source:
        raise InvalidData(
            f"the run of version {version.version} does not name the images it was tested on: give data, a folder with one "
            "sub-folder per class"
        )
    try:
        return source.load()
    except InvalidData as failure:
        raise InvalidData(
            f"the images that version {version.version} was tested on are not available ({failure}): give data"
        ) from None


def _log_inputs(promotion: Promotion, thresholds: Thresholds, dataset: Dataset, champion: str | None) -> None:
    tracking.log_params({**asdict(promotion), **asdict(thresholds)})
    tracking.log_dataset(dataset, promotion.split)
    mlflow.set_tags(
        {
            "model.name": promotion.name,
            "model.version": promotion.version,
            "model.champion": champion or "none",
            "data.digest": dataset.digest(promotion.split),
        }
    )


def _log_verdict(report: GateReport, action: str, rows: list[list[str]]) -> None:
    mlflow.set_tag("verdict", action)
    mlflow.log_text(markdown_table(rows), "gate/checks.md")
    mlflow.log_dict({"checks": [asdict(check) for check in report.checks]}, "gate/checks.json")
    for prefix, evaluation in (("challenger", report.challenger), ("champion", report.champion)):
        if evaluation:
            mlflow.log_metrics(evaluation.metrics(prefix))
