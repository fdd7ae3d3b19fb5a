"""What runs in a deployment's containers, without one: body limit, draining, hand-over of the socket, supervision."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from mlflow_catdog.runtime import STARTUP_FAILED, app, internals, listener, supervisor, worker

from tests.waiting import await_condition

Message = dict[str, Any]


async def echo_size(scope: Any, receive: Any, send: Any) -> None:
    """An application that reads the whole body and responds with its size."""
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ConnectionError("the client is gone")
        size, more = size + len(message["body"]), message["more_body"]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(size).encode()})


def respond(
    application: Any, chunks: list[bytes], declared: int | None = None, path: str = "/invocations"
) -> tuple[int, bytes, int, list[Any]]:
    """Status, body, chunks that were read, and headers of the response to one request."""
    sent: list[Message] = []
    unread = list(chunks)

    async def receive() -> Message:
        return {"type": "http.request", "body": unread.pop(0), "more_body": bool(unread)}

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [] if declared is None else [(b"content-length", str(declared).encode())]
    asyncio.run(application({"type": "http", "path": path, "headers": headers}, receive, send))
    start, *bodies = sent
    return (
        start["status"],
        b"".join(message["body"] for message in bodies),
        len(chunks) - len(unread),
        start["headers"],
    )


def test_a_body_up_to_the_limit_is_passed_on():
    assert respond(app.limit_body(echo_size, 1), [bytes(2**19), bytes(2**19)], 2**20)[:2] == (200, str(2**20).encode())


@pytest.mark.parametrize(("declared", "read"), [(2**20 + 1, 0), (None, 2)])
def test_a_larger_body_gets_a_413_as_early_as_possible(declared: int | None, read: int):
    chunks = [bytes(2**19), bytes(2**19 + 1), bytes(2**19)]
    status, body, chunks_read, _ = respond(app.limit_body(echo_size, 1), chunks, declared)
    assert (status, chunks_read) == (413, read)
    assert json.loads(body)["message"] == "the request body is larger than 1 MiB"


def test_the_limit_lets_the_lifespan_pass():
    seen: list[str] = []

    async def record(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["type"])

    lifespan: Any = app.limit_body(record, 1)
    asyncio.run(lifespan({"type": "lifespan"}, None, None))
    assert seen == ["lifespan"]


def test_an_application_that_fails_within_the_limit_still_fails():
    async def failing(scope: Any, receive: Any, send: Any) -> None:
        raise RuntimeError("no such layer")

    with pytest.raises(RuntimeError, match="no such layer"):
        respond(app.limit_body(failing, 1), [b""])


def started(
    monkeypatch: pytest.MonkeyPatch, folder: Path, prediction: object
) -> tuple[app.ScoringApp, list[Message], list[str]]:
    """A scoring app around a server that responds with one prediction; what its lifespan reported."""

    async def scoring(scope: Any, receive: Any, send: Any) -> None:
        assert (scope["path"], (await receive())["body"]) == ("/invocations", b"{}")
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": json.dumps({"predictions": [prediction]}).encode()})

    (folder / "smoke_request.json").write_text("{}")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(internals, "scoring_app", lambda model: scoring)
    sent: list[Message] = []
    ready: list[str] = []

    async def receive() -> Message:
        return {"type": "lifespan"}

    async def send(message: Any) -> None:
        sent.append(message)

    application = app.ScoringApp("model", 1, lambda: ready.append("ready"))
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


def test_a_draining_worker_closes_each_connection_after_its_response(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    application, _, _ = started(monkeypatch, tmp_path, "cat")
    application._app = echo_size
    assert respond(application, [b"x"])[3] == []
    application.draining = True
    assert respond(application, [b"x"])[3] == [(b"connection", b"close")]


@pytest.mark.parametrize("path", ["/ping", "/health"])
def test_a_draining_worker_fails_health_checks(path: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    application, _, _ = started(monkeypatch, tmp_path, "cat")
    application._app = echo_size
    assert respond(application, [b""], path=path)[0] == 200
    application.draining = True
    assert respond(application, [b""], path=path)[0] == 503
    assert respond(application, [b""])[0] == 200


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
    application._app = echo_size

    async def scenario() -> None:
        noticed = asyncio.Event()
        monkeypatch.setattr(asyncio, "sleep", lambda seconds: noticed.wait() if seconds == delay_s else sleep(seconds))
        server = worker.DrainingServer(uvicorn.Config(application, lifespan="off", log_level="error"), delay_s)
        monkeypatch.setattr(supervisor, "PORT", 0)
        listening = supervisor._bound_socket("127.0.0.1")
        port = listening.getsockname()[1]
        with pytest.raises(ConnectionRefusedError):
            await asyncio.to_thread(get, port, "/ping")
        serving = asyncio.create_task(server.serve([listening]))
        while not server.started:
            await sleep(0.02)
        server.should_exit = True
        while not application.draining:
            await sleep(0.02)
        assert await asyncio.to_thread(get, port, "/ping") == 503
        assert await asyncio.to_thread(get, port, "/invocations") == 200
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
    monkeypatch.setattr(supervisor, "PORT", 0)
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


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[int, str], supervisor.Workers]]:
    """Makes workers that run a script instead of a model; its arguments are the descriptors that a worker gets."""
    package = tmp_path / "scripted"
    package.mkdir()
    (package / "__init__.py").touch()
    monkeypatch.setattr(supervisor, "__package__", "scripted")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    made: list[supervisor.Workers] = []

    def make(number: int, script: str) -> supervisor.Workers:
        head = "import os, sys, time\n*_, ready, go = map(int, sys.argv[1:])\n"
        (package / "worker.py").write_text(head + script)
        made.append(supervisor.Workers(number, [socket.create_server(("127.0.0.1", 0))]))
        return made[-1]

    yield make
    for group in made:
        group.stop()


def test_no_worker_takes_requests_before_all_are_ready(
    workers: Callable[[int, str], supervisor.Workers], tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    late, went = tmp_path / "late", tmp_path / "went"
    script = (
        f"first = os.open({str(tmp_path / 'first')!r}, os.O_CREAT | os.O_RDWR)\n"
        f"import fcntl, pathlib\n"
        f"try:\n    fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)\n"
        f"except OSError:\n    while not os.path.exists({str(late)!r}): time.sleep(0.02)\n"
        f"os.write(ready, b'.'); os.read(go, 1)\n"
        f"pathlib.Path({str(went)!r} + str(os.getpid())).touch(); time.sleep(60)\n"
    )
    group = workers(2, script)
    await_condition(lambda: group.supervise() and group._reports == 1)
    assert group.supervise()
    assert group._go is not None
    assert not list(tmp_path.glob("went*"))
    late.touch()
    await_condition(lambda: group.supervise() and len(list(tmp_path.glob("went*"))) == 2)
    assert "ready: 2 workers passed the smoke test" in capfd.readouterr().out


def test_a_worker_that_dies_is_replaced(
    workers: Callable[[int, str], supervisor.Workers], capfd: pytest.CaptureFixture[str]
):
    group = workers(1, "os.write(ready, b'.'); os.read(go, 1); time.sleep(60)\n")
    await_condition(lambda: group.supervise() and group._go is None)
    (first,) = (process.pid for process in group._processes)
    os.kill(first, signal.SIGKILL)
    await_condition(lambda: group.supervise() and group._processes[0].pid != first)
    assert f"worker {first} exited with code -9: replacing it" in capfd.readouterr().out


@pytest.mark.parametrize("code", [STARTUP_FAILED, 7])
def test_a_worker_that_cannot_start_ends_the_container(
    code: int, workers: Callable[[int, str], supervisor.Workers], capfd: pytest.CaptureFixture[str]
):
    group = workers(1, f"sys.exit({code})")
    await_condition(lambda: not group.supervise())
    assert f"exited with code {code} before it was ready" in capfd.readouterr().out


def test_a_replacement_that_cannot_start_ends_the_container(
    workers: Callable[[int, str], supervisor.Workers], tmp_path: Path
):
    once = str(tmp_path / "once")
    script = (
        f"if os.path.exists({once!r}): sys.exit({STARTUP_FAILED})\n"
        f"open({once!r}, 'w'); os.write(ready, b'.'); os.read(go, 1)\n"
    )
    group = workers(1, script)
    await_condition(lambda: not group.supervise())


def test_stopping_waits_for_the_workers(workers: Callable[[int, str], supervisor.Workers], tmp_path: Path):
    done = tmp_path / "done"
    script = (
        "import signal\n"
        f"def end(*_): time.sleep(0.3); open({str(done)!r}, 'w'); sys.exit()\n"
        "signal.signal(signal.SIGTERM, end); os.write(ready, b'.'); time.sleep(60)\n"
    )
    group = workers(1, script)
    await_condition(lambda: group.supervise() and group._reports == 1)
    group.stop()
    assert done.exists()


def test_stopping_ends_workers_that_are_not_serving_yet(workers: Callable[[int, str], supervisor.Workers], tmp_path: Path):
    script = (
        "import pathlib, signal\n"
        "signal.signal(signal.SIGTERM, lambda *_: None)  # uvicorn's handler has no effect while it starts\n"
        f"pathlib.Path({str(tmp_path / 'started')!r} + str(os.getpid())).touch(); time.sleep(20)\n"
    )
    group = workers(2, script)
    await_condition(lambda: group.supervise() and len(list(tmp_path.glob("started*"))) == 2)
    group.stop()
    assert [process.returncode for process in group._processes] == [-signal.SIGKILL] * 2
