"""What became of a deployment's replacements, in the audit log of its model: so that a failed one isn't tried again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from catdog_pyfunc.pipeline.registry.audit_log import DEPLOYED, NOT_DEPLOYED, Entry, open_audit_log
from catdog_pyfunc.pipeline.registry.reconcile import reconcile, record

_MAX_REASON = 300  # characters; the follower's log has all of them


@dataclass(frozen=True)
class Followed:
    """A deployment, and the alias that it follows."""

    deployment: str
    model: str
    alias: str

    def last_deployed(self, entries: Sequence[Entry]) -> str | None:
        """The version that was deployed last; None if none was."""
        done = (entry.version for entry in reversed(entries) if self._is_outcome(entry) and entry.action == DEPLOYED)
        return next(done, None)

    def has_failed(self, entries: Sequence[Entry], version: str) -> bool:
        """Whether that version could not be deployed, and the alias has not been moved since."""
        for entry in reversed(entries):
            if self._is_outcome(entry):
                return (entry.action, entry.version) == (NOT_DEPLOYED, version)
            if entry.moved and entry.alias == self.alias:
                return False
        return False

    def _is_outcome(self, entry: Entry) -> bool:
        return (entry.deployment, entry.alias) == (self.deployment, self.alias)


class Outcomes:
    """The outcomes of one deployment: in the audit log, and here until they can be written."""

    def __init__(self) -> None:
        """Nothing is known yet."""
        self._unwritten: list[Entry] = []
        self._deployed: tuple[Followed, str] | None = None

    def has_failed(self, followed: Followed, version: str) -> bool:
        """Whether that version could not be deployed, and the alias has not been moved since.

        Raises:
            CatDogError, MlflowException: The audit log cannot be read or written.
        """
        self._write(followed)
        return followed.has_failed(reconcile(open_audit_log(followed.model)), version)

    def deployed(self, followed: Followed, version: str) -> None:
        """Record that a version serves, once.

        Raises:
            CatDogError, MlflowException: The audit log cannot be written; the next call tries again.
        """
        self._write(followed)
        if self._deployed == (followed, version):
            return
        audit_log = open_audit_log(followed.model)
        before = followed.last_deployed(audit_log.read()[0])
        entry = Entry(DEPLOYED, followed.alias, version, before, deployment=followed.deployment)
        record(audit_log, entry, lambda entries: followed.last_deployed(entries) != version)
        self._deployed = (followed, version)

    def failed(self, followed: Followed, version: str, serving: str, reason: str) -> None:
        """Record that a version cannot be deployed.

        Args:
            followed: The deployment.
            version: The version.
            serving: The version that serves on.
            reason: Why; its first line is recorded.

        Raises:
            CatDogError, MlflowException: The audit log cannot be written; the next call tries again.
        """
        why = reason.splitlines()[0][:_MAX_REASON]
        self._unwritten.append(Entry(NOT_DEPLOYED, followed.alias, version, serving, why, deployment=followed.deployment))
        self._write(followed)

    def _write(self, followed: Followed) -> None:
        while self._unwritten:
            self._record_failure(followed, self._unwritten[0])
            self._unwritten.pop(0)

    def _record_failure(self, followed: Followed, entry: Entry) -> None:
        record(open_audit_log(followed.model), entry, lambda entries: not followed.has_failed(entries, entry.version))
