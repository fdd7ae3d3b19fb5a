"""Which version holds which alias and stage, derived from the audit log alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from catdog_pyfunc.pipeline.registry.audit_log import ROLLED_BACK, Entry
from catdog_pyfunc.pipeline.registry.versions import ARCHIVED, PRODUCTION, STAGING

_STAGE_ALIASES = (PRODUCTION, STAGING)


@dataclass
class RegistryState:
    """Where the versions of a registered model stand according to its audit log.

    Attributes:
        aliases: Alias → version.
        stages: Version → "production", "staging" or "archived"; only versions that were ever in production or staging.
        alias_history: Alias → the versions a rollback can return to, oldest first; the last one is the current version.
    """

    aliases: dict[str, str] = field(default_factory=dict)
    stages: dict[str, str] = field(default_factory=dict)
    alias_history: dict[str, list[str]] = field(default_factory=dict)


def replay(entries: Iterable[Entry]) -> RegistryState:
    """Derive the state of the registry from its audit log.

    Args:
        entries: Oldest first.

    Returns:
        The state after the last entry.
    """
    state = RegistryState()
    for entry in entries:
        if not entry.moved:
            continue
        if entry.version:
            _point(state, entry)
        else:
            _remove(state, entry.alias)
    return state


def _remove(state: RegistryState, alias: str) -> None:
    removed = state.aliases.pop(alias, None)
    if removed and removed not in state.aliases.values():
        state.stages[removed] = ARCHIVED


def _point(state: RegistryState, entry: Entry) -> None:
    _extend_history(state.alias_history.setdefault(entry.alias, []), entry)
    displaced = state.aliases.get(entry.alias)
    state.aliases[entry.alias] = entry.version
    if entry.alias not in _STAGE_ALIASES:
        return
    if entry.alias == PRODUCTION and state.aliases.get(STAGING) == entry.version:
        del state.aliases[STAGING]  # a version is in one stage
    if state.aliases.get(ARCHIVED) == entry.version:
        del state.aliases[ARCHIVED]
    for version in (displaced, entry.version):
        if version:
            state.stages[version] = next((a for a in _STAGE_ALIASES if state.aliases.get(a) == version), ARCHIVED)
    if displaced and state.stages[displaced] == ARCHIVED:
        state.aliases[ARCHIVED] = displaced


def _extend_history(versions: list[str], entry: Entry) -> None:
    if entry.action == ROLLED_BACK and entry.version in versions:
        while versions[-1] != entry.version:
            versions.pop()
    elif versions[-1:] != [entry.version]:
        versions.append(entry.version)
