"""Aliases, tags and descriptions follow the trail: moved, taken back, and finished where the last command was cut off."""

from __future__ import annotations

import time

import mlflow
from mlflow.exceptions import MlflowException

from catdog_pyfunc.errors import PromotionLost, RegistryError, TrackingError
from catdog_pyfunc.pipeline import tracking
from catdog_pyfunc.pipeline.console import log
from catdog_pyfunc.pipeline.registry.audit_log import (
    FOUND,
    ROLLED_BACK,
    AuditLog,
    Entry,
    RegistryState,
    SequenceConflict,
    open_audit_log,
    replay,
)
from catdog_pyfunc.pipeline.registry.descriptions import show_history, show_version
from catdog_pyfunc.pipeline.registry.versions import ARCHIVED, PRODUCTION, STAGING, find_model, version_if_there

_ATTEMPTS, _PAUSE_S = 6, 0.1
_GRACE_S = 0.5  # between two looks at an alias that stands where the trail doesn't say


def reconcile(audit_log: AuditLog) -> list[Entry]:
    """Make the registry what the trail says: finish a move that was cut off, note one that was made by other means.

    Args:
        journal: Of the registered model.

    Returns:
        The entries of the trail.

    Raises:
        TrackingError: The registry can't be written.
    """
    entries, done = audit_log.read()
    attempts = 0
    while not done:
        try:
            done = _follow(audit_log, entries)
        except MlflowException as failure:  # of two that set the same tag at once, MLflow's stores fail one
            attempts += 1
            if attempts == _ATTEMPTS:
                raise TrackingError(
                    f"aliases and tags of {audit_log.name!r} don't follow its history ({failure.message}): "
                    "nothing is lost, the next command goes on from there, such as `-e history`"
                ) from None
            time.sleep(_PAUSE_S * attempts)
        if not done:  # or somebody has moved on meanwhile, and this may just have undone it
            entries, _ = audit_log.read()
    found = _moved_by_others(audit_log.name, replay(entries))
    if not found:
        return entries
    if _wrote(audit_log, found, entries):
        log(f"{found.alias} was moved from {found.previous} to {found.version or None} by other means: noted")
    return reconcile(audit_log)


def _wrote(audit_log: AuditLog, entry: Entry, entries: list[Entry]) -> bool:
    """Write the next entry; False if somebody else did."""
    try:
        audit_log.append(entry, len(entries))
    except SequenceConflict:
        return False
    return True


def commit(audit_log: AuditLog, entry: Entry, seen: list[Entry]) -> None:
    """Write a move down, and let aliases and tags follow.

    Args:
        journal: Of the registered model.
        entry: The move.
        seen: The trail on which it was decided.

    Raises:
        PromotionLost: An alias was moved since then; this move was not made.
    """
    while True:
        entries = reconcile(audit_log)
        since = [other for other in entries[len(seen) :] if other.moved and _touches(other, entry)]
        if since:
            other = since[-1]
            raise PromotionLost(
                f"{other.author} moved {other.alias} to version {other.version} at {other.at}, meanwhile: "
                f"{entry.alias} was not moved to {entry.version}; look at `-e history`, and try again"
            )
        if _wrote(audit_log, entry, entries):
            break
    reconcile(audit_log)


def _touches(other: Entry, entry: Entry) -> bool:
    return other.alias == entry.alias or other.version == entry.version


def record(audit_log: AuditLog, entry: Entry) -> None:
    """Write down what moves nothing, such as a refusal."""
    while not _wrote(audit_log, entry, audit_log.read()[0]):
        pass
    reconcile(audit_log)


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
    find_model(name)
    audit_log = open_audit_log(name)
    seen = reconcile(audit_log)
    state = replay(seen)
    stack = state.alias_history.get(alias, [])
    there = {str(version.version): version for version in mlflow.MlflowClient().search_model_versions(f"name='{name}'")}
    before = [version for version in stack[:-1] if version in there]
    if not before:
        now = f"version {stack[-1]} is the first" if stack else "no version was ever"
        raise RegistryError(f"{name!r} has nothing to go back to: {now} in {alias!r}; nothing was changed")
    tracking.set_parent_run(there[before[-1]].run_id)
    entry = Entry(ROLLED_BACK, alias, before[-1], state.aliases_by_name.get(alias), reason, run_id=tracking.active_run_id())
    commit(audit_log, entry, seen)
    return entry


def _moved_by_others(name: str, state: RegistryState) -> Entry | None:
    """What alias doesn't stand where the trail says; looked at twice, as a move of ours may be on its way."""
    for last in (False, True):
        aliases = {alias: str(version) for alias, version in find_model(name).aliases.items()}
        watched = {PRODUCTION, STAGING, *state.aliases_by_name} - {ARCHIVED}
        moved = [alias for alias in sorted(watched) if aliases.get(alias) != state.aliases_by_name.get(alias)]
        if not moved:
            return None
        if last:
            was = state.aliases_by_name.get(moved[0])
            return Entry(
                FOUND, moved[0], aliases.get(moved[0], ""), was, "moved by other means, noticed now", author="unknown"
            )
        time.sleep(_GRACE_S)
    return None


def _follow(audit_log: AuditLog, entries: list[Entry]) -> bool:
    """Every step may be done twice, or by two at once, or be cut off: the next command does them again."""
    client, state = mlflow.MlflowClient(), replay(entries)
    aliases = {alias: str(version) for alias, version in find_model(audit_log.name).aliases.items()}
    for alias, version in state.aliases_by_name.items():
        if aliases.get(alias) != version and version_if_there(client, audit_log.name, version):
            client.set_registered_model_alias(audit_log.name, alias, version)
    for alias in {STAGING, ARCHIVED} - set(state.aliases_by_name):
        if aliases.get(alias) in state.aliases_by_name.values():  # it has gone on from there
            client.delete_registered_model_alias(audit_log.name, alias)
    for version, stage in state.stages.items():
        show_version(client, audit_log.name, version, stage, entries)
    show_history(client, audit_log.name, entries)
    if len(audit_log.read()[0]) > len(entries):
        return False
    audit_log.mark_done(len(entries))
    return True


def history(name: str) -> list[Entry]:
    """The trail of a registered model, oldest first; what was cut off is finished before.

    Args:
        name: The registered model.

    Returns:
        The entries.

    Raises:
        RegistryError: No such model.
    """
    find_model(name)
    return reconcile(open_audit_log(name))
