"""What the pages of a registered model and its versions say of the trail, and what a terminal does."""

from __future__ import annotations

from collections.abc import Iterable

import mlflow

from catdog_pyfunc.pipeline.registry.audit_log import AUDITED_METRICS, Entry
from catdog_pyfunc.pipeline.registry.versions import find_model, fitting, version_if_there

_HEADING = "## History"
_QUOTE = "> "  # how the lines of a description begin that are ours


def show_version(client: mlflow.MlflowClient, name: str, version: str, stage: str, entries: list[Entry]) -> None:
    """Say on a version's page where it is, since when, by whom and why, and what was measured then.

    Args:
        client: Of the registry.
        name: The registered model.
        version: Of it; one that was deleted has no page, and nothing happens.
        stage: "production", "staging" or "archived".
        entries: The trail.
    """
    found = version_if_there(client, name, version)
    if not found:
        return
    moves = [entry for entry in entries if entry.moved and version in (entry.version, entry.previous)]
    measured = next((entry for entry in reversed(moves) if entry.metrics and entry.version == version), None)
    wanted = {"stage": stage, "moved.by": moves[-1].author, "moved.at": moves[-1].at, "moved.why": moves[-1].reason}
    for key, value in wanted.items():
        if found.tags.get(key, "") != value:
            client.set_model_version_tag(name, version, key, value)
    rest = [line for line in (found.description or "").splitlines() if not line.startswith(_QUOTE)]
    ours = [_QUOTE + " ".join(line.split()) for line in _lines(version, stage, moves[-1], measured)]
    description = fitting("\n".join([*ours, "", "\n".join(rest).strip()]))
    if description != found.description:
        client.update_model_version(name, version, description=description)


def show_history(client: mlflow.MlflowClient, name: str, entries: list[Entry]) -> None:
    """Put the trail on the model's page, the newest first, below what somebody has written there.

    Args:
        client: Of the registry.
        name: The registered model.
        entries: The trail.
    """
    description = find_model(name).description or ""
    said = description.split(_HEADING)[0].rstrip()
    history = "\n".join(_told(entry) for entry in reversed(entries))
    wanted = fitting(f"{said}\n\n{_HEADING}\n\n{history}".strip(), "`-e history` has the rest")
    if entries and wanted != description:
        client.update_registered_model(name, wanted)


def _lines(version: str, stage: str, last: Entry, measured: Entry | None) -> list[str]:
    what = f"{last.action} to {last.alias}" if last.version == version else f"replaced by version {last.version or 'none'}"
    lines = [f"**{stage}** · {what}, {_when(last)} UTC, by {last.author}" + (f": {last.reason}" if last.reason else "")]
    if measured:
        lines += ["", f"{_figures(measured)}; photos `{measured.data_digest}`"]
    return lines


def audit_table(entries: Iterable[Entry]) -> list[list[str]]:
    """The trail as rows of text under a head: when, who, what, alias, from, to, figures, photos, why."""
    head = ["when (UTC)", "who", "what", "alias", "from", "to", "figures", "photos", "why"]
    return [head, *(_row(entry) for entry in entries)]


def _row(entry: Entry) -> list[str]:
    cells = [_when(entry), entry.author, entry.action, entry.alias, entry.previous or "-", entry.version or "-"]
    cells += [_figures(entry, ("accuracy",)), entry.data_digest, _why(entry)]
    return [" ".join(cell.split()) for cell in cells]


def _when(entry: Entry) -> str:
    return entry.at[:19].replace("T", " ")


def _why(entry: Entry) -> str:
    return "; ".join(filter(None, [entry.reason, f"failed: {', '.join(entry.failed)}" if entry.failed else ""]))


def _figures(entry: Entry, names: Iterable[str] = AUDITED_METRICS) -> str:
    """Such as "accuracy 0.9860 (champion 0.9840)"."""
    told = []
    for name in (name for name in names if name in entry.metrics):
        champion = entry.metrics.get(f"champion {name}")
        beside = "" if champion is None else f" (champion {champion:.4f})"
        told.append(f"{name.replace('_', ' ')} {entry.metrics[name]:.4f}{beside}")
    return ", ".join(told)


def _told(entry: Entry) -> str:
    """An entry as a line of a Markdown list: MLflow's pages leave no room between a table's columns."""
    to = entry.version or "none"
    where = f"version {to}" if entry.previous is None else f"version {entry.previous} → {to}"
    told = f"- **{entry.alias}: {where}**, {entry.action} {_when(entry)} UTC by {entry.author}"
    told += "".join(f", {part}" for part in [_figures(entry, ("accuracy",))] if part)
    return " ".join((told + "".join(f": {part}" for part in [_why(entry)] if part)).split())
