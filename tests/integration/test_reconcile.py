"""Writers of the audit log that are killed, or write at once, on real MLflow servers with SQLite and PostgreSQL.

The same logic is tested in milliseconds on a registry in memory: tests/unit/test_reconcile.py.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator

import mlflow
import pytest

from catdog_pyfunc.pipeline.processes import free_port
from catdog_pyfunc.pipeline.registry import audit_log, reconcile
from catdog_pyfunc.pipeline.registry.audit_log import open_audit_log
from catdog_pyfunc.pipeline.registry.state import replay
from tests.integration.crash_worker import DONE, FAILED, LOST, promote
from tests.project import REPOSITORY, running

pytestmark = pytest.mark.slow
MAX_STEPS = 40
Jobs = Callable[..., list[int]]


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of `mlflow server`."""
    folder, port = tmp_path_factory.mktemp("server"), free_port()
    store = f"sqlite:///{folder / 'mlflow.db'}"
    if request.param == "postgresql":
        store = os.environ.get("CATDOG_POSTGRESQL", "")
        if not store:
            pytest.skip("CATDOG_POSTGRESQL is not set: it names an empty PostgreSQL database, as an SQLAlchemy URL")
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store, "--workers", "1"]
    command += ["--artifacts-destination", str(folder / "artifacts"), "--host", "127.0.0.1", "--port", str(port)]
    with running(command, f"http://127.0.0.1:{port}/health", folder / "log", cwd=folder):
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def do_at_once(server: str) -> Iterator[Jobs]:
    """Run jobs at once, each in a process of its own; their exit codes."""
    worker = subprocess.Popen(
        [sys.executable, "-m", "tests.integration.crash_worker", server],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def run(*jobs: dict[str, object]) -> list[int]:
        assert worker.stdin
        assert worker.stdout
        worker.stdin.write(json.dumps(jobs) + "\n")
        worker.stdin.flush()
        codes: list[int] = json.loads(worker.stdout.readline())
        assert FAILED not in codes
        return codes

    with worker:
        yield run
        worker.kill()


@pytest.fixture
def client(server: str) -> Iterator[mlflow.MlflowClient]:
    mlflow.set_tracking_uri(server)
    yield mlflow.MlflowClient()
    mlflow.set_tracking_uri(None)


@pytest.fixture
def name(client: mlflow.MlflowClient) -> str:
    """A registered model of four versions."""
    return register(client, 4)


def register(client: mlflow.MlflowClient, versions: int) -> str:
    name = f"model {uuid.uuid4().hex[:8]}"
    client.create_registered_model(name)
    run = client.create_run("0")
    client.update_run(run.info.run_id, status="FINISHED")
    for _ in range(versions):
        client.create_model_version(name, f"{run.info.artifact_uri}/model", run.info.run_id)
    return name


def aliases(client: mlflow.MlflowClient, name: str) -> dict[str, str]:
    return {alias: str(version) for alias, version in client.get_registered_model(name).aliases.items()}


def assert_consistent(client: mlflow.MlflowClient, name: str) -> None:
    """Audit log, aliases and tags agree, and nothing is left to do."""
    entries, done = open_audit_log(name).read()
    state = replay(entries)
    assert done
    assert aliases(client, name) == state.aliases
    assert {number: client.get_model_version(name, number).tags["stage"] for number in state.stages} == state.stages
    unclaimed = client.search_experiments(filter_string=f"name LIKE '{audit_log._UNCLAIMED}%'")
    assert unclaimed == []
    (run,) = client.search_runs([client.get_experiment_by_name(f"{name} history").experiment_id])
    assert run.info.status == "FINISHED"


@pytest.mark.parametrize("move", ["first", "next", "rollback"])
def test_a_move_killed_before_any_request_is_finished_by_the_next_command_or_was_never_made(
    move: str, client: mlflow.MlflowClient, do_at_once: Jobs, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(audit_log, "_UNCLAIMED_TIMEOUT_S", 0.0)  # no other writer is about to claim it
    monkeypatch.setattr(reconcile, "_GRACE_S", 0.0)
    outcomes = []
    for step in range(MAX_STEPS):
        name = register(client, 2)
        if move != "first":
            promote(name, "1")
            promote(name, "2", "staging" if move == "next" else "production")
        before = len(reconcile.history(name)) if move != "first" else 0
        do = "rollback" if move == "rollback" else "promote"
        (code,) = do_at_once({"do": do, "name": name, "version": "2", "die_before": step})
        outcomes.append(len(reconcile.history(name)) - before)
        assert_consistent(client, name)
        if code == DONE:
            break
        assert code == -signal.SIGKILL
    assert code == DONE
    assert outcomes == sorted(outcomes)
    assert set(outcomes) == {0, 1}


def test_of_several_promotions_at_once_one_wins_and_the_others_say_so(
    client: mlflow.MlflowClient, name: str, do_at_once: Jobs
):
    for turn in range(3):
        jobs = [{"do": "promote", "name": name, "version": version} for version in ("1", "2", "3", "4")]
        assert sorted(do_at_once(*jobs)) == [DONE, LOST, LOST, LOST]
        assert len(reconcile.history(name)) == turn + 1
        assert_consistent(client, name)


def test_an_audit_log_that_several_create_at_once_exists_once(
    client: mlflow.MlflowClient, name: str, do_at_once: Jobs, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(audit_log, "_UNCLAIMED_TIMEOUT_S", 0.0)
    assert do_at_once(*[{"do": "open", "name": name}] * 6) == [DONE] * 6
    promote(name, "1")
    assert_consistent(client, name)
