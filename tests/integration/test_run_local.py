"""`mlflow deployments run-local -t catdog`: a process here that passed its smoke test, and none left afterwards."""

from __future__ import annotations

import base64
import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.project import MODEL, REPOSITORY, URI, Project, free_port, make_project
from tests.request_formats import post
from tests.third_party_models import save

MARK = f"CATDOG_TEST_{os.getpid()}"
HURRY = ["-C", "ready_timeout_s=15"]


@contextlib.contextmanager
def run_local(project: Project, log: Path, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """The command in a process group of its own, as in a terminal; whatever is left of the group is killed."""
    with log.open("w") as stream:
        command = ["mlflow", "deployments", "run-local", "-t", "catdog", "--name", "here", *words]
        environment = dict(project.environment)
        process = subprocess.Popen(
            command, cwd=REPOSITORY, env=environment, stdout=stream, stderr=stream, start_new_session=True
        )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def await_line(process: subprocess.Popen[bytes], log: Path, line: str) -> None:
    deadline = time.monotonic() + 120
    while line not in log.read_text():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_it_serves_until_it_is_stopped(number: int, project: Project, drawn: Path, tmp_path: Path):
    port, log = free_port(), tmp_path / "log"
    with run_local(project, log, "-m", URI, "-C", f"port={port}", "-C", "workers=2") as process:
        await_line(process, log, f"here: models:/{MODEL}/2 serves at http://127.0.0.1:{port}; smoke test: {{")
        image = base64.b64encode((drawn / "test" / "cat" / "cat-0001.jpg").read_bytes()).decode()
        assert post(f"http://127.0.0.1:{port}", {"inputs": [image]})[0]["error"] is None
        processes = psutil.Process(process.pid).children(recursive=True)
        modules = [next(word for word in each.cmdline() if word.startswith("runtime.")) for each in processes]
        assert sorted(modules) == ["runtime.supervisor", "runtime.worker", "runtime.worker"]
        process.send_signal(number)
        assert process.wait(timeout=60) == 0
        assert not psutil.wait_procs(processes, timeout=10)[1]


def marked_processes() -> set[psutil.Process]:
    """Orphans included: they have lost their parent, but not their environment."""
    return {process for process in psutil.process_iter() if MARK in environment_of(process)}


def environment_of(process: psutil.Process) -> dict[str, str]:
    try:
        return process.environ()
    except psutil.Error:
        return {}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("loading", "predicting", "words", "message"),
    [
        ('raise RuntimeError("the weights are gone")', "pass", [], "RuntimeError: the weights are gone"),
        ("pass", 'raise RuntimeError("no such layer")', [], "HTTP 400: "),
        ("time.sleep(1000)", "pass", HURRY, "took longer than 15 s before it passed the smoke test"),
        ("pass", "time.sleep(1000)", HURRY, "took longer than 15 s before it passed the smoke test"),
    ],
    ids=["raises while it loads", "raises when it predicts", "hangs while it loads", "hangs when it predicts"],
)
def test_a_model_that_fails_its_smoke_test_is_not_served(
    loading: str, predicting: str, words: list[str], message: str, tmp_path: Path
):
    model, log = save(tmp_path / "broken", ["mlflow"], loading, predicting), tmp_path / "log"
    project = make_project(tmp_path / "project")
    marked = Project(project.folder, {**project.environment, MARK: "1"})
    words = ["-m", str(model), "-C", f"port={free_port()}", "-C", "workers=1", *words]
    with run_local(marked, log, *words) as process:
        assert process.wait(timeout=120) == 1, log.read_text()
        assert not marked_processes()
    assert message in (output := log.read_text())
    assert output.splitlines()[-1].startswith("Error: ")


def test_a_taken_port_is_refused(tmp_path: Path):
    project = make_project(tmp_path / "project")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        log = tmp_path / "log"
        with run_local(project, log, "-m", URI, "-C", f"port={taken.getsockname()[1]}", "-C", "workers=1") as process:
            assert process.wait(timeout=60) == 1, log.read_text()
    assert "Address already in use" in (output := log.read_text())
    assert "choose another with -C port=" in output


def test_an_address_for_other_machines_wants_a_key(tmp_path: Path):
    project, log, port = make_project(tmp_path / "project"), tmp_path / "log", free_port()
    marked = Project(project.folder, {**project.environment, MARK: "1"})
    with run_local(marked, log, "-m", URI, "-C", "host=0.0.0.0", "-C", f"port={port}") as process:
        assert process.wait(timeout=60) == 1, log.read_text()
        assert not marked_processes()
    assert log.read_text().splitlines()[-1].startswith("Error: host 0.0.0.0 lets other machines connect, and no key")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))
