"""The Docker client, and what the daemon's errors mean for a deployment."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from urllib.parse import urlparse

import docker
from docker import DockerClient
from docker.errors import APIError, DockerException, ImageNotFound

from catdog_pyfunc.pipeline.console import log
from mlflow_catdog.deployments.errors import DeploymentError, DeploymentExists

_TIMEOUT_S = 900  # for one response; pip may be silent for minutes


@contextlib.contextmanager
def connected() -> Iterator[DockerClient]:
    """Connect to the Docker daemon that `DOCKER_HOST` or docker's current context names.

    Yields:
        A client. API errors raised in the block become `DeploymentError`.

    Raises:
        DeploymentError: No Docker daemon is reachable.
    """
    try:
        client = _new_client()
        client.ping()
    except DockerException as failure:
        raise DeploymentError(f"no Docker daemon is reachable ({failure}): start one, or set DOCKER_HOST") from None
    try:
        yield client
    except APIError as refusal:
        raise _translated(refusal) from refusal
    finally:
        client.close()


def _new_client() -> DockerClient:
    context = docker.ContextAPI.get_current_context()
    if "DOCKER_HOST" in os.environ or context is None or context.name == "default":
        return docker.from_env(timeout=_TIMEOUT_S)
    return DockerClient(base_url=context.Host, tls=context.TLSConfig or False, timeout=_TIMEOUT_S)


def _translated(refusal: APIError) -> DeploymentError:
    reason = str(refusal.explanation or refusal)
    if refusal.status_code == 409 and "already in use" in reason:
        return DeploymentExists("another command is changing this deployment: wait until it has finished, then try again")
    if "port is already allocated" in reason or "address already in use" in reason:
        return DeploymentError(f"the port is taken: {reason}; choose another with -C port=…")
    return DeploymentError(f"Docker refused: {reason}")


def host_of(client: DockerClient) -> str:
    """The host that published ports are on: 127.0.0.1 for a local daemon, and for ssh, where the user needs a tunnel."""
    host = urlparse(client.api.base_url).hostname
    return host if host and host not in ("localhost", "localunixsocket", "localnpipe", "ssh") else "127.0.0.1"


def ensure_image(client: DockerClient, name: str) -> None:
    """Pull an image unless it is there.

    Raises:
        DeploymentError: It cannot be pulled.
    """
    try:
        client.images.get(name)
    except ImageNotFound:
        log(f"pulling {name}")
        try:
            client.images.pull(name)
        except APIError as refusal:
            raise DeploymentError(
                f"cannot pull image {name}: {refusal.explanation}; choose another with -C base_image=…"
            ) from None


def untag(client: DockerClient, tag: str) -> None:
    """Remove a tag; the image goes with its last tag, unless a container uses it."""
    with contextlib.suppress(APIError):
        client.images.remove(tag)
