"""What runs in a deployment's containers, without one: loading, draining, hand-over of the socket."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from mlflow_catdog.runtime import app, internals, listener, supervisor, worker

from tests.unit.served import FakeModel
from tests.waiting import await_condition

Message = dict[str, Any]


def started(
    monkeypatch: pytest.MonkeyPatch, folder: Path, prediction: object, **environment: str
) -> tuple[app.ServingApp, list[Message], list[str]]:
    """An application whose model responds with one prediction; what its lifespan reported."""

    async def scoring(scope: Any, receive: Any, send: Any) -> None:
        assert (scope["path"], (await receive())["body"]) == ("/invocations", b"{}")
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": json.dumps({"predictions": [prediction]}).encode()})

    (folder / "smoke_request.json").write_text("{}")
    (folder / "served.json").write_text(json.dumps({"image_column": "image", "name": "cats", "version": "3"}))
    monkeypatch.chdir(folder)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(internals, "load_model", lambda model: FakeModel())
    monkeypatch.setattr(internals, "scoring_app", lambda model: scoring)
    sent: list[Message] = []
    ready: list[str] = []

    async def receive() -> Message:
        return {"type": "lifespan"}

    async def send(message: Any) -> None:
        sent.append(message)

    application = app.ServingApp("model", 1, lambda: ready.append("ready"))
    asyncio.run(application({"type": "lifespan"}, receive, send))
    return application, sent, ready


def test_a_worker_is_ready_once_its_model_has_passed_the_smoke_test(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    _, sent, ready = started(monkeypatch, tmp_path, "cat")
    assert [message["type"] for message in sent] == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert ready == ["ready"]


def test_a_model_that_fails_the_smoke_test_is_never_ready(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    _, sent, ready = started(monkeypatch, tmp_path, {"error": "upside down"})
    assert sent == [
        {"type": "lifespan.startup.failed", "message": "SmokeTestFailed: the model cannot read a valid image: upside down"}
    ]
    assert not ready


def test_a_setting_that_cannot_be_used_is_what_the_log_ends_with(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    _, sent, ready = started(monkeypatch, tmp_path, "cat", CATDOG_MAX_FILES="many")
    (failed,) = sent
    assert failed["type"] == "lifespan.startup.failed"
    assert "ValueError: CATDOG_MAX_FILES='many' cannot be used" in failed["message"]
    assert not ready


def get(port: int, path: str) -> int:
    """Status of a request over a connection of its own."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=20)) as connection:
        connection.request("GET", path)
        return connection.getresponse().status


def test_a_worker_takes_requests_until_load_balancers_have_noticed_that_it_drains(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    delay_s, sleep = 1000.0, asyncio.sleep
    application, _, _ = started(monkeypatch, tmp_path, "cat")

    async def scenario() -> None:
        noticed = asyncio.Event()
        monkeypatch.setattr(asyncio, "sleep", lambda seconds: noticed.wait() if seconds == delay_s else sleep(seconds))
        server = worker.DrainingServer(uvicorn.Config(application, lifespan="off", log_level="error"), delay_s)
        listening = supervisor._bound_socket("127.0.0.1", 0)
        port = listening.getsockname()[1]
        with pytest.raises(ConnectionRefusedError):
            await asyncio.to_thread(get, port, "/ping")
        serving = asyncio.create_task(server.serve([listening]))
        while not server.started:
            await sleep(0.02)
        server.should_exit = True
        while not application._gateway.draining:
            await sleep(0.02)
        assert await asyncio.to_thread(get, port, "/ping") == 503
        assert await asyncio.to_thread(get, port, "/v2") == 200
        noticed.set()
        await serving
        with pytest.raises(ConnectionRefusedError):
            await asyncio.to_thread(get, port, "/ping")

    asyncio.run(asyncio.wait_for(scenario(), timeout=60))


@pytest.fixture
def listening(tmp_path: Path) -> Iterator[tuple[int, Path, subprocess.Popen[bytes]]]:
    """The listener's process as a container runs it: its port, its socket's path, the process."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    words = [sys.executable, "-c", Path(listener.__file__).read_text(), str(port), str(tmp_path / "socket")]
    process = subprocess.Popen(words)
    try:
        yield port, tmp_path / "socket", process
    finally:
        process.kill()
        process.wait()


def test_the_listener_hands_its_socket_to_every_client_and_its_end_is_seen(
    listening: tuple[int, Path, subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
):
    port, path, process = listening
    monkeypatch.setattr(supervisor, "PORT", 0)  # of the socket for the HEALTHCHECK
    clients = [supervisor._open_sockets(str(path)) for _ in range(2)]
    for _, (shared, _) in clients:  # the old model's container, then the new one's
        with socket.create_connection(("127.0.0.1", port)) as user:
            accepted, _ = shared.accept()
            accepted.sendall(b"hello")
            assert user.recv(5) == b"hello"
            accepted.close()
        shared.close()
    waiting = socket.create_connection(("127.0.0.1", port))  # nobody accepts now: it waits in the queue
    waiting.close()
    assert not any(supervisor._has_disconnected(connection) for connection, _ in clients if connection)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 0
    for connection, (_, local) in clients:
        assert connection is not None
        await_condition(lambda connection=connection: supervisor._has_disconnected(connection))
        connection.close()
        local.close()
