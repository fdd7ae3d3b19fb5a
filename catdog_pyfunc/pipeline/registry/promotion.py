"""Promotion: evidence, verdict, move; each written down."""

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
from catdog_pyfunc.pipeline.registry import reconcile
from catdog_pyfunc.pipeline.registry.audit_log import AUDITED_METRICS, FORCED, PROMOTED, REFUSED, Entry, open_audit_log
from catdog_pyfunc.pipeline.registry.gate import GateReport, Thresholds, checks_table, run_gate
from catdog_pyfunc.pipeline.registry.versions import NAME, PRODUCTION, check_alias, find_version

AUTO = "auto"
_MOST_FAILED = 20  # named in the trail


@dataclass(frozen=True)
class Promotion:
    """What is to be moved, and on what evidence.

    Attributes:
        version: The version's number.
        alias: "production", "staging" or a name of your own.
        name: The registered model.
        data: Photos to decide on: a folder, "sample", "oxford-iiit-pet", or "auto": those that the challenger was tested on.
        split: "train", "val", "test" or "all".
        reason: Why, for the trail; needed to force.
        force: Whether to move the alias whatever the checks say.
        seed: Of the bootstrap.
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
            raise InvalidSetting("to force a promotion, say why: give a reason, which stays in the history")


def promote(
    promotion: Promotion, thresholds: Thresholds, show: Callable[[list[list[str]]], None] = lambda rows: None
) -> GateReport | None:
    """Let an alias point to another version, if that one passes the gate; in the active run (see `tracking.run`).

    Args:
        promotion: What is asked for.
        thresholds: What the version must reach.
        show: Gets the table of the checks, as soon as there is a verdict.

    Returns:
        What the gate saw; None if the alias points there already.

    Raises:
        RegistryError: No such model or version.
        InvalidData: The photos can't be had or used.
        PromotionRefused: It didn't pass: the alias stays, the refusal is in the trail.
        PromotionLost: Somebody else moved the alias meanwhile: it stays where they put it.
    """
    name, alias = promotion.name, promotion.alias
    title = f"v{promotion.version} → {alias}"
    tracking.name_run(title)
    version = find_version(name, promotion.version)
    tracking.set_parent_run(version.run_id)
    audit_log = open_audit_log(name)
    seen = reconcile.reconcile(audit_log)
    aliases = mlflow.MlflowClient().get_registered_model(name).aliases
    if str(aliases.get(alias)) == str(version.version):
        return None
    champion = str(aliases[alias]) if alias in aliases else None
    dataset = _open_data(promotion, version)
    digest = _log_question(promotion, thresholds, dataset, champion)
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
    entry = _entry(promotion, str(version.version), report, champion, digest)
    tracking.name_run(title if entry.action == PROMOTED else f"{title}, {entry.action}")
    _log_answer(report, entry.action, rows)
    if entry.action == REFUSED:
        reconcile.record(audit_log, entry)
        raise _refused(name, entry)
    reconcile.commit(audit_log, entry, seen)
    return report


def _entry(promotion: Promotion, version: str, report: GateReport, champion: str | None, digest: str) -> Entry:
    return Entry(
        PROMOTED if not report.failed else FORCED if promotion.force else REFUSED,
        promotion.alias,
        version,
        champion,
        promotion.reason,
        metrics=_figures(report),
        data_digest=digest,
        failed=report.failed[:_MOST_FAILED],
        run_id=tracking.active_run_id(),
    )


def _refused(name: str, entry: Entry) -> PromotionRefused:
    still = f"models:/{name}@{entry.alias} is still version {entry.previous}"
    if entry.previous is None:
        still = f"{entry.alias!r} still points to nothing"
    return PromotionRefused(
        f"version {entry.version} of {name} doesn't get {entry.alias!r}: {', '.join(entry.failed)}; {still}. "
        "If it must: force with a reason"
    )


def _open_data(promotion: Promotion, version: ModelVersion) -> Dataset:
    if promotion.data != AUTO:
        return catalog.load_dataset(promotion.data, promotion.split)
    run = mlflow.MlflowClient().get_run(version.run_id) if version.run_id else None
    source = source_of(run) if run else None
    if not source:
        raise InvalidData(
            f"version {version.version} doesn't say what photos it was tested on: give data, a folder of class folders"
        )
    try:
        return source.load()
    except InvalidData as gone:
        raise InvalidData(
            f"the photos that version {version.version} was tested on can't be had ({gone}): give data"
        ) from None


def _log_question(promotion: Promotion, thresholds: Thresholds, dataset: Dataset, champion: str | None) -> str:
    tracking.log_params({**asdict(promotion), **asdict(thresholds)})
    tracking.log_dataset(dataset, promotion.split)
    digest = dataset.digest(promotion.split)
    mlflow.set_tags(
        {
            "model.name": promotion.name,
            "model.version": promotion.version,
            "model.champion": champion or "none",
            "data.digest": digest,
        }
    )
    return digest


def _log_answer(report: GateReport, action: str, rows: list[list[str]]) -> None:
    mlflow.set_tag("verdict", action)
    mlflow.log_text(markdown_table(rows), "gate/checks.md")
    mlflow.log_dict({"checks": [asdict(check) for check in report.checks]}, "gate/checks.json")
    for split, evaluation in (("challenger", report.challenger), ("champion", report.champion)):
        if evaluation:
            mlflow.log_metrics(evaluation.metrics(split))


def _figures(report: GateReport) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for before, evaluation in (("", report.challenger), ("champion ", report.champion)):
        if evaluation:
            metrics |= {before + name: round(evaluation.estimates[name].value, 6) for name in AUDITED_METRICS}
    return metrics
