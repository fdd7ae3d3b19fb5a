"""The containers of a deployment: the door, the model, and a model that has yet to show that it answers.

Names and labels on the engine are the only state. A name can be taken once, so it is also the lock: of two that create or
update the same deployment at once, the engine lets one go on.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pandas as pd
import requests
from docker.errors import APIError, NotFound

from mlflow_catdog.deployments.errors import DeploymentError, DeploymentExists
from mlflow_catdog.deployments.options import Options
from mlflow_catdog.runtime import PORT
from mlflow_catdog.runtime.healthcheck import WRONG_ANSWER

if TYPE_CHECKING:
    from docker import DockerClient
    from docker.models.containers import Container

DEPLOYMENT, ROLE, OPTIONS, MODEL_URI, MODEL = (
    f"catdog.{name}" for name in ("deployment", "role", "options", "model_uri", "model")
)
_DOOR = Path(__file__).parents[1] / "runtime" / "listener.py"
_MEETING, _SOCKET = "/run/door", "/run/door/socket"
_LOG_LINES = 30
_MARGIN_S = 60.0
_NOBODY = "10001:10001"
_LOCKED: Mapping[str, Any] = {
    "user": _NOBODY,
    "read_only": True,
    "cap_drop": ["ALL"],
    "security_opt": ["no-new-privileges"],
    "pids_limit": 1024,
}
_RESTARTED: Any = {"Name": "unless-stopped"}  # docker's type hints know only two of the four


def door_name(name: str) -> str:
    """Of the container that holds the port."""
    return f"catdog-{name}.door"


def model_name(name: str) -> str:
    """Of the container that answers."""
    return f"catdog-{name}"


def candidate_name(name: str) -> str:
    """Of the container that isn't known to answer yet."""
    return f"catdog-{name}.new"


def find(engine: DockerClient, name: str) -> Container | None:
    """A container by its name."""
    try:
        return engine.containers.get(name)
    except NotFound:
        return None


def start_listener(engine: DockerClient, name: str, options: Options, image: str) -> Container:
    """Take the port, and the name.

    Args:
        engine: Where.
        name: The deployment's.
        options: `host` and `port` are the door's.
        image: One with Python.

    Returns:
        The door, running.

    Raises:
        DeploymentExists: The name is taken.
        APIError: The port is taken, or the engine refuses otherwise; nothing is left.
    """
    labels = {DEPLOYMENT: name, ROLE: "door", OPTIONS: options.to_json()}
    memory_disk = {"type": "tmpfs", "device": "tmpfs", "o": "size=64k,uid=10001,gid=10001,mode=0700"}
    try:
        door = engine.containers.create(
            image,
            ["python", "-c", _DOOR.read_text(), str(PORT), _SOCKET],
            name=door_name(name),
            labels=labels,
            ports={f"{PORT}/tcp": (options.host, options.port)},
            volumes={_volume(engine, name, memory_disk): {"bind": _MEETING, "mode": "rw"}},
            restart_policy=_RESTARTED,
            **_LOCKED,
        )
    except APIError as refused:
        if refused.status_code == 409:
            raise DeploymentExists(
                f"deployment {name!r} is there already: update or delete it, or take another name"
            ) from None
        remove_volume(engine, name)
        raise
    try:
        door.start()
    except BaseException:
        remove(door)
        remove_volume(engine, name)
        raise
    return door


def start_candidate(engine: DockerClient, name: str, image: str, options: Options, labels: Mapping[str, str]) -> Container:
    """Start a model beside what serves now; it takes requests when its workers have answered a picture.

    Args:
        engine: Where.
        name: The deployment's.
        image: The model's.
        options: All but the door's.
        labels: What the model is.

    Returns:
        The container, running.
    """
    environment = {
        "CATDOG_DOOR": _SOCKET,
        "CATDOG_WORKERS": str(options.workers or math.ceil(options.cpus)),  # 0: one a core
        "CATDOG_MAX_BODY_MB": str(options.max_body_mb),
        "MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT": str(options.request_timeout_s),
        "SERVING_MODEL_CONFIG": options.model_config or "{}",
    }
    candidate = engine.containers.create(
        image,
        name=candidate_name(name),
        labels={DEPLOYMENT: name, ROLE: "model", OPTIONS: options.to_json(), **labels},
        environment=environment,
        network_mode=options.network,
        volumes={model_name(name): {"bind": _MEETING, "mode": "ro"}},
        tmpfs={"/tmp": ""},  # noqa: S108  # the container's own
        mem_limit=options.memory or None,
        nano_cpus=int(options.cpus * 1e9),
        **_LOCKED,
    )
    try:
        candidate.start()
    except BaseException:
        remove(candidate)
        raise
    return candidate


def await_answer(candidate: Container, timeout_s: int) -> Any:
    """Wait until a model has answered a picture.

    Args:
        candidate: Its container.
        timeout_s: For how long.

    Returns:
        What it answered.

    Raises:
        DeploymentError: It ended, took too long, or answered wrongly; the message ends with its last log lines.
    """
    started = time.monotonic()
    with contextlib.suppress(APIError):  # it ended before it could be asked
        said = candidate.exec_run(["python", "-m", "runtime.healthcheck", "picture", str(timeout_s)], demux=True)
        output, errors = ((part or b"").decode("utf-8", "replace") for part in cast(tuple[bytes, bytes], said.output))
        if said.exit_code == 0:
            return json.loads(output)
        if said.exit_code == WRONG_ANSWER:
            raise DeploymentError(f"{errors.strip()}\n{log_end(candidate)}")
    if time.monotonic() - started >= timeout_s:
        raise DeploymentError(f"the model didn't answer a picture within {timeout_s} s\n{log_end(candidate)}")
    raise DeploymentError(f"the model doesn't start: {_end(candidate)}\n{log_end(candidate)}")


def settle(engine: DockerClient, name: str, candidate: Container) -> None:
    """Let a model that answers take the place of the one that served so far; what is asked meanwhile is answered.

    Cut off in the middle, it can be done again: a candidate with a restart policy has answered.
    """
    candidate.update(restart_policy=_RESTARTED)
    if before := find(engine, model_name(name)):
        remove(before)
    candidate.rename(model_name(name))


def serving(engine: DockerClient, name: str) -> Container | None:
    """The newest container that has answered a picture; None if there is none."""
    candidate = find(engine, candidate_name(name))
    return candidate if candidate and _has_answered(candidate) else find(engine, model_name(name))


def finish(engine: DockerClient, name: str) -> None:
    """Bring to its end what an update began that was killed.

    Raises:
        DeploymentExists: It isn't clear that it was killed: somebody may be waiting for that model to answer.
    """
    candidate = find(engine, candidate_name(name))
    if candidate is None:
        return
    if _has_answered(candidate):
        settle(engine, name, candidate)
        return
    age_s = (pd.Timestamp(engine.info()["SystemTime"]) - pd.Timestamp(candidate.attrs["Created"])).total_seconds()
    patience_s = json.loads(candidate.labels[OPTIONS])["ready_timeout_s"] + _MARGIN_S
    if age_s < patience_s:
        raise DeploymentExists(
            f"deployment {name!r} is being changed since {age_s:.0f} s: wait for it; what was cut off counts as over after "
            f"{patience_s:.0f} s, and `mlflow deployments delete` removes all at once"
        )
    remove(candidate)


def remove(container: Container, timeout_s: int = 30) -> None:
    """Let a container finish its requests within `timeout_s`, and remove it; no matter if it has gone."""
    with contextlib.suppress(NotFound):
        container.stop(timeout=timeout_s)
        container.remove(force=True)


def remove_volume(engine: DockerClient, name: str) -> None:
    """Remove where a deployment's containers met."""
    with contextlib.suppress(APIError):  # not there, or another's: it is in use
        engine.volumes.get(model_name(name)).remove()


def remove_images(engine: DockerClient, name: str, *, dangling: bool) -> None:
    """Remove a deployment's images: those that have no name any more and that no container uses, or all."""
    for image in engine.images.list(filters={"label": f"{DEPLOYMENT}={name}", **({"dangling": True} if dangling else {})}):
        with contextlib.suppress(APIError):  # a container uses it
            engine.images.remove(str(image.id), force=not dangling)


def untag(engine: DockerClient, tag: str) -> None:
    """Take a name from an image, which goes if it was its last one and no container uses it."""
    with contextlib.suppress(APIError):
        engine.images.remove(tag)


def log_end(container: Container) -> str:
    """A container's last log lines."""
    with contextlib.suppress(APIError):
        lines = bytes(container.logs(tail=_LOG_LINES)).decode("utf-8", "replace").strip()
        return f"its log ends:\n{lines}"
    return "its log can't be had"


def _end(container: Container) -> str:
    with contextlib.suppress(APIError, requests.RequestException):
        code = container.wait(timeout=5)["StatusCode"]
        container.reload()
        if container.attrs["State"]["OOMKilled"]:
            return "it ran out of memory; give it more by -C memory=…"
        return f"its container ended with exit code {code}"
    return "its container can't be asked"


def _has_answered(candidate: Container) -> bool:
    return bool(candidate.attrs["HostConfig"]["RestartPolicy"]["Name"] == _RESTARTED["Name"])


def _volume(engine: DockerClient, name: str, options: Mapping[str, str]) -> str:
    return str(engine.volumes.create(model_name(name), driver_opts=dict(options), labels={DEPLOYMENT: name}).name)
