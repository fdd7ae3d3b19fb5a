"""Commits a candidate, and recovers an update that was killed half-way."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd
from docker.errors import APIError

from mlflow_catdog.deployments import containers
from mlflow_catdog.deployments.errors import DeploymentExists
from mlflow_catdog.deployments.options import Options

if TYPE_CHECKING:
    from docker import DockerClient
    from docker.models.containers import Container

_MARGIN_S = 60.0  # on top of the time a candidate has for its smoke test


def commit(client: DockerClient, name: str, candidate: Container) -> None:
    """Replace the model that serves by a candidate that passed its smoke test; requests are answered meanwhile.

    If this is killed, it can be repeated: the restart policy marks a candidate that passed.
    """
    candidate.update(restart_policy=containers.RESTARTED)
    previous = containers.find(client, containers.model_name(name))
    if previous is not None and previous.id != candidate.id:
        containers.remove(previous)
    try:
        candidate.rename(containers.model_name(name))
    except APIError:
        candidate.reload()
        if candidate.name != containers.model_name(name):  # else another command has recovered it at the same moment
            raise


def serving(client: DockerClient, name: str) -> Container | None:
    """The newest container that passed its smoke test, or None."""
    candidate = containers.find(client, containers.candidate_name(name))
    return candidate if candidate and _has_passed(candidate) else containers.find(client, containers.model_name(name))


def recover(client: DockerClient, name: str) -> None:
    """Complete or undo what a killed update left.

    Raises:
        DeploymentExists: The update may still be running: its candidate has time left for the smoke test.
    """
    candidate = containers.find(client, containers.candidate_name(name))
    if candidate is None:
        return
    if _has_passed(candidate):
        commit(client, name, candidate)
        return
    age_s = (pd.Timestamp(client.info()["SystemTime"]) - pd.Timestamp(candidate.attrs["Created"])).total_seconds()
    options, _ = Options.from_json(candidate.labels[containers.OPTIONS])
    limit_s = options.ready_timeout_s + _MARGIN_S
    if age_s < limit_s:
        raise DeploymentExists(
            f"deployment {name!r} has been changing for {age_s:.0f} s: wait for that; after {limit_s:.0f} s it counts as "
            "killed and the next update goes ahead; `mlflow deployments delete` removes the deployment at once"
        )
    containers.remove(candidate)


def _has_passed(candidate: Container) -> bool:
    return bool(candidate.attrs["HostConfig"]["RestartPolicy"]["Name"] == containers.RESTARTED["Name"])
