"""The audit log of a registered model: who moved which alias, when, from where to where, why, and on which metrics.

What became of a move in the deployments that follow the alias is in it, too.

MLflow keeps no history of aliases and offers no compare-and-swap to move one. What every MLflow store does offer is a value
that can be written only once: a run's parameter. So the audit log is the parameters `0001`, `0002`, … of one run. Writing
the next number *is* the move: of two writers that want the same number, one gets it and the other a `SequenceConflict`.
Aliases and tags only follow (`reconcile.py`).
"""

from __future__ import annotations

import contextlib
import json
import re
import time
import uuid
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone

import mlflow
from mlflow.exceptions import MlflowException

from catdog_pyfunc import access, internals
from catdog_pyfunc.errors import InvalidSetting, RegistryError, TrackingError
from catdog_pyfunc.pipeline.registry.versions import author

PROMOTED, FORCED, REFUSED, ROLLED_BACK, FOUND = "promoted", "forced", "refused", "rolled back", "found"
DEPLOYED, NOT_DEPLOYED = "deployed", "not deployed"
_MOVES = (PROMOTED, FORCED, ROLLED_BACK, FOUND)
AUDITED_METRICS = ("accuracy", "log_loss", "calibration_error")
"""The metrics that an entry keeps of an evaluation; the run has the rest."""
_RUN_TAG = "catdog.audit_log"  # on the experiment: the run whose parameters are the audit log
_MAX_ENTRY = 6000  # characters that MLflow allows in a parameter
_DONE = ".done"
_UNCLAIMED = "catdog audit log under construction "
_UNCLAIMED_TIMEOUT_S = 600.0
_NOTE = (
    "Audit log of a registered model: who moved which alias, when, from where to where, why. "
    "Each parameter of the run below is one entry; `mlflow run . -e history` prints them."
)


@dataclass(frozen=True)
class Entry:
    """One entry of the audit log.

    Attributes:
        action: "promoted", "forced", "refused", "rolled back", or "found": moved by other means and noticed later; or what a
            deployment that follows the alias did: "deployed" or "not deployed".
        alias: The alias that was moved, that the refused version asked for, or that the deployment follows.
        version: The version it was to point to; "" if the alias was removed.
        previous: The version it pointed to, or that was deployed, before; None for none.
        reason: As given by the author, or why the version cannot be deployed.
        metrics: Name → value, such as "accuracy" and "champion_accuracy".
        data_digest: Digest of the images that the metrics were measured on.
        failed: Names of the gate's checks that failed.
        run_id: The MLflow run that has the whole evidence.
        deployment: The deployment that follows the alias; "" for all other entries.
        at: UTC, ISO 8601.
        author: Name on the tracking server; login name where nobody signs in.
        id: Distinguishes entries that are otherwise equal, so that no writer takes another's entry for its own.
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
    deployment: str = ""
    at: str = field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds"))
    author: str = field(default_factory=author)
    id: str = field(default_factory=lambda: uuid.uuid4().hex[:12])

    @property
    def moved(self) -> bool:
        """Whether the alias was moved."""
        return self.action in _MOVES


class SequenceConflict(Exception):
    """Somebody else has written the next entry first; internal: `commit` and `record` resolve it."""


class AuditLog:
    """The audit log of one registered model."""

    def __init__(self, name: str, run_id: str) -> None:
        """Use `open_audit_log` instead.

        Args:
            name: The registered model.
            run_id: The run whose parameters are the entries.
        """
        self.name = name
        self._client = mlflow.MlflowClient()
        self._run_id = run_id

    def read(self) -> tuple[list[Entry], bool]:
        """Read the audit log.

        Returns:
            The entries, oldest first, and whether the registry's aliases and tags have followed the last of them.
        """
        params = self._client.get_run(self._run_id).data.params
        keys = sorted((key for key in params if re.fullmatch(r"\d{4,}", key)), key=int)
        return [_parse(params[key]) for key in keys], not keys or keys[-1] + _DONE in params

    def append(self, entry: Entry, position: int) -> None:
        """Write an entry.

        Args:
            entry: The entry.
            position: How many entries the audit log has, as far as the writer knows.

        Raises:
            SequenceConflict: It has more by now; nothing was written.
            InvalidSetting: The entry is too long for an MLflow parameter.
            RegistryError: The store refused the entry.
        """
        text = json.dumps(asdict(entry), ensure_ascii=False)
        if len(text) > _MAX_ENTRY:
            raise InvalidSetting(
                f"the reason is too long ({len(entry.reason)} characters): an entry of the audit log has {len(text)} "
                f"characters with it, and MLflow allows {_MAX_ENTRY}; shorten it"
            )
        try:
            self._client.log_param(self._run_id, f"{position + 1:04}", text)
        except MlflowException as failure:
            access.check(failure)
            entries, _ = self.read()
            if len(entries) <= position:
                raise RegistryError(f"the audit log of {self.name!r} cannot be written ({failure.message})") from None
            if entries[position] != entry:
                raise SequenceConflict from None

    def mark_done(self, count: int) -> None:
        """Record that aliases and tags have followed the first `count` entries."""
        if count:
            self._client.log_param(self._run_id, f"{count:04}{_DONE}", "yes")


def open_audit_log(name: str) -> AuditLog:
    """Open a registered model's audit log; create it if there is none.

    Args:
        name: The registered model.

    Returns:
        The audit log.

    Raises:
        RegistryError: Its experiment was deleted, or an experiment of somebody else's has its name.
        TrackingError: It cannot be created.
    """
    client = mlflow.MlflowClient()
    title = f"{name} history"
    experiment = client.get_experiment_by_name(title) or _create(client, title)
    _delete_unclaimed(client)
    if experiment.lifecycle_stage != "active":
        raise RegistryError(
            f"the experiment {title!r}, which is the audit log of {name!r}, was deleted: restore it by "
            f"mlflow experiments restore -x {experiment.experiment_id}"
        )
    if _RUN_TAG not in experiment.tags:
        raise RegistryError(f"the experiment {title!r} is not an audit log, but has the name of one: rename it")
    return AuditLog(name, experiment.tags[_RUN_TAG])


def _create(client: mlflow.MlflowClient, title: str) -> mlflow.entities.Experiment:
    """Complete the experiment under a temporary name; giving it its title is atomic, and only one writer can."""
    experiment_id, failure = "", ""
    try:
        experiment_id = client.create_experiment(_UNCLAIMED + uuid.uuid4().hex)
        client.set_experiment_tag(experiment_id, internals.NOTE_TAG, _NOTE)
        run = client.create_run(experiment_id, run_name=title)
        client.update_run(run.info.run_id, status="FINISHED")
        client.set_experiment_tag(experiment_id, _RUN_TAG, run.info.run_id)
        client.rename_experiment(experiment_id, title)
    except MlflowException as refused:  # somebody else was faster
        access.check(refused)
        failure = refused.message
        if experiment_id:
            with contextlib.suppress(MlflowException):
                client.delete_experiment(experiment_id)
    created = client.get_experiment_by_name(title)
    if created is None:
        raise TrackingError(f"the audit log {title!r} cannot be created in {mlflow.get_tracking_uri()} ({failure})")
    return created


def _delete_unclaimed(client: mlflow.MlflowClient) -> None:
    """Delete what crashed writers left behind; not at once, because another writer may be about to claim it."""
    for experiment in client.search_experiments(filter_string=f"name LIKE '{_UNCLAIMED}%'"):
        if time.time() - (experiment.creation_time or 0) / 1000 > _UNCLAIMED_TIMEOUT_S:
            with contextlib.suppress(MlflowException):
                client.delete_experiment(experiment.experiment_id)


def _parse(text: str) -> Entry:
    fields = json.loads(text)
    return Entry(**{**fields, "failed": tuple(fields["failed"])})
