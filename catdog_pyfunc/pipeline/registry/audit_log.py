"""The audit trail of a registered model: who moved which alias, when, from where to where, why, with which figures.

MLflow keeps no history of aliases, and has no compare-and-swap to move one by. What it has, on every store, is a cell that
can be written once: a run's parameter. So the trail is the parameters `0001`, `0002`, … of one run. Writing a number is the
move itself: of two that want the same number one gets it, and the other is told. Aliases and tags only follow (`moves.py`).
"""

from __future__ import annotations

import contextlib
import json
import re
import time
import uuid
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone

import mlflow
from mlflow.exceptions import MlflowException

from catdog_pyfunc import internals
from catdog_pyfunc.errors import InvalidSetting, RegistryError, TrackingError
from catdog_pyfunc.pipeline.registry.versions import ARCHIVED, PRODUCTION, STAGING, author

PROMOTED, FORCED, REFUSED, ROLLED_BACK, FOUND = "promoted", "forced", "refused", "rolled back", "found"
AUDITED_METRICS = ("accuracy", "log_loss", "calibration_error")
"""What an entry keeps of an evaluation; `run_id` has the rest."""
_RUN_TAG = "catdog.journal"  # on the experiment: the run whose parameters are the trail
_LONGEST = 6000  # characters of a parameter in MLflow
_DONE = ".done"
_UNCLAIMED, _LEFT_FOR_S = ", unclaimed ", 600.0
_NOTE = "Who moved which alias, when, from where to where, why: one parameter of the run here a move. `-e history` shows it."


@dataclass(frozen=True)
class Entry:
    """One line of the trail.

    Attributes:
        action: "promoted", "forced", "refused", "rolled back", or "found": moved by other means, and noticed later.
        alias: That was to be moved, or was.
        version: That it was to point to; "" for none: somebody has removed the alias.
        previous: That it pointed to; None for none.
        reason: Given by who did it, or what was noticed.
        figures: Name → value, such as "accuracy" and "champion accuracy".
        data_digest: Of the photos that the figures are of.
        failed: Checks of the gate that were not passed.
        run_id: The MLflow run that has the whole table.
        at: UTC, ISO 8601.
        author: Who.
        id: Makes every line another one, so that nobody takes somebody else's for theirs.
    """

    action: str
    alias: str
    version: str
    previous: str | None = None
    reason: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    data_digest: str = ""
    failed: tuple[str, ...] = ()
    run_id: str = ""
    at: str = field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds"))
    author: str = field(default_factory=author)
    id: str = field(default_factory=lambda: uuid.uuid4().hex[:12])

    @property
    def moved(self) -> bool:
        """Whether the alias was moved."""
        return self.action != REFUSED


class SequenceConflict(Exception):  # what was asked is known by now: nothing is wrong
    """Somebody else has written this number."""


class AuditLog:
    """The trail of one registered model."""

    def __init__(self, name: str, run_id: str) -> None:
        """Of a model, in the parameters of a run: see `open_journal`."""
        self.name = name
        self._client = mlflow.MlflowClient()
        self._run_id = run_id

    def read(self) -> tuple[list[Entry], bool]:
        """What stands in the trail.

        Returns:
            The entries, oldest first, and whether all aliases and tags have followed the last of them.
        """
        params = self._client.get_run(self._run_id).data.params
        numbers = sorted(key for key in params if re.fullmatch(r"\d{4,}", key))
        entries = [_parsed(params[number]) for number in numbers]
        return entries, not numbers or numbers[-1] + _DONE in params

    def append(self, entry: Entry, place: int) -> None:
        """Write an entry.

        Args:
            entry: What.
            place: How many entries there are, as the writer knows.

        Raises:
            Taken: There are more by now; nothing was written.
            InvalidSetting: It is too long for a parameter.
        """
        text = json.dumps(asdict(entry), ensure_ascii=False)
        if len(text) > _LONGEST:
            raise InvalidSetting(f"the reason has {len(entry.reason)} characters; MLflow has no room for so many: be brief")
        try:
            self._client.log_param(self._run_id, f"{place + 1:04}", text)
        except MlflowException as refused:
            entries, _ = self.read()
            if len(entries) > place and entries[place] != entry:
                raise SequenceConflict from None
            if len(entries) <= place:
                raise RegistryError(f"the history of {self.name!r} can't be written ({refused.message})") from None

    def mark_done(self, count: int) -> None:
        """Note that aliases and tags have followed the first `count` entries."""
        if count:
            self._client.log_param(self._run_id, f"{count:04}{_DONE}", "yes")


def open_audit_log(name: str) -> AuditLog:
    """Find a registered model's trail, or begin it.

    Args:
        name: The registered model.

    Returns:
        The trail.

    Raises:
        RegistryError: Its experiment was deleted, or is somebody else's.
    """
    client = mlflow.MlflowClient()
    title = f"{name} history"
    experiment = client.get_experiment_by_name(title) or _begin(client, title)
    _sweep(client, title)
    if experiment.lifecycle_stage != "active":
        raise RegistryError(
            f"the experiment {title!r} was deleted, and with it who moved what: restore it by "
            f"mlflow experiments restore -x {experiment.experiment_id}"
        )
    if _RUN_TAG not in experiment.tags:
        raise RegistryError(f"the experiment {title!r} is no history of a model: rename it")
    return AuditLog(name, experiment.tags[_RUN_TAG])


def _begin(client: mlflow.MlflowClient, title: str) -> mlflow.entities.Experiment:
    """Make the experiment whole under a name of its own; giving it the right one is one step, and only one can."""
    experiment, failure = "", ""
    try:
        experiment = client.create_experiment(f"{title}{_UNCLAIMED}{uuid.uuid4().hex}")
        client.set_experiment_tag(experiment, internals.NOTE_TAG, _NOTE)
        run = client.create_run(experiment, run_name=title)
        client.update_run(run.info.run_id, status="FINISHED")
        client.set_experiment_tag(experiment, _RUN_TAG, run.info.run_id)
        client.rename_experiment(experiment, title)
    except MlflowException as lost:  # somebody else was faster
        failure = lost.message
        if experiment:
            with contextlib.suppress(MlflowException):
                client.delete_experiment(experiment)
    begun = client.get_experiment_by_name(title)
    if begun is None:
        raise TrackingError(f"the history {title!r} can't be begun in {mlflow.get_tracking_uri()} ({failure})")
    return begun


def _sweep(client: mlflow.MlflowClient, title: str) -> None:
    """Delete what a crash has left; not at once, as somebody may be about to claim it."""
    for left in client.search_experiments(filter_string=f"name LIKE '{title}{_UNCLAIMED}%'"):
        if time.time() - (left.creation_time or 0) / 1000 > _LEFT_FOR_S:
            with contextlib.suppress(MlflowException):
                client.delete_experiment(left.experiment_id)


def _parsed(text: str) -> Entry:
    fields = json.loads(text)
    return Entry(**{**fields, "failed": tuple(fields["failed"])})


@dataclass
class RegistryState:
    """Which version is where, as the trail says.

    Attributes:
        holders: Alias → version.
        stages: Version → "production", "staging" or "archived", of every version that was ever in one of them.
        stacks: Alias → versions, the present one last: what a roll-back takes from.
    """

    aliases_by_name: dict[str, str] = field(default_factory=dict)
    stages: dict[str, str] = field(default_factory=dict)
    alias_history: dict[str, list[str]] = field(default_factory=dict)


def replay(entries: Iterable[Entry]) -> RegistryState:
    """Go through the trail.

    Args:
        entries: Oldest first.

    Returns:
        Where that leads.
    """
    state = RegistryState()
    for entry in entries:
        if entry.moved:
            _follow(state, entry)
    return state


def _follow(state: RegistryState, entry: Entry) -> None:
    stack, aliases_by_name = state.alias_history.setdefault(entry.alias, []), state.aliases_by_name
    if not entry.version:
        removed = aliases_by_name.pop(entry.alias, None)
        if removed and removed not in aliases_by_name.values():
            state.stages[removed] = ARCHIVED
        return
    if entry.action == ROLLED_BACK and entry.version in stack:
        while stack[-1] != entry.version:
            stack.pop()
    elif stack[-1:] != [entry.version]:
        stack.append(entry.version)
    displaced = aliases_by_name.get(entry.alias)
    aliases_by_name[entry.alias] = entry.version
    if entry.alias not in (PRODUCTION, STAGING):
        return
    if aliases_by_name.get(PRODUCTION) == aliases_by_name.get(STAGING) == entry.version and entry.alias == PRODUCTION:
        del aliases_by_name[STAGING]  # a version is in one stage
    if aliases_by_name.get(ARCHIVED) == entry.version:
        del aliases_by_name[ARCHIVED]
    for version in (displaced, entry.version):
        if version:
            state.stages[version] = next((a for a in (PRODUCTION, STAGING) if aliases_by_name.get(a) == version), ARCHIVED)
    if displaced and state.stages[displaced] == ARCHIVED:
        aliases_by_name[ARCHIVED] = displaced
