"""The Docker engine that deployments live on, and what goes wrong with it."""

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

_SILENCE_S = 900  # how long the engine may say nothing: pip can take its time


@contextlib.contextmanager
def connected() -> Iterator[DockerClient]:
    """The engine that `DOCKER_HOST` or docker's current context names.

    Yields:
        A client of it. What the engine refuses within the context is raised as `DeploymentError`.

    Raises:
        DeploymentError: No engine answers.
    """
    try:
        client = _client()
        client.ping()
    except DockerException as wrong:
        raise DeploymentError(f"no Docker engine answers ({wrong}): start one, or name it by DOCKER_HOST") from None
    try:
        yield client
    except APIError as refused:
        raise _told(refused) from refused
    finally:
        client.close()


def _client() -> DockerClient:
    context = docker.ContextAPI.get_current_context()
    if "DOCKER_HOST" in os.environ or context is None or context.name == "default":
        return docker.from_env(timeout=_SILENCE_S)
    return DockerClient(base_url=context.Host, tls=context.TLSConfig or False, timeout=_SILENCE_S)


def _told(refused: APIError) -> DeploymentError:
    said = str(refused.explanation or refused)
    if refused.status_code == 409 and "already in use" in said:
        return DeploymentExists("somebody else is changing this deployment right now, and was faster: look, and try again")
    if "port is already allocated" in said or "address already in use" in said:
        return DeploymentError(f"the port is taken: {said}; give another by -C port=…")
    return DeploymentError(f"the Docker engine refused: {said}")


def host_of(engine: DockerClient) -> str:
    """The machine that published ports are on; 127.0.0.1 for this one, and through ssh, where a tunnel must lead there."""
    host = urlparse(engine.api.base_url).hostname
    return host if host and host not in ("localhost", "localunixsocket", "localnpipe", "ssh") else "127.0.0.1"


def ensure_image(engine: DockerClient, name: str) -> None:
    """Pull an image unless it is there.

    Raises:
        DeploymentError: It can't be had.
    """
    try:
        engine.images.get(name)
    except ImageNotFound:
        log(f"pulling {name}")
        try:
            engine.images.pull(name)
        except APIError as refused:
            raise DeploymentError(f"image {name} can't be had: {refused.explanation}; give one by -C base_image=…") from None
