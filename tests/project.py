"""A tracking store of a test's own, and MLflow's commands and servers on it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import psutil
import pytest
import requests

from catdog_pyfunc.pipeline.processes import free_port
from tests.waiting import await_condition

REPOSITORY = Path(__file__).parent.parent
MODEL = "CatDogClassifier"
URI = f"models:/{MODEL}@production"
START_TIMEOUT_S = 600  # with an environment to build


@dataclass(frozen=True)
class Project:
    """A tracking store, a cache, and how to run MLflow's commands with them."""

    folder: Path
    environment: Mapping[str, str]

    @property
    def tracking_uri(self) -> str:
        return self.environment["MLFLOW_TRACKING_URI"]

    def client(self) -> mlflow.MlflowClient:
        return mlflow.MlflowClient(self.tracking_uri, self.tracking_uri)

    def command(
        self, *words: str, cwd: Path = REPOSITORY, timeout_s: int = 900, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            words, cwd=cwd, env={**self.environment, **environment}, capture_output=True, text=True, timeout=timeout_s
        )

    def run(self, *words: str, manager: str = "local", **options: object) -> subprocess.CompletedProcess[str]:
        """`mlflow run .` in the repository."""
        return self.command("mlflow", "run", ".", "--env-manager", manager, "--experiment-name", "catdog", *words, **options)  # type: ignore[arg-type]


def make_project(folder: Path) -> Project:
    folder.mkdir(parents=True, exist_ok=True)
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "XDG_CACHE_HOME": str(folder / "cache"),
    }
    environment.pop("MLFLOW_RUN_ID", None)
    project = Project(folder, environment)
    client = project.client()
    client.create_experiment("catdog", artifact_location=(folder / "artifacts").as_uri())
    return project


@contextlib.contextmanager
def running(
    command: list[str], ping: str, log: Path, *, cwd: Path, env: Mapping[str, str] | None = None, timeout_s: int = 120
) -> Iterator[subprocess.Popen[bytes]]:
    """A server that answers `ping` with 200 by now; stopped by its process group in the end."""
    env = {**(env or os.environ), "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # eight processes that no test needs
    with log.open("w") as stream:
        server = subprocess.Popen(command, cwd=cwd, env=env, stdout=stream, stderr=stream, start_new_session=True)
    try:
        deadline = time.monotonic() + timeout_s
        while True:
            with contextlib.suppress(requests.ConnectionError, requests.Timeout):
                if requests.get(ping, timeout=5).ok:
                    break
            gone = server.poll() is not None
            if gone or time.monotonic() > deadline:
                said = f"{' '.join(command)} {'ended' if gone else f'was not up within {timeout_s} s'}"
                pytest.fail(f"{said}; its log ends:\n{log.read_text()[-3000:]}")
            time.sleep(0.2)
        yield server
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(timeout=20)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait(timeout=20)


@contextlib.contextmanager
def serving(project: Project, *options: str, cwd: Path) -> Iterator[str]:
    """`mlflow models serve` of the model in production; its address, once it answers."""
    address, log = f"http://127.0.0.1:{free_port()}", project.folder / f"serve-{time.monotonic_ns()}.log"
    command = ["mlflow", "models", "serve", "-m", f"models:/{MODEL}@production", "-p", address.rsplit(":", 1)[1], *options]
    with running(command, f"{address}/ping", log, cwd=cwd, env=project.environment, timeout_s=START_TIMEOUT_S):
        yield address


@dataclass(frozen=True)
class Deployment:
    """A server that `mlflow deployments run-local` started."""

    address: str
    log: Path
    command: subprocess.Popen[bytes]

    def processes(self) -> list[psutil.Process]:
        """The command, the supervisor and its workers."""
        command = psutil.Process(self.command.pid)
        return [command, *command.children(recursive=True)]

    def workers(self) -> set[int]:
        """Their process ids."""
        return {process.pid for process in self.processes() if "runtime.worker" in words_of(process)}

    def requests(self) -> list[dict[str, Any]]:
        """The log's lines about requests."""
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]


def words_of(process: psutil.Process) -> list[str]:
    """A process's command line; none if it has ended."""
    try:
        return process.cmdline()
    except psutil.Error:
        return []


@contextlib.contextmanager
def run_local(project: Project, log: Path, *words: str, **environment: str) -> Iterator[Deployment]:
    """`mlflow deployments run-local -t catdog` on a free port, once it has announced its server."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    command = ["mlflow", "deployments", "run-local", "-t", "catdog", "--name", "here", "-C", f"port={port}", *words]
    env = {**project.environment, **environment}
    with running(command, f"{address}/ping", log, cwd=log.parent, env=env) as server:
        await_condition(lambda: f" serves at {address}; " in log.read_text())
        yield Deployment(address, log, server)
