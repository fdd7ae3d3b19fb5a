"""`mlflow deployments run-local -t catdog`: a deployment's server as processes here, once it has passed its smoke test."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import requests

from catdog_pyfunc.pipeline.console import log
from catdog_pyfunc.pipeline.processes import sigterm_as_interrupt
from mlflow_catdog.deployments import build, rest
from mlflow_catdog.deployments.errors import DeploymentError
from mlflow_catdog.deployments.options import Options
from mlflow_catdog.deployments.smoke_request import smoke_request
from mlflow_catdog.runtime.smoke_test import SmokeTestFailed, check

_STOP_TIMEOUT_S = 30.0  # for requests in flight
_STOP_UNREADY_S = 3.0  # there are none before the smoke test


def run_local(name: str, model_uri: str, flavor: str | None = None, config: Mapping[str, Any] | None = None) -> None:
    """Serve a model in a process here, in the current environment, until Ctrl-C or SIGTERM.

    Args:
        name: Of the model, in messages.
        model_uri: Any URI that MLflow reads.
        flavor: Only "python_function".
        config: Options, see `mlflow deployments help -t catdog`.

    Raises:
        DeploymentError: The port is taken, the server exited, or it did not pass the smoke test in time; no process is left.
    """
    options = Options().updated(config, "run-local")
    address = f"http://{options.host}:{options.port}"
    _check_port(options)
    with contextlib.suppress(KeyboardInterrupt), sigterm_as_interrupt(), build.fetched(model_uri, flavor) as model:
        with _server(model, options) as server:
            prediction = _await_prediction(server, address, smoke_request(model.folder), options)
            log(f"{name}: {model.version} serves at {address}; smoke test: {json.dumps(prediction)}")
            code = server.wait()
        raise DeploymentError(f"{name} exited with code {code}; its log is above")


def _check_port(options: Options) -> None:
    """Fail if another server would answer the smoke test in this one's place."""
    try:
        socket.create_server((options.host, options.port)).close()
    except OSError as failure:
        raise DeploymentError(
            f"cannot listen on {options.host}:{options.port} ({failure}): choose another with -C port=…"
        ) from None


@contextlib.contextmanager
def _server(model: build.FetchedModel, options: Options) -> Iterator[subprocess.Popen[bytes]]:
    environment = {**os.environ, **options.environment(), "CATDOG_LISTEN": f"{options.host}:{options.port}"}
    if options.api_keys_file:
        environment["CATDOG_API_KEYS_FILE"] = options.api_keys_file
    with tempfile.TemporaryDirectory(prefix="catdog-") as scratch:
        build.write_context(model.folder, Path(scratch), model.version)
        words = [sys.executable, "-m", "runtime.supervisor"]
        server = subprocess.Popen(words, cwd=scratch, env=environment, start_new_session=True)
        stop_timeout_s = _STOP_TIMEOUT_S
        try:
            yield server
        except DeploymentError:  # it did not pass the smoke test
            stop_timeout_s = _STOP_UNREADY_S
            raise
        finally:
            _stop(server, stop_timeout_s)


def _await_prediction(server: subprocess.Popen[bytes], address: str, request: Mapping[str, Any], options: Options) -> Any:
    deadline = time.monotonic() + options.ready_timeout_s
    while server.poll() is None and (left_s := deadline - time.monotonic()) > 0:
        with contextlib.suppress(requests.ConnectionError, requests.Timeout):
            response = rest.post(address, request, left_s, options.api_key())
            try:
                return check(response.status_code, response.content)
            except SmokeTestFailed as failure:
                raise DeploymentError(f"{failure}: it is not served") from None
        time.sleep(0.2)
    end = (
        f"exited with code {server.returncode}"
        if server.poll() is not None
        else f"took longer than {options.ready_timeout_s} s"
    )
    raise DeploymentError(f"the server {end} before it passed the smoke test; its log is above")


def _stop(server: subprocess.Popen[bytes], timeout_s: float) -> None:
    """End the server's whole process group: when a prediction hangs, workers outlive their parent."""
    deadline = time.monotonic() + timeout_s
    try:
        _signal(server, signal.SIGTERM)
        while time.monotonic() < deadline and _signal(server, 0):
            server.poll()  # a process that nobody has waited for still counts
            time.sleep(0.05)
    finally:
        _signal(server, signal.SIGKILL)
        server.wait()


def _signal(server: subprocess.Popen[bytes], number: int) -> bool:
    """Send a signal to the process group; False if it is gone. Signal 0 only asks."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.pid, number)
        return True
    return False
