"""A Ray cluster on this machine: nodes that `ray start` starts, and Ray Serve's commands on it."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import requests
import yaml

from catdog_pyfunc.pipeline.processes import free_port
from tests.project import REPOSITORY
from tests.waiting import await_condition

SERVE_FILE = REPOSITORY / "deploy" / "ray" / "serve.yaml"
APPLICATION, DEPLOYMENT = "catdog", "Classifier"
_SCRIPTS = Path(sys.executable).parent
_START_S = 120
_PORTS = ("dashboard-agent-grpc-port", "dashboard-agent-listen-port", "metrics-export-port", "runtime-env-agent-port")


@dataclass
class Cluster:
    """A head and what joins it, each with two logical cores."""

    folder: Path
    environment: dict[str, str] = field(default_factory=lambda: dict(os.environ))
    port: int = field(default_factory=free_port)
    dashboard_port: int = field(default_factory=free_port)
    http_port: int = field(default_factory=free_port)

    @property
    def address(self) -> str:
        """Where the application is served."""
        return f"http://127.0.0.1:{self.http_port}"

    @contextlib.contextmanager
    def node(self, *options: str) -> Iterator[psutil.Popen]:
        """A node, once it has joined; whatever it has started ends with the block."""
        command = [str(_SCRIPTS / "ray"), "start", "--block", "--num-cpus", "2", "--node-ip-address", "127.0.0.1"]
        command += [
            "--object-store-memory",
            str(80 * 2**20),
            "--temp-dir",
            str(self.folder),
            "--include-log-monitor",
            "false",
        ]
        command += [*options, *(word for port in _PORTS for word in (f"--{port}", str(free_port())))]
        log = self.folder / f"ray-start-{secrets.token_hex(2)}.log"
        # Ray allows its agents 15 s to start, which a busy machine exceeds: three attempts.
        process = next((started for _ in range(3) if (started := self._start(command, log))), None)
        assert process, log.read_text()[-3000:]
        try:
            yield process
        finally:
            kill(process)

    def _start(self, command: list[str], log: Path) -> psutil.Popen | None:
        """The process of a node that has joined, or None if it has given up."""
        nodes = self._live_nodes()
        with log.open("w") as stream:
            process = psutil.Popen(command, stdout=stream, stderr=stream, env=self.environment, start_new_session=True)
        try:
            await_condition(lambda: process.poll() is not None or bool(self._live_nodes() - nodes), _START_S)
        except BaseException:
            kill(process)
            raise
        return process if process.poll() is None else None

    @contextlib.contextmanager
    def head(self) -> Iterator[None]:
        """The first node."""
        options = ["--head", "--port", str(self.port), "--dashboard-port", str(self.dashboard_port)]
        with self.node(*options, "--ray-client-server-port", str(free_port())):
            yield

    def worker(self) -> contextlib.AbstractContextManager[psutil.Popen]:
        """A second node."""
        return self.node("--address", f"127.0.0.1:{self.port}")

    def start_serve(self) -> None:
        """Ray Serve without an application, on a free port."""
        words = ["start", "--http-port", str(self.http_port), "--http-host", "127.0.0.1", "--proxy-location", "HeadOnly"]
        done = self.serve(*words)
        assert done.returncode == 0, done.stderr

    @contextlib.contextmanager
    def run(self, *arguments: str) -> Iterator[None]:
        """`serve run`, ended by Ctrl-C."""
        words = [str(_SCRIPTS / "serve"), "run", "mlflow_catdog.ray:app", *arguments]
        with (self.folder / "serve-run.log").open("w") as log:
            process = psutil.Popen(words, stdout=log, stderr=log, env=self.environment, start_new_session=True)
        try:
            yield
            process.send_signal(signal.SIGINT)
            process.wait(timeout=_START_S)
        finally:
            kill(process)

    def serve(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(_SCRIPTS / "serve"), *words], env=self.environment, capture_output=True, text=True, timeout=_START_S
        )

    def deploy(self, model_uri: str, **options: Any) -> None:
        """`serve deploy` the repository's file, with another model, and other options of the deployment."""
        config = yaml.safe_load(SERVE_FILE.read_text())
        config |= {"proxy_location": "HeadOnly", "http_options": {"host": "127.0.0.1", "port": self.http_port}}
        (application,) = config["applications"]
        application["args"] |= {"model_uri": model_uri}
        application["runtime_env"]["env_vars"]["MLFLOW_TRACKING_URI"] = self.environment["MLFLOW_TRACKING_URI"]
        (deployment,) = application["deployments"]
        if "num_replicas" in options:
            del deployment["autoscaling_config"]
        deployment |= options
        (self.folder / "serve.yaml").write_text(yaml.safe_dump(config))
        done = self.serve("deploy", str(self.folder / "serve.yaml"))
        assert done.returncode == 0, done.stderr

    def replace(self, replicas: int, model_uri: str, **options: Any) -> None:
        """Deploy, and wait for so many replicas that were not there before."""
        before = {each["pid"] for each in self.replicas()}
        self.deploy(model_uri, **options)
        self.await_running(replicas, without=before)

    def application(self, name: str = APPLICATION) -> dict[str, Any]:
        """Its status, message and deployments, as the dashboard tells them."""
        return dict(self._get("/api/serve/applications/").get("applications", {}).get(name, {}))

    def replicas(self, name: str = APPLICATION) -> list[dict[str, Any]]:
        """Those that serve."""
        deployments = self.application(name).get("deployments", {})
        return [each for each in deployments.get(DEPLOYMENT, {}).get("replicas", []) if each["state"] == "RUNNING"]

    def await_running(self, replicas: int, name: str = APPLICATION, without: Collection[int] = ()) -> None:
        """Wait until the application runs with so many replicas, none of them one of these processes."""

        def running() -> bool:
            processes = {each["pid"] for each in self.replicas(name)}
            running = self.application(name).get("status") == "RUNNING"
            return running and len(processes) == replicas and not processes & set(without)

        try:
            await_condition(running, _START_S)
        except AssertionError:
            raise AssertionError(f"not {replicas} replicas within {_START_S} s, but {self.application(name)}") from None

    def _get(self, path: str) -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {self.environment['RAY_AUTH_TOKEN']}"}
        response = requests.get(f"http://127.0.0.1:{self.dashboard_port}{path}", headers=headers, timeout=30)
        response.raise_for_status()
        return dict(response.json())

    def _live_nodes(self) -> set[str]:
        try:
            nodes = self._get("/nodes?view=summary")["data"]["summary"]
        except requests.RequestException:  # the head is starting
            return set()
        return {node["raylet"]["nodeId"] for node in nodes if node["raylet"].get("state") == "ALIVE"}


def kill(process: psutil.Popen) -> None:
    """End a process and all that it has started, at once."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for each in [process, *process.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
    process.wait(timeout=30)


@contextlib.contextmanager
def cluster(tracking_uri: str) -> Iterator[Cluster]:
    """A cluster with a head only, and a token of its own."""
    token = secrets.token_hex(32)
    with tempfile.TemporaryDirectory(
        prefix="ray-", dir="/tmp", ignore_cleanup_errors=True
    ) as folder:  # sockets' paths are short
        made = Cluster(Path(folder))
        made.environment |= {
            "MLFLOW_TRACKING_URI": tracking_uri,
            "RAY_ADDRESS": f"127.0.0.1:{made.port}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": token,
            "RAY_DASHBOARD_ADDRESS": f"http://127.0.0.1:{made.dashboard_port}",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_worker_niceness": "0",  # the default, 15, lets clients and whatever else runs here starve the replicas
        }
        with made.head():
            yield made
