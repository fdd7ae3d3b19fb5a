"""The containers of a deployment: the listener, the model, and a candidate that has yet to pass its smoke test.

Names and labels of containers are the only state. A name can be taken once, so it is also the lock: of two commands that
create or update the same deployment at once, Docker lets one continue.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import requests
from docker.errors import APIError, NotFound

from mlflow_catdog.deployments.docker_client import untag
from mlflow_catdog.deployments.errors import DeploymentExists, ModelFailed
from mlflow_catdog.deployments.options import Options
from mlflow_catdog.runtime import PORT
from mlflow_catdog.runtime.healthcheck import SMOKE_TEST_FAILED

if TYPE_CHECKING:
    from docker import DockerClient
    from docker.models.containers import Container

DEPLOYMENT, ROLE, OPTIONS, MODEL_URI, MODEL = (
    f"catdog.{name}" for name in ("deployment", "role", "options", "model_uri", "model")
)
RESTARTED: Any = {"Name": "unless-stopped"}  # docker's type hints know only two of the four policies
_REPOSITORY = "catdog-deployment"
_LISTENER = Path(__file__).parents[1] / "runtime" / "listener.py"
_MOUNT, _SOCKET, _KEYS = "/run/listener", "/run/listener/socket", "/run/secrets/api_keys"
_LOG_LINES = 30
_LOCKED_DOWN: Mapping[str, Any] = {
    "user": "10001:10001",
    "read_only": True,
    "cap_drop": ["ALL"],
    "security_opt": ["no-new-privileges"],
    "pids_limit": 1024,
}


def listener_name(name: str) -> str:
    """Name of the container that holds a deployment's port."""
    return f"catdog-{name}.listener"


def model_name(name: str) -> str:
    """Name of the container that serves, and of the volume with the listener's socket."""
    return f"catdog-{name}"


def candidate_name(name: str) -> str:
    """Name of the container that has yet to pass its smoke test."""
    return f"catdog-{name}.new"


def image_tag(name: str) -> str:
    """Tag of the image that serves."""
    return f"{_REPOSITORY}:{name}"


def previous_tag(name: str) -> str:
    """Tag of the image that served before."""
    return f"{_REPOSITORY}:{name}.previous"


def candidate_tag(name: str) -> str:
    """Tag of an image while its container is a candidate."""
    return f"{_REPOSITORY}:{name}.new"


def find(client: DockerClient, name: str) -> Container | None:
    """A container by its name."""
    try:
        return client.containers.get(name)
    except NotFound:
        return None


def start_listener(client: DockerClient, name: str, options: Options, image: str) -> Container:
    """Take the port, and the deployment's name.

    Args:
        client: Of the Docker daemon.
        name: The deployment's.
        options: Its `host` and `port` are the listener's.
        image: Has Python.

    Returns:
        The listener, running.

    Raises:
        DeploymentExists: The name is taken.
        APIError: The port is taken, or Docker refuses for another reason; nothing is left.
    """
    in_memory = {"type": "tmpfs", "device": "tmpfs", "o": "size=64k,uid=10001,gid=10001,mode=0700"}
    volume = client.volumes.create(model_name(name), driver_opts=in_memory, labels={DEPLOYMENT: name}).name
    try:
        listener = client.containers.create(
            image,
            ["python", "-c", _LISTENER.read_text(), str(PORT), _SOCKET],
            name=listener_name(name),
            labels={DEPLOYMENT: name, ROLE: "listener", OPTIONS: options.to_json()},
            ports={f"{PORT}/tcp": (options.host, options.port)},
            volumes={str(volume): {"bind": _MOUNT, "mode": "rw"}},
            restart_policy=RESTARTED,
            **_LOCKED_DOWN,
        )
    except APIError as refusal:
        if refusal.status_code == 409:
            raise DeploymentExists(
                f"deployment {name!r} already exists: update or delete it, or choose another name"
            ) from None
        remove_volume(client, name)
        raise
    try:
        listener.start()
    except BaseException:
        remove(listener)
        remove_volume(client, name)
        raise
    return listener


def start_candidate(client: DockerClient, name: str, image: str, options: Options, labels: Mapping[str, str]) -> Container:
    """Start a model beside the one that serves; it takes requests once its workers have passed the smoke test.

    Args:
        client: Of the Docker daemon.
        name: The deployment's.
        image: The model's.
        options: All but the listener's.
        labels: Which model it is.

    Returns:
        The container, running.
    """
    environment = {"CATDOG_LISTENER": _SOCKET, **options.environment()}
    volumes = {model_name(name): {"bind": _MOUNT, "mode": "ro"}}
    if options.api_keys_file:  # a mount: `docker inspect` shows environment variables to everybody
        environment["CATDOG_API_KEYS_FILE"] = _KEYS
        volumes[options.api_keys_file] = {"bind": _KEYS, "mode": "ro"}
    candidate = client.containers.create(
        image,
        name=candidate_name(name),
        labels={DEPLOYMENT: name, ROLE: "model", OPTIONS: options.to_json(), **labels},
        environment=environment,
        network_mode=options.network,
        volumes=volumes,
        tmpfs={"/tmp": ""},  # noqa: S108  # the container's own
        mem_limit=options.memory or None,
        nano_cpus=int(options.cpus * 1e9),
        **_LOCKED_DOWN,
    )
    try:
        candidate.start()
    except BaseException:
        remove(candidate)
        raise
    return candidate


def await_prediction(candidate: Container, timeout_s: int) -> Any:
    """Wait until a candidate has passed its smoke test.

    Args:
        candidate: Its container.
        timeout_s: How long to wait.

    Returns:
        The prediction.

    Raises:
        ModelFailed: It exited, took too long, or failed the test; the message ends with its last log lines.
    """
    started = time.monotonic()
    with contextlib.suppress(APIError):  # it exited before the test could run
        run = candidate.exec_run(["python", "-m", "runtime.healthcheck", "smoke-test", str(timeout_s)], demux=True)
        output, errors = ((part or b"").decode("utf-8", "replace") for part in cast(tuple[bytes, bytes], run.output))
        if run.exit_code == 0:
            return json.loads(output)
        if run.exit_code == SMOKE_TEST_FAILED:
            raise ModelFailed(f"{errors.strip()}\n{_log_end(candidate)}")
    if time.monotonic() - started >= timeout_s:
        raise ModelFailed(f"the model did not pass its smoke test within {timeout_s} s\n{_log_end(candidate)}")
    raise ModelFailed(f"the model does not start: {_exit_reason(candidate)}\n{_log_end(candidate)}")


def remove(container: Container, timeout_s: int = 30) -> None:
    """Stop a container, which has `timeout_s` to finish its requests, and remove it; no error if it is gone."""
    with contextlib.suppress(NotFound):
        container.stop(timeout=timeout_s)
        container.remove(force=True)


def remove_volume(client: DockerClient, name: str) -> None:
    """Remove the volume with the listener's socket."""
    with contextlib.suppress(APIError):  # there is none, or another container uses it
        client.volumes.get(model_name(name)).remove()


def remove_untagged_images(client: DockerClient, name: str) -> None:
    """Remove those images of a deployment that nobody has tagged and no container uses."""
    for image in client.images.list(filters={"label": f"{DEPLOYMENT}={name}", "dangling": True}):
        with contextlib.suppress(APIError):  # a container uses it
            client.images.remove(str(image.id))


def remove_all(client: DockerClient, name: str) -> None:
    """Remove a deployment's containers, volume and images; tags that users gave its images stay."""
    # The listener last: responses in flight pass through its network.
    for container in (candidate_name(name), model_name(name), listener_name(name)):
        if found := find(client, container):
            remove(found)
    remove_volume(client, name)
    for tag in (candidate_tag(name), image_tag(name), previous_tag(name)):
        untag(client, tag)
    remove_untagged_images(client, name)


def _log_end(container: Container) -> str:
    with contextlib.suppress(APIError):
        lines = bytes(container.logs(tail=_LOG_LINES)).decode("utf-8", "replace").strip()
        return f"its log ends:\n{lines}"
    return "its log is not available"


def _exit_reason(container: Container) -> str:
    with contextlib.suppress(APIError, requests.RequestException):
        code = container.wait(timeout=5)["StatusCode"]
        container.reload()
        if container.attrs["State"]["OOMKilled"]:
            return "it ran out of memory; raise the limit with -C memory=…"
        return f"its container exited with code {code}"
    return "its container does not respond"
