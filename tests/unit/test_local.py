"""`run-local` without a model: a server that never responds, and one whose workers outlive it."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import psutil
import pytest
from mlflow.exceptions import MlflowException
from mlflow_catdog.deployments import local
from mlflow_catdog.deployments.options import Options

from tests.waiting import await_condition

_STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(600)"
_PARENT = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {_STUBBORN!r}]); time.sleep(600)"


@pytest.fixture
def server() -> Iterator[subprocess.Popen[bytes]]:
    """A process with a child that ignores SIGTERM."""
    words = [sys.executable, "-c", _PARENT]
    with subprocess.Popen(words, start_new_session=True, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            yield process
        finally:
            local._signal(process, signal.SIGKILL)


def test_a_model_that_hangs_in_its_first_prediction_is_a_deployment_error_in_time(server: subprocess.Popen[bytes]):
    started = time.monotonic()
    with socket.create_server(("127.0.0.1", 0)) as silent:  # connections wait in its queue: the request is sent
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(MlflowException, match="the server took longer than 1 s before it passed the smoke test"):
            local._await_prediction(server, address, {}, Options(ready_timeout_s=1))
    assert time.monotonic() - started < 10


def test_stopping_ends_workers_that_outlive_their_parent(server: subprocess.Popen[bytes]):
    (child,) = psutil.Process(server.pid).children()
    local._stop(server, timeout_s=0.5)
    await_condition(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)
    assert server.returncode == -signal.SIGTERM


def test_an_exited_server_fails_at_once():
    with subprocess.Popen([sys.executable, "-c", "import sys; sys.exit(7)"], start_new_session=True) as exited:
        pass
    with pytest.raises(MlflowException, match="the server exited with code 7 before it passed the smoke test"):
        local._await_prediction(exited, "http://127.0.0.1:1", {}, Options())
