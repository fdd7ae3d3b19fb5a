"""A real Docker engine: what these tests need of it, and that they leave nothing on it.

CATDOG_DOCKER=1 says that there is one to build on. The images that all others are built on (python:X.Y.Z-slim, postgres:N)
are pulled, or lie there already; they stay.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import docker
import pytest
import requests
from docker import DockerClient
from pytest_docker.plugin import DockerComposeExecutor, Services, get_docker_services

from tests.project import MODEL, REPOSITORY, Project


@pytest.fixture(scope="session", autouse=True)
def engine() -> Iterator[DockerClient]:
    """The engine; in the end it must hold what it held before, and no more."""
    if not os.environ.get("CATDOG_DOCKER"):
        pytest.skip("CATDOG_DOCKER is not set: these tests build images with a Docker engine, which takes minutes")
    client = docker.from_env()
    before = held(client)
    yield client
    for image in client.images.list():  # those that Compose built: kept until now, so that they are built once
        if any(tag.startswith(f"catdog-test-{os.getpid()}") for tag in image.tags):
            client.images.remove(str(image.id), force=True)
    left = held(client) - before
    client.close()
    assert not left, f"these tests left {sorted(left)}"


def held(engine: DockerClient) -> set[str]:
    """Containers, networks, volumes and images; images that others publish don't count, they are only pulled."""
    images = [
        image for image in engine.images.list() if not any(tag.startswith(("python:", "postgres:")) for tag in image.tags)
    ]
    return {
        f"{type(thing).__name__} {thing.id} {getattr(thing, 'tags', '') or thing.attrs.get('Name', '')}"
        for thing in [*engine.containers.list(all=True), *engine.networks.list(), *engine.volumes.list(), *images]
    }


@pytest.fixture(scope="session", params=["docker-compose", "docker compose"], ids=["compose v1", "compose v2"])
def compose(request: pytest.FixtureRequest, engine: DockerClient) -> str:
    """Both generations of Compose. pytest-docker needs to be told of v1, or it passes with nothing running."""
    command = str(request.param)
    try:
        subprocess.run([*command.split(), "version"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip(f"`{command}` is not here (CATDOG_DOCKER wants both)")
    return command


@contextlib.contextmanager
def composed(command: str, file: Path, project: str, setting: Mapping[str, str], up: str = "up -d") -> Iterator[Stack]:
    """The services of a compose file, running; gone with their volumes in the end, also if they don't come up."""
    before = dict(os.environ)
    os.environ.update(setting)
    try:
        with get_docker_services(command, str(file), project, [], ["down -v --remove-orphans"]) as services:
            stack = Stack(DockerComposeExecutor(command, str(file), project), services)
            stack.execute(up)
            yield stack
    finally:
        os.environ.clear()
        os.environ.update(before)


class Stack:
    """A compose file's services."""

    def __init__(self, executor: DockerComposeExecutor, services: Services) -> None:
        self.services = services
        self._executor = executor

    def execute(self, words: str) -> str:
        return bytes(self._executor.execute(words)).decode()

    def container(self, service: str) -> str:
        return self.execute(f"ps -q {service}").split()[-1]

    def address(self, service: str, port: int) -> str:
        return f"http://127.0.0.1:{self.services.port_for(service, port)}"

    def await_up(self, url: str, timeout_s: float) -> float:
        """Wait for a 200; after `timeout_s` fail with the last log lines. How long it took."""
        started = time.monotonic()
        while time.monotonic() - started < timeout_s:
            with contextlib.suppress(requests.RequestException):
                if requests.get(url, timeout=5).ok:
                    return time.monotonic() - started
            time.sleep(0.1)
        raise TimeoutError(f"{url} did not answer within {timeout_s:.0f} s; the log ends:\n{self.execute('logs --tail=40')}")


@pytest.fixture(scope="session")
def image(engine: DockerClient, project: Project) -> str:
    """What `mlflow models build-docker` makes of the model in production."""
    name = f"catdog-test-{os.getpid()}"
    words = ["mlflow", "models", "build-docker", "-m", f"models:/{MODEL}@production", "-n", name, "--env-manager", "local"]
    started = time.monotonic()
    done = project.command(*words)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    size = engine.images.get(name).attrs["Size"]
    print(f"\nmlflow models build-docker: {time.monotonic() - started:.0f} s, {size / 1e6:.0f} MB")
    return name


class Target:
    """`mlflow deployments … -t catdog`, with names of its own."""

    def __init__(self, project: Project) -> None:
        self.project = project
        self._names: list[str] = []

    def name(self) -> str:
        """A name that is free; what is deployed under it goes in the end."""
        self._names.append(f"test-{os.getpid()}-{len(self._names)}")
        return self._names[-1]

    def call(self, verb: str, *words: str, timeout_s: int = 600) -> subprocess.CompletedProcess[str]:
        return self.project.command("mlflow", "deployments", verb, "-t", "catdog", *words, timeout_s=timeout_s)

    def begin(self, verb: str, *words: str) -> subprocess.Popen[str]:
        """The same, without waiting."""
        return subprocess.Popen(
            ["mlflow", "deployments", verb, "-t", "catdog", *words],
            cwd=REPOSITORY,
            env=dict(self.project.environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def clean(self) -> None:
        for name in self._names:
            self.call("delete", "--name", name)


@pytest.fixture(scope="module")
def target(engine: DockerClient, project: Project) -> Iterator[Target]:
    target = Target(project)
    try:
        yield target
    finally:
        target.clean()
