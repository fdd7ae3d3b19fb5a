"""Aliases, tags and descriptions follow the trail: moved, taken back, and finished where the last command was cut off."""

from __future__ import annotations

import time
from collections.abc import Iterable

import mlflow
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from catdog_pyfunc.errors import PromotionLost, RegistryError, TrackingError
from catdog_pyfunc.pipeline import tracking
from catdog_pyfunc.pipeline.journal import FOUND, ROLLED_BACK, Entry, Journal, Standing, Taken, open_journal, replay
from catdog_pyfunc.pipeline.progress import say
from catdog_pyfunc.pipeline.registry import ARCHIVED, PRODUCTION, STAGING, fitting

_ATTEMPTS, _PAUSE_S = 6, 0.1
_GRACE_S = 0.5  # between two looks at an alias that stands where the trail doesn't say
_HEADING = "## History"
_QUOTE = "> "  # how the lines of a description begin that are ours


def settle(journal: Journal) -> list[Entry]:
    """Make the registry what the trail says: finish a move that was cut off, note one that was made by other means.

    Args:
        journal: Of the registered model.

    Returns:
        The entries of the trail.

    Raises:
        TrackingError: The registry can't be written.
    """
    entries, done = journal.read()
    attempts = 0
    while not done:
        try:
            done = _follow(journal, entries)
        except MlflowException as failure:  # of two that set the same tag at once, MLflow's stores fail one
            attempts += 1
            if attempts == _ATTEMPTS:
                raise TrackingError(
                    f"aliases and tags of {journal.name!r} don't follow its history ({failure.message}): "
                    "nothing is lost, the next command goes on from there, such as `-e history`"
                ) from None
            time.sleep(_PAUSE_S * attempts)
        if not done:  # or somebody has moved on meanwhile, and this may just have undone it
            entries, _ = journal.read()
    found = _moved_by_others(journal.name, replay(entries))
    if not found:
        return entries
    try:
        journal.append(found, len(entries))
        say(f"{found.alias} of {journal.name} was moved from {found.previous} to {found.version} by other means: noted")
    except Taken:
        pass
    return settle(journal)


def move(journal: Journal, entry: Entry, seen: list[Entry]) -> None:
    """Write a move down, and let aliases and tags follow.

    Args:
        journal: Of the registered model.
        entry: The move.
        seen: The trail on which it was decided.

    Raises:
        PromotionLost: An alias was moved since then; this move was not made.
    """
    while True:
        entries = settle(journal)
        since = [other for other in entries[len(seen) :] if other.moved and _touches(other, entry)]
        if since:
            other = since[-1]
            raise PromotionLost(
                f"{other.author} moved {other.alias} to version {other.version} at {other.at}, meanwhile: "
                f"{entry.alias} was not moved to {entry.version}; look at `-e history`, and try again"
            )
        try:
            journal.append(entry, len(entries))
        except Taken:
            continue
        break
    settle(journal)


def _touches(other: Entry, entry: Entry) -> bool:
    return other.alias == entry.alias or other.version == entry.version


def note(journal: Journal, entry: Entry) -> None:
    """Write down what moves nothing, such as a refusal."""
    while True:
        entries, _ = journal.read()
        try:
            journal.append(entry, len(entries))
        except Taken:
            continue
        break
    settle(journal)


def roll_back(name: str, alias: str = PRODUCTION, reason: str = "") -> Entry:
    """Let an alias point to the version before.

    Args:
        name: The registered model.
        alias: Which.
        reason: Why, for the trail.

    Returns:
        The move.

    Raises:
        RegistryError: There is no version before, or none that still exists.
        PromotionLost: Somebody else moved the alias at the same moment.
    """
    _find_model(name)
    journal = open_journal(name)
    seen = settle(journal)
    standing = replay(seen)
    stack = standing.stacks.get(alias, [])
    there = {str(version.version): version for version in mlflow.MlflowClient().search_model_versions(f"name='{name}'")}
    before = [version for version in stack[:-1] if version in there]
    if not before:
        now = f"version {stack[-1]} is the first" if stack else "no version was ever"
        raise RegistryError(f"{name!r} has nothing to go back to: {now} in {alias!r}; nothing was changed")
    tracking.file_under(there[before[-1]].run_id)
    entry = Entry(ROLLED_BACK, alias, before[-1], standing.holders.get(alias), reason, run_id=tracking.active_run_id())
    move(journal, entry, seen)
    return entry


def _find_model(name: str) -> mlflow.entities.model_registry.RegisteredModel:
    try:
        return mlflow.MlflowClient().get_registered_model(name)
    except MlflowException:
        raise RegistryError(f"there is no model {name!r} in {mlflow.get_tracking_uri()}: train or register first") from None


def _moved_by_others(name: str, standing: Standing) -> Entry | None:
    """What alias doesn't stand where the trail says; looked at twice, as a move of ours may be on its way."""
    for last in (False, True):
        aliases = {alias: str(version) for alias, version in _find_model(name).aliases.items()}
        watched = {PRODUCTION, STAGING, *standing.holders} - {ARCHIVED}
        moved = [alias for alias in sorted(watched) if alias in aliases and aliases[alias] != standing.holders.get(alias)]
        if not moved:
            return None
        if last:
            was = standing.holders.get(moved[0])
            return Entry(FOUND, moved[0], aliases[moved[0]], was, "moved by other means, noticed now", author="unknown")
        time.sleep(_GRACE_S)
    return None


def _follow(journal: Journal, entries: list[Entry]) -> bool:
    """Every step may be done twice, or by two at once, or be cut off: the next command does them again."""
    client, standing = mlflow.MlflowClient(), replay(entries)
    aliases = {alias: str(version) for alias, version in _find_model(journal.name).aliases.items()}
    for alias, version in standing.holders.items():
        if aliases.get(alias) != version and _version(client, journal.name, version):
            client.set_registered_model_alias(journal.name, alias, version)
    for alias in {STAGING, ARCHIVED} - set(standing.holders):
        if aliases.get(alias) in standing.holders.values():  # it has gone on from there
            client.delete_registered_model_alias(journal.name, alias)
    for version, stage in standing.stages.items():
        _label(client, journal.name, version, stage, entries)
    _show(client, journal.name, entries)
    if len(journal.read()[0]) > len(entries):
        return False
    journal.mark_done(len(entries))
    return True


def _version(client: mlflow.MlflowClient, name: str, version: str) -> ModelVersion | None:
    try:
        return client.get_model_version(name, version)
    except MlflowException:  # deleted since then
        return None


def _label(client: mlflow.MlflowClient, name: str, version: str, stage: str, entries: list[Entry]) -> None:
    """Say on the version's page where it is, since when, by whom and why, and what was measured then."""
    found = _version(client, name, version)
    if not found:
        return
    moves = [entry for entry in entries if entry.moved and version in (entry.version, entry.previous)]
    measured = next((entry for entry in reversed(moves) if entry.figures and entry.version == version), None)
    wanted = {"stage": stage, "moved.by": moves[-1].author, "moved.at": moves[-1].at, "moved.why": moves[-1].reason}
    if measured:
        wanted |= {"gate.data.digest": measured.data_digest, "gate.run": measured.run_id}
        wanted |= {f"gate.{key.replace(' ', '_')}": f"{value:.4f}" for key, value in measured.figures.items()}
    for key, value in wanted.items():
        if found.tags.get(key, "") != value:
            client.set_model_version_tag(name, version, key, value)
    rest = [line for line in (found.description or "").splitlines() if not line.startswith(_QUOTE)]
    ours = [_QUOTE + " ".join(line.split()) for line in _lines(version, stage, moves[-1], measured)]
    description = fitting("\n".join([*ours, "", "\n".join(rest).strip()]))
    if description != found.description:
        client.update_model_version(name, version, description=description)


def _show(client: mlflow.MlflowClient, name: str, entries: list[Entry]) -> None:
    """The trail on the model's page, the newest first, below what somebody has written there."""
    description = _find_model(name).description or ""
    said = description.split(_HEADING)[0].rstrip()
    wanted = fitting(f"{said}\n\n{_HEADING}\n\n{_table(entries)}".strip(), "`-e history` has the rest")
    if entries and wanted != description:
        client.update_registered_model(name, wanted)


def _lines(version: str, stage: str, last: Entry, measured: Entry | None) -> list[str]:
    what = f"{last.action} to {last.alias}" if last.version == version else f"replaced by version {last.version}"
    lines = [f"**{stage}** · {what} at {last.at} by {last.author}" + (f": {last.reason}" if last.reason else "")]
    if measured:
        figures = ", ".join(f"{key} {value:.4f}" for key, value in measured.figures.items())
        lines += ["", f"{figures}; photos `{measured.data_digest}`"]
    return lines


def history(name: str) -> list[Entry]:
    """The trail of a registered model, oldest first; what was cut off is finished before.

    Args:
        name: The registered model.

    Returns:
        The entries.

    Raises:
        RegistryError: No such model.
    """
    _find_model(name)
    return settle(open_journal(name))


def rows(entries: Iterable[Entry]) -> list[list[str]]:
    """The trail as rows of text under a head: when, who, what, alias, from, to, figures, photos, why."""
    head = ["when (UTC)", "who", "what", "alias", "from", "to", "figures", "photos", "why"]
    return [head, *(_row(entry) for entry in entries)]


def _row(entry: Entry) -> list[str]:
    figures = ""
    if "accuracy" in entry.figures:
        figures = f"accuracy {entry.figures['accuracy']:.4f}"
        if "champion accuracy" in entry.figures:
            figures += f", champion {entry.figures['champion accuracy']:.4f}"
    why = "; ".join(filter(None, [entry.reason, f"failed: {', '.join(entry.failed)}" if entry.failed else ""]))
    when = entry.at[:19].replace("T", " ")
    cells = [when, entry.author, entry.action, entry.alias, entry.previous or "-", entry.version, figures]
    return [" ".join(cell.split()) for cell in [*cells, entry.data_digest, why]]


def _table(entries: Iterable[Entry]) -> str:
    head, *lines = ([cell.replace("|", "\\|") for cell in row] for row in rows(entries))
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *reversed(lines)])
