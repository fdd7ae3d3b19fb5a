"""Undocumented behaviour of MLflow's scoring server and uvicorn that a deployment's containers rely on.

One of these fails when a new version changes it; `mlflow_catdog.runtime.internals` is the place to mend.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
import uvicorn
import uvicorn.server
from mlflow.pyfunc import scoring_server
from mlflow_catdog.deployments import build
from mlflow_catdog.runtime import STARTUP_FAILED, internals, smoke_test

from catdog_pyfunc.pipeline.processes import free_port
from tests.third_party_models import save
from tests.waiting import await_condition


@contextlib.contextmanager
def supervised(model: Path, context: Path, **environment: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The files of an image, run without one: the supervisor's process and its address."""
    build.write_context(model, context)
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "runtime.supervisor"],
        cwd=context,
        env={**os.environ, "CATDOG_LISTEN": f"127.0.0.1:{port}", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process, f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.communicate(timeout=60)


def test_the_installed_versions_have_all_that_is_used():
    assert internals.incompatibilities() == []


def test_versions_without_it_are_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delattr(scoring_server, "init")
    monkeypatch.delattr(uvicorn.server, "ServerState")
    mlflow, server = internals.incompatibilities()
    assert mlflow.endswith("has no usable scoring server: log the model again with mlflow>=3")
    assert server == f"uvicorn {uvicorn.__version__} cannot be drained: change the model's requirement to uvicorn>=0.30"


def test_the_scoring_server_reads_the_same_variables():
    from catdog_pyfunc.internals import SERVING_MODEL_CONFIG

    assert scoring_server._SERVER_MODEL_PATH == internals._MODEL_PATH
    assert scoring_server.SERVING_MODEL_CONFIG == SERVING_MODEL_CONFIG


def test_a_container_serves_limits_bodies_and_answers_what_is_in_flight_when_it_stops(tmp_path: Path):
    calls = tmp_path / "calls"
    model = save(tmp_path / "slow", ["mlflow-skinny"], predicting=f"open({str(calls)!r}, 'a').write('.'); time.sleep(0.5)")
    limit = {"CATDOG_WORKERS": "1", "CATDOG_MAX_BODY_MB": "0.5", "MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT": "60"}
    with supervised(model, tmp_path / "context", **limit) as (process, address):
        request = (tmp_path / "context" / "smoke_request.json").read_text()
        body, headers = json.loads(request), {"Content-Type": "application/json"}
        assert smoke_test.check(*smoke_tested(address, request)) == {"label": "cat", "confidence": 0.5}
        assert requests.post(f"{address}/predict", data=b"x" * 200, timeout=60).json() == {
            "predictions": [{"label": "cat", "confidence": 0.5}]
        }
        for large in (bytes(2**20), (bytes(2**16) for _ in range(16))):
            assert requests.post(f"{address}/invocations", data=large, headers=headers, timeout=60).status_code == 413
        refused = requests.post(f"{address}/invocations", json={"nonsense": 1}, timeout=60)
        assert (refused.status_code, "message" in refused.json()) == (400, True)

        text = json.dumps(body)
        with socket.create_connection(("127.0.0.1", int(address.rsplit(":", 1)[1]))) as user:
            head = f"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(text)}"
            user.sendall(f"{head}\r\n\r\n{text}".encode())
            await_condition(lambda: len(calls.read_text()) == 4)  # after two smoke tests and one image: now it is in flight
            process.send_signal(signal.SIGTERM)
            response = b"".join(iter(lambda: user.recv(65536), b""))
        assert response.startswith(b"HTTP/1.1 200")
        assert b"connection: close" in response
        log, _ = process.communicate(timeout=60)
        assert process.returncode == 0
        lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
        assert [(line["path"], line["status"]) for line in lines[-1:]] == [("/invocations", 200)]


def smoke_tested(address: str, request: str) -> tuple[int, bytes]:
    """Send the smoke request as soon as the supervisor listens."""
    responses: list[requests.Response] = []

    def responds() -> bool:
        headers = {"Content-Type": "application/json"}
        with contextlib.suppress(requests.ConnectionError):
            responses.append(requests.post(f"{address}/invocations", data=request, headers=headers, timeout=60))
        return bool(responses)

    await_condition(responds)
    return responses[0].status_code, responses[0].content


def test_a_model_that_cannot_load_ends_its_worker_with_the_code_that_the_supervisor_knows(tmp_path: Path):
    model = save(tmp_path / "broken", ["mlflow-skinny"], loading='raise RuntimeError("the weights are gone")')
    with supervised(model, tmp_path / "context", CATDOG_WORKERS="1") as (process, _):
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert f"exited with code {STARTUP_FAILED} before it was ready" in output
    assert "RuntimeError: the weights are gone" in output
