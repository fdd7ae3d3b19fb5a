"""Renders the audit log: for the descriptions of registered models and versions, and for the CLI.

In a description, each line that this module writes ends with an HTML comment, which MLflow's UI does not show. Only such
lines are replaced by the next move: whatever else is in a description is a person's, and stays.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import mlflow

from catdog_pyfunc.pipeline.registry.audit_log import AUDITED_METRICS, Entry
from catdog_pyfunc.pipeline.registry.versions import MAX_DESCRIPTION, find_model, get_version

_MARK = " <!-- catdog -->"
_HISTORY_HEADING = "## History"
_MORE_HISTORY = "- … `mlflow run . -e history` prints all of it"
_MAX_LINE = 500  # characters


def update_version_page(client: mlflow.MlflowClient, name: str, version: str, stage: str, entries: Sequence[Entry]) -> None:
    """Write a version's stage to its tags and description: since when, by whom, why, and on which metrics.

    Args:
        client: A client of the registry.
        name: The registered model.
        version: The version's number; if the version was deleted, nothing happens.
        stage: "production", "staging" or "archived".
        entries: The audit log.
    """
    found = get_version(name, version)
    if not found:
        return
    moves = [entry for entry in entries if entry.moved and version in (entry.version, entry.previous)]
    evaluated = next((entry for entry in reversed(moves) if entry.metrics and entry.version == version), None)
    last = moves[-1]
    tags = {"stage": stage, "stage.since": last.at, "stage.by": last.author, "stage.reason": last.reason}
    for key, value in tags.items():
        if found.tags.get(key, "") != value:
            client.set_model_version_tag(name, version, key, value)
    marked = [_marked(line) for line in _stage_lines(version, stage, last, evaluated)]
    written = _unmarked(found.description)
    description = "\n".join([*marked, "", written]).strip()
    if len(description) > MAX_DESCRIPTION:
        description = written  # the tags say the same
    if description != (found.description or ""):
        client.update_model_version(name, version, description=description)


def update_model_page(client: mlflow.MlflowClient, name: str, entries: Sequence[Entry]) -> None:
    """Append the audit log, newest entry first, to a registered model's description.

    Args:
        client: A client of the registry.
        name: The registered model.
        entries: The audit log.
    """
    current = find_model(name).description or ""
    written = _unmarked(current)
    history = [_marked(_history_line(entry)) for entry in reversed(entries)]
    description = _with_history(written, history)
    while history and len(description) > MAX_DESCRIPTION:
        history.pop()
        description = _with_history(written, [*history, _marked(_MORE_HISTORY)])
    if len(description) > MAX_DESCRIPTION:
        description = written
    if entries and description != current:
        client.update_registered_model(name, description)


def _with_history(written: str, history: Sequence[str]) -> str:
    return "\n".join([written, "", _marked(_HISTORY_HEADING), "", *history]).strip()


def _marked(line: str) -> str:
    text = " ".join(line.split())
    return (text if len(text) <= _MAX_LINE else text[:_MAX_LINE] + "…") + _MARK


def _unmarked(description: str | None) -> str:
    """The lines of a description that are not ours."""
    return "\n".join(line for line in (description or "").splitlines() if not line.endswith(_MARK)).strip()


def _stage_lines(version: str, stage: str, last: Entry, evaluated: Entry | None) -> list[str]:
    what = f"{last.action} to {last.alias}" if last.version == version else f"replaced by version {last.version or 'none'}"
    lines = [f"**{stage}** · {what}, {_when(last)} UTC, by {last.author}" + (f": {last.reason}" if last.reason else "")]
    if evaluated:
        lines.append(f"{_metrics(evaluated)}; data `{evaluated.data_digest}`")
    return lines


def _history_line(entry: Entry) -> str:
    """One item of a Markdown list: MLflow's pages leave no room between the columns of a table."""
    to = entry.version or "none"
    move = f"version {to}" if entry.previous is None else f"version {entry.previous} → {to}"
    metrics, why = _metrics(entry, ("accuracy",)), _why(entry)
    line = f"- **{entry.alias}: {move}**, {entry.action} {_when(entry)} UTC by {entry.author}"
    return line + (f", {metrics}" if metrics else "") + (f": {why}" if why else "")


def audit_table(entries: Iterable[Entry]) -> list[list[str]]:
    """Render the audit log as a table.

    Args:
        entries: The audit log.

    Returns:
        Rows of cells for `console.text_table`: a head, then one row per entry.
    """
    head = ["when (UTC)", "who", "action", "alias", "from", "to", "metrics", "data", "why"]
    return [head, *(_row(entry) for entry in entries)]


def _row(entry: Entry) -> list[str]:
    cells = [_when(entry), entry.author, entry.action, entry.alias, entry.previous or "-", entry.version or "-"]
    cells += [_metrics(entry, ("accuracy",)), entry.data_digest, _why(entry)]
    return [" ".join(cell.split()) for cell in cells]


def _when(entry: Entry) -> str:
    return entry.at[:19].replace("T", " ")


def _why(entry: Entry) -> str:
    failed = f"failed: {', '.join(entry.failed)}" if entry.failed else ""
    where = f"deployment {entry.deployment}" if entry.deployment else ""
    return "; ".join(filter(None, [where, entry.reason, failed]))


def _metrics(entry: Entry, names: Iterable[str] = AUDITED_METRICS) -> str:
    """Such as "accuracy 0.9860 (champion 0.9840)"."""
    parts = []
    for name in (name for name in names if name in entry.metrics):
        champion = entry.metrics.get(f"champion_{name}")
        compared = "" if champion is None else f" (champion {champion:.4f})"
        parts.append(f"{name.replace('_', ' ')} {entry.metrics[name]:.4f}{compared}")
    return ", ".join(parts)
