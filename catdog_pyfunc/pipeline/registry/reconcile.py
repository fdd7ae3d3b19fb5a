"""Makes aliases, tags and descriptions follow the audit log, and finishes what a crash has cut off."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import mlflow
from mlflow.exceptions import MlflowException

from catdog_pyfunc import access
from catdog_pyfunc.errors import AccessDenied, PromotionLost, RegistryError, TrackingError
from catdog_pyfunc.pipeline import tracking
from catdog_pyfunc.pipeline.console import log
from catdog_pyfunc.pipeline.registry.audit_log import FOUND, ROLLED_BACK, AuditLog, Entry, SequenceConflict, open_audit_log
from catdog_pyfunc.pipeline.registry.descriptions import update_model_page, update_version_page
from catdog_pyfunc.pipeline.registry.state import RegistryState, replay
from catdog_pyfunc.pipeline.registry.versions import ARCHIVED, NAME, PRODUCTION, STAGING, find_model, get_version

_ATTEMPTS, _PAUSE_S = 6, 0.1
_GRACE_S = 0.5  # before a second look at an alias that differs from the audit log


def reconcile(audit_log: AuditLog) -> list[Entry]:
    """Make the registry match the audit log, and record aliases that were moved by other means.

    Args:
        audit_log: The audit log of a registered model.

    Returns:
        The entries, oldest first.

    Raises:
        TrackingError: The registry cannot be written.
    """
    entries, done = audit_log.read()
    failures = 0
    while not done:
        try:
            done = _apply(audit_log, entries)
        except MlflowException as failure:  # of two clients that set the same tag at once, MLflow's stores fail one
            access.check(failure)
            failures += 1
            if failures == _ATTEMPTS:
                raise TrackingError(
                    f"the aliases and tags of {audit_log.name!r} cannot be brought in line with its audit log "
                    f"({failure.message}): nothing is lost, the next command (such as `-e history`) tries again"
                ) from None
            time.sleep(_PAUSE_S * failures)
        if not done:  # or there is a newer entry, whose effects this may just have undone
            entries, _ = audit_log.read()
    found = _external_move(audit_log.name, replay(entries))
    if not found:
        return entries
    if _try_append(audit_log, found, entries):
        log(f"{found.alias} was moved from {found.previous} to {found.version or None} by other means: recorded")
    return reconcile(audit_log)


def commit(audit_log: AuditLog, entry: Entry, seen: Sequence[Entry]) -> None:
    """Write a move to the audit log, and let aliases and tags follow.

    Args:
        audit_log: The audit log of a registered model.
        entry: The move.
        seen: The entries on which the move was decided.

    Raises:
        PromotionLost: Somebody else has moved the alias or the version since then; this move was not made.
    """
    while True:
        entries = reconcile(audit_log)
        for newer in entries[len(seen) :]:
            if newer.moved and (newer.alias == entry.alias or newer.version == entry.version):
                raise PromotionLost(
                    f"meanwhile {newer.author} moved {newer.alias} to version {newer.version or None} at {newer.at}: "
                    f"{entry.alias} was not moved to version {entry.version}; see `-e history`, and try again"
                )
        if _try_append(audit_log, entry, entries):
            reconcile(audit_log)
            return


def record(audit_log: AuditLog, entry: Entry, needed: Callable[[Sequence[Entry]], bool] = lambda entries: True) -> None:
    """Write an entry that moves nothing, such as a refusal; this may be repeated if it fails.

    Args:
        audit_log: The audit log of a registered model.
        entry: The entry.
        needed: Whether the entry is to follow these, which others may have written meanwhile.

    Raises:
        TrackingError: The registry cannot be written.
    """
    while True:
        entries, _ = audit_log.read()
        if entry in entries or not needed(entries) or _try_append(audit_log, entry, entries):
            break
    reconcile(audit_log)


def roll_back(name: str = NAME, alias: str = PRODUCTION, reason: str = "") -> Entry:
    """Point an alias back to the version it pointed to before; the next rollback goes back one further.

    Args:
        name: The registered model.
        alias: The alias to move.
        reason: Why, for the audit log.

    Returns:
        The audit log's entry of the move.

    Raises:
        RegistryError: There is no such model, or no earlier version that still exists.
        PromotionLost: Somebody else moved the alias at the same moment.

    Example:
        >>> roll_back(reason="wrong on kittens").version  # doctest: +SKIP
        '1'
    """
    find_model(name)
    audit_log = open_audit_log(name)
    seen = reconcile(audit_log)
    state = replay(seen)
    *earlier, current = state.alias_history.get(alias, [""])
    target = next(filter(None, (get_version(name, version) for version in reversed(earlier))), None)
    if target is None:
        why = f"version {current} is the first in {alias!r} that still exists" if current else f"{alias!r} was never set"
        raise RegistryError(f"{name!r} has nothing to roll back to: {why}; nothing was changed")
    tracking.set_parent_run(target.run_id)
    previous = state.aliases.get(alias)
    entry = Entry(ROLLED_BACK, alias, str(target.version), previous, reason, run_id=tracking.active_run_id())
    commit(audit_log, entry, seen)
    return entry


def history(name: str = NAME) -> list[Entry]:
    """Read the audit log of a registered model, after finishing what a crash may have cut off.

    Args:
        name: The registered model.

    Returns:
        The entries, oldest first.

    Raises:
        RegistryError: There is no such model.

    Example:
        >>> [(entry.action, entry.version) for entry in history()]  # doctest: +SKIP
        [('promoted', '1'), ('refused', '2')]
    """
    find_model(name)
    audit_log = open_audit_log(name)
    try:
        return reconcile(audit_log)
    except AccessDenied:  # whoever may only read leaves to others what has to be written
        return audit_log.read()[0]


def _try_append(audit_log: AuditLog, entry: Entry, entries: Sequence[Entry]) -> bool:
    """Write the next entry; False if somebody else did."""
    try:
        audit_log.append(entry, len(entries))
    except SequenceConflict:
        return False
    return True


def _external_move(name: str, state: RegistryState) -> Entry | None:
    """First alias that was moved by other means, or None. Looks twice: another client's move may be in flight."""
    for look in (1, 2):
        aliases = _aliases(name)
        watched = {PRODUCTION, STAGING, *state.aliases} - {ARCHIVED}
        moved = [alias for alias in sorted(watched) if aliases.get(alias) != state.aliases.get(alias)]
        if not moved:
            return None
        if look == 1:
            time.sleep(_GRACE_S)
    alias, reason = moved[0], "moved by other means, noticed now"
    return Entry(FOUND, alias, aliases.get(alias, ""), state.aliases.get(alias), reason, author="unknown")


def _apply(audit_log: AuditLog, entries: Sequence[Entry]) -> bool:
    """Carry the entries over to the registry; False if there is a newer entry.

    Each step may be done twice, by two clients at once, or be cut off: the next command repeats it.
    """
    client, name, state = mlflow.MlflowClient(), audit_log.name, replay(entries)
    aliases = _aliases(name)
    for alias, version in state.aliases.items():
        if aliases.get(alias) != version and get_version(name, version):
            client.set_registered_model_alias(name, alias, version)
    for alias in {STAGING, ARCHIVED} - set(state.aliases):
        if aliases.get(alias) in state.aliases.values():  # its version has got another alias instead
            client.delete_registered_model_alias(name, alias)
    for version, stage in state.stages.items():
        update_version_page(client, name, version, stage, entries)
    update_model_page(client, name, entries)
    if len(audit_log.read()[0]) > len(entries):
        return False
    audit_log.mark_done(len(entries))
    return True


def _aliases(name: str) -> dict[str, str]:
    return {alias: str(version) for alias, version in find_model(name).aliases.items()}
