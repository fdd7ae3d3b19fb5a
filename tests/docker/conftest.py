"""Fixtures on a real Docker daemon, on which these tests leave nothing.

CATDOG_DOCKER=1 enables them; they also need `docker compose`. The images that all others are built on (python:X.Y.Z-slim,
postgres:N, haproxy:N, caddy:N) are pulled unless they are there, and stay.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import docker
import pytest
import requests
from docker import DockerClient
from docker.models.containers import Container
from mlflow.deployments import BaseDeploymentClient, get_deploy_client
from pytest_docker.plugin import DockerComposeExecutor, Services, get_docker_services

from tests.project import MODEL, REPOSITORY, Project, free_port

URI = f"models:/{MODEL}@production"
COMPOSE = "docker compose"


@pytest.fixture(scope="session", autouse=True)
def docker_client() -> Iterator[DockerClient]:
    """Docker's client; in the end Docker must hold what it held before and no more."""
    if not os.environ.get("CATDOG_DOCKER"):
        pytest.skip("CATDOG_DOCKER is not set: these tests build images with Docker, which takes minutes")
    client = docker.from_env()
    before = inventory(client)
    yield client
    for image in client.images.list():  # those that Compose built: kept until now, so that they are built once
        if any(tag.startswith(f"catdog-test-{os.getpid()}") for tag in image.tags):
            client.images.remove(str(image.id), force=True)
    left = inventory(client) - before
    client.close()
    assert not left, f"these tests left {sorted(left)}"


def inventory(client: DockerClient) -> set[str]:
    """Containers, networks, volumes and images, without the base images that are only pulled."""
    images = [
        image
        for image in client.images.list()
        if not any(tag.startswith(("python:", "postgres:", "haproxy:", "caddy:")) for tag in image.tags)
    ]
    return {
        f"{type(thing).__name__} {thing.id} {getattr(thing, 'tags', '') or thing.attrs.get('Name', '')}"
        for thing in [
            *client.containers.list(all=True, ignore_removed=True),
            *client.networks.list(),
            *client.volumes.list(),
            *images,
        ]
    }


@contextlib.contextmanager
def composed(file: Path, project: str, environment: Mapping[str, str], up: str = "up -d") -> Iterator[Stack]:
    """The services of a compose file, running; removed with their volumes in the end, also if they do not start."""
    before = dict(os.environ)
    os.environ.update(environment)
    try:
        with get_docker_services(COMPOSE, str(file), project, [], ["down -v --remove-orphans"]) as services:
            stack = Stack(DockerComposeExecutor(COMPOSE, str(file), project), services, project)
            stack.execute(up)
            yield stack
    finally:
        os.environ.clear()
        os.environ.update(before)


class Stack:
    """A compose file's services."""

    def __init__(self, executor: DockerComposeExecutor, services: Services, project: str) -> None:
        self.services, self.project = services, project
        self._executor = executor

    def execute(self, arguments: str) -> str:
        return bytes(self._executor.execute(arguments)).decode()

    def container(self, service: str) -> str:
        return self.execute(f"ps -q {service}").split()[-1]

    def address(self, service: str, port: int) -> str:
        return f"http://127.0.0.1:{self.services.port_for(service, port)}"

    def await_up(self, url: str, timeout_s: float, certificate: Path | None = None) -> float:
        """Wait for a 200, or fail with the last log lines; seconds it took."""
        started = time.monotonic()
        while time.monotonic() - started < timeout_s:
            with contextlib.suppress(requests.RequestException):
                if requests.get(url, timeout=5, verify=str(certificate) if certificate else True).ok:
                    return time.monotonic() - started
            time.sleep(0.5)  # nginx logs two lines for each refused request: the tail must reach past them
        raise TimeoutError(
            f"{url} did not answer within {timeout_s:.0f} s; the log ends:\n{self.execute('logs --tail=400')}"
        )


@pytest.fixture(scope="session")
def image(docker_client: DockerClient, project: Project) -> str:
    """The image that `mlflow models build-docker` makes of the model in production."""
    name = f"catdog-test-{os.getpid()}"
    words = ["mlflow", "models", "build-docker", "-m", URI, "-n", name, "--env-manager", "local"]
    started = time.monotonic()
    done = project.command(*words)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    size = docker_client.images.get(name).attrs["Size"]
    print(f"\nmlflow models build-docker: {time.monotonic() - started:.0f} s, {size / 1e6:.0f} MB")
    return name


class Target:
    """`mlflow deployments … -t catdog`, and names that no other test uses."""

    def __init__(self, project: Project) -> None:
        self.project = project
        self.names: list[str] = []

    def new_name(self) -> str:
        """A free name; its deployment is deleted in the end."""
        self.names.append(f"test-{os.getpid()}-{len(self.names)}")
        return self.names[-1]

    def call(self, verb: str, *words: str, timeout_s: int = 600) -> subprocess.CompletedProcess[str]:
        return self.project.command("mlflow", "deployments", verb, "-t", "catdog", *words, timeout_s=timeout_s)

    def start(self, verb: str, *words: str) -> subprocess.Popen[str]:
        """The same, without waiting for it."""
        return subprocess.Popen(
            ["mlflow", "deployments", verb, "-t", "catdog", *words],
            cwd=REPOSITORY,
            env=dict(self.project.environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


@pytest.fixture(scope="session")
def target(docker_client: DockerClient, project: Project) -> Iterator[Target]:
    target = Target(project)
    try:
        yield target
    finally:
        client = get_deploy_client("catdog")
        assert client is not None
        for name in target.names:
            client.delete_deployment(name)


@dataclass(frozen=True)
class Live:
    """A deployment of the model in production."""

    name: str
    port: int
    image: bytes

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def record(self) -> dict[str, str]:
        return {"image": base64.b64encode(self.image).decode()}

    @property
    def body(self) -> dict[str, object]:
        return {"dataframe_records": [self.record]}

    def container(self, client: DockerClient) -> Container:
        return client.containers.get(f"catdog-{self.name}")


@pytest.fixture(scope="session")
def live(target: Target, drawn: Path) -> Live:
    live = Live(target.new_name(), free_port(), (drawn / "test" / "cat" / "cat-0001.jpg").read_bytes())
    started = time.monotonic()
    done = target.call("create", "--name", live.name, "-m", URI, "-C", f"port={live.port}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{live.name}: models:/{MODEL}/2 serves at {live.address}; smoke test: " in done.stderr
    print(f"\ncreated in {time.monotonic() - started:.0f} s")
    return live


@pytest.fixture
def deployments(project: Project, monkeypatch: pytest.MonkeyPatch) -> BaseDeploymentClient:
    """The target's Python client."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", project.tracking_uri)
    client = get_deploy_client("catdog")
    assert client is not None
    return client


@pytest.fixture(scope="session")
def expected(project: Project, live: Live) -> dict[str, object]:
    """The model's prediction without a server."""
    code = (
        f"import mlflow, pandas; model = mlflow.pyfunc.load_model('{URI}'); "
        f"print(model.predict(pandas.DataFrame([{live.record!r}])).to_json(orient='records', double_precision=15))"
    )
    done = project.command("python", "-c", code)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout)[0])


@pytest.fixture(scope="session")
def requirements(project: Project, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Those of this project's models: images of third-party models reuse the layer with their packages."""
    folder = tmp_path_factory.mktemp("requirements")
    done = project.command("mlflow", "artifacts", "download", "-u", f"{URI}/requirements.txt", "-d", str(folder))
    assert done.returncode == 0, done.stderr
    return (folder / "requirements.txt").read_text().splitlines()


@pytest.fixture
def nothing_left(docker_client: DockerClient, live: Live) -> Iterator[None]:
    """Holds a test to leaving Docker as it was."""
    before = inventory(docker_client)
    yield
    assert inventory(docker_client) == before


def assert_same(row: dict, expected: dict) -> None:
    assert {**row, "probabilities": None} == pytest.approx({**expected, "probabilities": None}, abs=1e-6)
