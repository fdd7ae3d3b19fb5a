"""`mlflow deployments run-local -t catdog`: MLflow's own server in a process here, announced when it answers pictures."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

import requests

from catdog_pyfunc.cpu import available_cores
from catdog_pyfunc.pipeline.console import log
from catdog_pyfunc.pipeline.processes import sigterm_as_interrupt
from mlflow_catdog.deployments import build, rest
from mlflow_catdog.deployments.errors import DeploymentError
from mlflow_catdog.deployments.options import Options
from mlflow_catdog.deployments.smoke_request import request_for
from mlflow_catdog.runtime.smoke_test import WrongAnswer, check

_STOP_TIMEOUT_S = 30


def run_local(name: str, model_uri: str, flavor: str | None = None, config: Mapping[str, Any] | None = None) -> None:
    """Serve a model in a process here, in the environment as it stands, until Ctrl-C or SIGTERM.

    Args:
        name: What to call it in messages.
        model_uri: Any that MLflow knows.
        flavor: Only "python_function".
        config: Options, see `mlflow deployments help -t catdog`.

    Raises:
        DeploymentError: The port is taken, it ended, or didn't answer a picture in time; no process is left.
    """
    options = Options().changed(config, "run-local")
    address = f"http://{options.host}:{options.port}"
    _check_port(options)
    with contextlib.suppress(KeyboardInterrupt), sigterm_as_interrupt(), build.fetched(model_uri, flavor) as model:
        with _server(str(model.folder), options) as server:
            answer = _await_answer(server, address, request_for(model.folder), options.ready_timeout_s)
            log(f"{name}: {model.version} answers at {address}/invocations: {json.dumps(answer)}")
            code = server.wait()
        raise DeploymentError(f"{name} ended with exit code {code}; its log stands above")


def _check_port(options: Options) -> None:
    """So that no stranger who listens there already answers for this model."""
    try:
        socket.create_server((options.host, options.port)).close()
    except OSError as wrong:
        raise DeploymentError(f"{options.host}:{options.port} can't be had ({wrong}): give another by -C port=…") from None


@contextlib.contextmanager
def _server(folder: str, options: Options) -> Iterator[subprocess.Popen[bytes]]:
    words = [sys.executable, "-m", "mlflow", "models", "serve", "-m", folder, "--env-manager", "local"]
    words += ["-h", options.host, "-p", str(options.port), "-t", str(options.request_timeout_s)]
    words += ["-w", str(options.workers or available_cores())]
    settings = {"SERVING_MODEL_CONFIG": options.model_config} if options.model_config else {}
    server = subprocess.Popen(words, env={**os.environ, **settings}, start_new_session=True)
    try:
        yield server
    finally:
        _stop(server)


def _await_answer(server: subprocess.Popen[bytes], address: str, question: Mapping[str, Any], timeout_s: int) -> Any:
    deadline = time.monotonic() + timeout_s
    while server.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(requests.ConnectionError):
            said = rest.post(address, question, deadline - time.monotonic())
            try:
                return check(said.status_code, said.content)
            except WrongAnswer as wrong:
                raise DeploymentError(f"{wrong}: it isn't served") from None
        time.sleep(0.2)
    said_of = f"ended with {server.returncode}" if server.poll() is not None else f"took longer than {timeout_s} s"
    raise DeploymentError(f"the server {said_of} before it answered a picture; its log stands above")


def _stop(server: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, number)  # its workers, too
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(_STOP_TIMEOUT_S)
            return
