"""Servers to measure: how each is started, called and stopped."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import requests

from catdog_pyfunc.pipeline.processes import free_port

PEERS = Path(__file__).parent / "peers"
PEERS_PYTHON = PEERS.parent.parent / ".venv-peers" / "bin" / "python"
START_TIMEOUT_S = 120


@dataclass(frozen=True)
class RequestFormat:
    """How an image becomes a request's body."""

    path: str
    content_type: str

    def body(self, image: bytes) -> bytes:
        if self.content_type.startswith("image/"):
            return image
        if "parquet" in self.content_type:
            buffer = io.BytesIO()
            pd.DataFrame({"image": [image]}).to_parquet(buffer)
            return buffer.getvalue()
        text = base64.b64encode(image).decode()
        mlflow = {"dataframe_split": {"columns": ["image"], "data": [[text]]}}
        return json.dumps({"image": text} if self.path == "/predict" else mlflow).encode()


MLFLOW = RequestFormat("/invocations", "application/json")
PARQUET = RequestFormat("/invocations", "application/vnd.apache.parquet")
LITSERVE = RequestFormat("/predict", "application/json")
BENTOML = RequestFormat("/classify", "image/jpeg")
RAW = RequestFormat("/predict", "image/jpeg")


@dataclass(frozen=True)
class Server:
    """A server to measure.

    Attributes:
        name: Its name in the table.
        command: The command that starts it; `{port}` is filled in, as in `environment`.
        request_format: The format of its requests.
        workers: Number of worker processes.
        environment: Environment variables to add.
        folder: Where it runs.
    """

    name: str
    command: Sequence[str]
    request_format: RequestFormat
    workers: int
    environment: Mapping[str, str] = field(default_factory=dict)
    folder: Path = PEERS


@dataclass(frozen=True)
class Running:
    """A server that has responded: its address, the time until its first response, and its process."""

    url: str
    start_s: float
    pid: int

    def memory_mb(self) -> float:
        """Resident memory of its largest process, which leaves out launchers and parents."""
        root = psutil.Process(self.pid)
        return max(process.memory_info().rss for process in (root, *root.children(recursive=True))) / 1e6


def mlflow_serve(
    name: str, python: Path, model: Path, workers: int, request_format: RequestFormat = MLFLOW, **environment: str
) -> Server:
    """`mlflow models serve`, run by the given Python."""
    command = [str(python), "-m", "mlflow", "models", "serve", "-m", str(model), "-p", "{port}", "-h", "127.0.0.1"]
    return Server(name, [*command, "-w", str(workers), "--env-manager", "local"], request_format, workers, environment)


def catdog_server(name: str, python: Path, context: Path, workers: int) -> Server:
    """The server of a deployment, without its container, in a folder that `build.write_context` has filled."""
    environment = {"CATDOG_LISTEN": "127.0.0.1:{port}", "CATDOG_WORKERS": str(workers)}
    return Server(name, [str(python), "-m", "runtime.supervisor"], RAW, workers, environment, context)


def ray_serve(name: str, python: Path, graph: Path, workers: int) -> Server:
    """Ray Serve, in the peers' environment."""
    return Server(name, [str(python), str(PEERS / "ray_app.py"), str(graph), "{port}", str(workers)], RAW, workers)


def litserve(name: str, python: Path, baseline: str, path: Path, workers: int) -> Server:
    """LitServe, in the peers' environment."""
    return Server(
        name, [str(python), str(PEERS / "litserve_app.py"), baseline, str(path), "{port}", str(workers)], LITSERVE, workers
    )


def bentoml(name: str, python: Path, baseline: str, path: Path, workers: int, home: Path) -> Server:
    """BentoML, in the peers' environment."""
    command = [str(python), "-m", "bentoml", "serve", "bentoml_app:Classifier", "--host", "127.0.0.1", "--port", "{port}"]
    environment = {
        "BENCH_BASELINE": baseline,
        "BENCH_PATH": str(path),
        "BENCH_WORKERS": str(workers),
        "BENTOML_HOME": str(home),
    }
    return Server(name, command, BENTOML, workers, environment | {"BENTOML_DO_NOT_TRACK": "true"})


@contextlib.contextmanager
def running(server: Server, image: bytes, log: Path) -> Iterator[Running]:
    """Start a server, wait for its first successful response, and stop its process group at the end."""
    port = free_port()
    command = [word.replace("{port}", str(port)) for word in server.command]
    with log.open("w") as stream:
        # PATH: `mlflow models serve --env-manager local` looks for uvicorn there.
        path = f"{Path(server.command[0]).parent}{os.pathsep}{os.environ['PATH']}"
        added = {name: value.replace("{port}", str(port)) for name, value in server.environment.items()}
        environment = {**os.environ, "PATH": path, "MLFLOW_DISABLE_TELEMETRY": "true", **added}
        started = time.monotonic()
        process = subprocess.Popen(
            command, cwd=server.folder, env=environment, stdout=stream, stderr=stream, start_new_session=True
        )
    url = f"http://127.0.0.1:{port}"
    try:
        while predict(url, server.request_format, image) is None:
            if process.poll() is not None or time.monotonic() - started > START_TIMEOUT_S:
                raise SystemExit(
                    f"{server.name} was not ready within {START_TIMEOUT_S} s; its log ends:\n{log.read_text()[-2000:]}"
                )
            time.sleep(0.02)
        yield Running(url, time.monotonic() - started, process.pid)
    finally:
        _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    family = [process.pid]
    with contextlib.suppress(psutil.NoSuchProcess):
        family += [child.pid for child in psutil.Process(process.pid).children(recursive=True)]
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=15)
    for pid in family:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait(timeout=15)


def predict(url: str, request_format: RequestFormat, image: bytes) -> str | None:
    """The predicted label; None while the server is not ready."""
    try:
        headers = {"Content-Type": request_format.content_type}
        response = requests.post(url + request_format.path, data=request_format.body(image), headers=headers, timeout=60)
    except (requests.ConnectionError, requests.Timeout):
        return None
    if not response.ok:
        return None
    content: Any = response.json()
    return str((content["predictions"][0] if "predictions" in content else content)["label"])
