"""The supervisor of a model container's workers: none serves before all are ready, and one that dies is replaced."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mlflow_catdog.runtime import STARTUP_FAILED, metrics, supervisor

from tests.waiting import await_condition


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[int, str], supervisor.Workers]]:
    """Makes workers that run a script instead of a model; its arguments are the descriptors that a worker gets."""
    package = tmp_path / "scripted"
    package.mkdir()
    (package / "__init__.py").touch()
    monkeypatch.setattr(supervisor, "__package__", "scripted")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv(metrics.MULTIPROCESS_DIR, str(tmp_path))  # as `supervisor.main` sets it
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
