"""deploy/tracking: backup and restore, with whatever may go wrong in between."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from subprocess import DEVNULL, PIPE
from typing import IO

import docker.errors
import mlflow
import pytest
from docker import DockerClient
from docker.models.containers import Container

from tests.docker.backups import Site, everything, named, settings, train_and_promote
from tests.docker.conftest import Stack
from tests.docker.test_tracking import ADMIN, Team, served_row, signing_in
from tests.waiting import await_condition


class Running:
    """A backup or restore that isn't waited for, with pipes."""

    def __init__(self, client: DockerClient, site: Site, service: str) -> None:
        self._client, self._name = client, named(f"{site.purpose}-{service}")
        self.process = site.start(service, "--name", self._name, stdin=PIPE, stdout=PIPE, stderr=DEVNULL)

    @property
    def stdin(self) -> IO[bytes]:
        assert self.process.stdin
        return self.process.stdin

    @property
    def stdout(self) -> IO[bytes]:
        assert self.process.stdout
        return self.process.stdout

    @property
    def container(self) -> Container:
        return self._client.containers.get(self._name)

    def holds(self, path: str) -> bool:
        with contextlib.suppress(docker.errors.APIError):
            return bool(self.container.exec_run(["test", "-s", path]).exit_code == 0)
        return False

    def ended(self) -> int:
        """Its exit status, once its container has gone, too."""
        with contextlib.suppress(BrokenPipeError):
            self.stdin.close()
        code = self.process.wait(timeout=60)
        self.stdout.close()
        await_condition(lambda: not self._client.containers.list(all=True, filters={"name": self._name}))
        return code


@dataclass(frozen=True)
class Empty(Site):
    """A new machine: nothing but a database without a table has started."""

    stack: Stack
    client: DockerClient

    def query(self, sql: str, *, wait: bool = True) -> str:
        database = self.client.containers.get(self.stack.container("database"))
        psql = ["psql", "-h", "127.0.0.1", "-U", "mlflow", "-qAtc", sql, "mlflow"]
        done = database.exec_run(psql, environment={"PGPASSWORD": self.settings["CATDOG_DB_PASSWORD"]}, detach=not wait)
        return done.output.decode().strip() if wait else ""

    def is_empty(self) -> bool:
        """Whether there is no table, and no artifact."""
        look = self.start("backup", "--entrypoint", "ls -A /artifacts", stdin=DEVNULL, stdout=PIPE)
        files, _ = look.communicate(timeout=60)
        return (
            look.returncode == 0
            and files == b""
            and self.query("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == "0"
        )


HERE = Site("backup", settings())


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory, drawn: Path, weights: Path) -> Iterator[Team]:
    """One version trained and promoted, and a run with more in it than pipes and buffers hold."""
    folder = tmp_path_factory.mktemp("backup")
    with HERE.running() as stack:
        team = HERE.team(stack, folder)
        train_and_promote(team, drawn, weights)
        (folder / "größe x.bin").write_bytes(os.urandom(64 << 20))
        with signing_in(team) as signed_in:
            client = signed_in(ADMIN)
            run = client.create_run(client.create_experiment("large"))
            client.log_artifact(run.info.run_id, str(folder / "größe x.bin"), "a folder")
        yield team


@dataclass(frozen=True)
class Whole:
    """A backup, made while the server ran, and what the server had."""

    file: Path
    content: dict[str, object]


@pytest.fixture(scope="module")
def whole(team: Team, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    file, started = tmp_path_factory.mktemp("whole") / "catdog-backup.tar.zst", time.monotonic()
    status, output = HERE.backup(file)
    assert status == 0, output
    assert output.endswith("backup: complete\n")
    print(f"\nbackup of {file.stat().st_size / 1e6:.0f} MB in {time.monotonic() - started:.1f} s")
    return Whole(file, everything(team))


@pytest.fixture
def empty(docker_client: DockerClient) -> Iterator[Empty]:
    site = Site("empty", settings())
    with site.running("up -d --wait database") as stack:
        yield Empty(site.purpose, site.settings, stack, docker_client)


def test_backup_destruction_and_restore_lose_nothing(
    team: Team, whole: Whole, docker_client: DockerClient, drawn: Path, tmp_path: Path
):
    image_bytes = (drawn / "test" / "cat" / "cat-0001.jpg").read_bytes()
    row = served_row(team, image_bytes, tmp_path, ADMIN)
    team.stack.execute("down -v")
    assert not docker_client.volumes.list(filters={"name": named("backup")})
    status, output = HERE.restore(whole.file)
    assert status == 0, output
    assert output.endswith("restore: complete\n")
    team.start()
    assert everything(team) == whole.content
    assert served_row(team, image_bytes, tmp_path, ADMIN) == row
    promoted = team.project(ADMIN).run("-e", "promote", "-P", "version=1", "-P", "min_accuracy=0", "-P", "alias=staging")
    assert promoted.returncode == 0, promoted.stderr  # the server writes to both as it did before


def test_restore_touches_no_data(team: Team, whole: Whole):
    before = everything(team)
    status, output = HERE.restore(whole.file)
    assert status != 0
    assert "nothing was changed: the database has" in output
    assert "down -v" in output
    assert everything(team) == before


def test_what_is_not_a_whole_backup_changes_nothing(whole: Whole, empty: Empty, docker_client: DockerClient, tmp_path: Path):
    content = whole.file.read_bytes()
    middle = len(content) // 2
    (tmp_path / "a.txt").write_text("hello")
    subprocess.run(["tar", "-cf", "foreign.tar", "a.txt"], cwd=tmp_path, check=True)
    cases = {
        "empty": b"",
        "no archive": b"hello\n" * 1000,
        "another archive": (tmp_path / "foreign.tar").read_bytes(),
        "half": content[:middle],
        "all but a byte": content[:-1],
        "another byte": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
    }
    for case, damaged in cases.items():
        (tmp_path / "damaged").write_bytes(damaged)
        status, output = empty.restore(tmp_path / "damaged")
        assert status != 0, case
        assert "nothing was changed: this is no backup, or it is cut off or damaged" in output, case
        assert empty.is_empty(), case


def test_a_backup_without_data_fails(empty: Empty, tmp_path: Path):
    status, output = empty.backup(tmp_path / "file")
    assert status != 0
    assert "Is it the right project" in output
    assert (tmp_path / "file").read_bytes() == b""


@pytest.mark.parametrize("cut", ["kill", "interrupt"])
def test_a_backup_that_is_cut_off_fails_and_cannot_be_restored(
    cut: str, team: Team, empty: Empty, docker_client: DockerClient, tmp_path: Path
):
    running = Running(docker_client, HERE, "backup")
    start = running.stdout.read(1 << 20)
    assert running.container.attrs["HostConfig"]["LogConfig"]["Type"] == "none"  # or Docker would keep a copy of it
    if cut == "kill":  # beside what reads: Docker waits until its output has gone
        threading.Thread(target=running.container.kill).start()
    else:
        running.process.send_signal(signal.SIGINT)
    (tmp_path / "cut").write_bytes(start + running.stdout.read())
    assert running.ended() != 0
    assert empty.restore(tmp_path / "cut")[0] != 0
    assert empty.is_empty()


def test_a_full_disk_fails_the_backup(team: Team):
    assert HERE.backup(Path("/dev/full"))[0] != 0


def test_a_killed_restore_is_repeated(team: Team, whole: Whole, empty: Empty, docker_client: DockerClient, tmp_path: Path):
    """Killed as it reads, and as it writes to the database."""
    content = whole.file.read_bytes()
    reading = Running(docker_client, empty, "restore")
    reading.stdin.write(content[: len(content) // 2])
    reading.stdin.flush()
    await_condition(lambda: reading.holds("/artifacts/.restoring/database.sql"))
    reading.container.kill()
    assert reading.ended() != 0

    # A table of the same name that another transaction has created makes the database wait.
    empty.query("BEGIN; CREATE TABLE alembic_version (x int); SELECT pg_sleep(600)", wait=False)
    states = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = '{}' AND datname = 'mlflow'"
    await_condition(lambda: empty.query(states.format("Timeout")) == "1")
    writing = Running(docker_client, empty, "restore")
    writing.stdin.write(content)
    writing.stdin.close()
    await_condition(lambda: empty.query(states.format("Lock")) == "1", 60)
    writing.container.kill()
    assert writing.ended() != 0
    empty.query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event = 'PgSleep'")

    status, output = empty.restore(whole.file)
    assert status == 0, output
    assert everything(empty.team(empty.stack, tmp_path)) == whole.content


def test_a_backup_during_runs_has_every_file_that_it_names(team: Team, empty: Empty, tmp_path: Path):
    with signing_in(team) as signed_in, logging_runs(signed_in(ADMIN), tmp_path) as logged:
        await_condition(lambda: logged() > 5)
        assert HERE.backup(tmp_path / "file")[0] == 0
    assert empty.restore(tmp_path / "file")[0] == 0
    with signing_in(empty.team(empty.stack, tmp_path)) as signed_in:
        client = signed_in(ADMIN)
        (experiment,) = client.search_experiments(filter_string="name = 'during'")
        runs = client.search_runs([experiment.experiment_id])
        assert 5 < len(runs) < logged()
        for run in runs:
            tagged = set(run.data.tags.get("files", "").split())
            assert tagged <= {entry.path for entry in client.list_artifacts(run.info.run_id)}


@contextlib.contextmanager
def logging_runs(client: mlflow.MlflowClient, folder: Path) -> Iterator[Callable[[], int]]:
    """Meanwhile, runs log files and then name them in a tag; yields their number."""
    experiment, stop, runs = client.create_experiment("during"), threading.Event(), []
    (folder / "0.bin").write_bytes(os.urandom(1 << 20))
    (folder / "1.bin").write_bytes(os.urandom(1 << 20))

    def log() -> None:
        while not stop.is_set():
            run = client.create_run(experiment).info.run_id
            runs.append(run)
            for files in ("0.bin", "1.bin"):
                client.log_artifact(run, str(folder / files))
                client.set_tag(run, "files", "0.bin 1.bin" if files == "1.bin" else "0.bin")

    thread = threading.Thread(target=log)
    thread.start()
    try:
        yield lambda: len(runs)
    finally:
        stop.set()
        thread.join(60)
