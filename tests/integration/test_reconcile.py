"""The trail and what follows it, on a real MLflow server: killed at every step, several at once, moved by other means."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator

import mlflow
import pytest

from catdog_pyfunc.errors import InvalidSetting, RegistryError
from catdog_pyfunc.pipeline.registry import audit_log, reconcile
from catdog_pyfunc.pipeline.registry.audit_log import PROMOTED, Entry, open_audit_log, replay
from tests.integration.cut_off import BROKEN, DONE, LOST
from tests.project import REPOSITORY, free_port, running

MOST_STEPS = 40


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`mlflow server`; its address."""
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


class Crew:
    """Processes that make moves, and may die at it."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def do(self, *jobs: dict[str, object]) -> list[int]:
        """Do all at once; their exit codes."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(jobs) + "\n")
        self._process.stdin.flush()
        codes: list[int] = json.loads(self._process.stdout.readline())
        assert BROKEN not in codes
        return codes


@pytest.fixture(scope="module")
def crew(server: str) -> Iterator[Crew]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.integration.cut_off", server],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield Crew(process)
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def client(server: str) -> Iterator[mlflow.MlflowClient]:
    mlflow.set_tracking_uri(server)
    yield mlflow.MlflowClient()
    mlflow.set_tracking_uri(None)


@pytest.fixture
def name(client: mlflow.MlflowClient) -> str:
    """A registered model of four versions, never promoted."""
    return register(client)


def register(client: mlflow.MlflowClient, versions: int = 4) -> str:
    name = f"model {uuid.uuid4().hex[:8]}"
    client.create_registered_model(name)
    run = client.create_run("0")
    client.update_run(run.info.run_id, status="FINISHED")
    for _ in range(versions):
        source = f"{run.info.artifact_uri}/model"
        client.create_model_version(name, source, run.info.run_id, description="# card\n\nwhat it is")
    return name


def promote(name: str, version: str, alias: str = "production") -> None:
    entries = open_audit_log(name)
    seen = reconcile.reconcile(entries)
    reconcile.commit(entries, Entry(PROMOTED, alias, version, replay(seen).aliases_by_name.get(alias), "it is better"), seen)


def aliases(client: mlflow.MlflowClient, name: str) -> dict[str, str]:
    return {alias: str(version) for alias, version in client.get_registered_model(name).aliases.items()}


def stages(client: mlflow.MlflowClient, name: str) -> dict[str, str]:
    numbers = [version.version for version in client.search_model_versions(f"name='{name}'")]
    found = [client.get_model_version(name, str(number)) for number in numbers]
    return {str(version.version): version.tags["stage"] for version in found if "stage" in version.tags}


def check_whole(client: mlflow.MlflowClient, name: str) -> None:
    """The trail, the aliases and the tags say the same, and nothing is left to do."""
    entries, done = open_audit_log(name).read()
    state = replay(entries)
    assert done
    assert aliases(client, name) == state.aliases_by_name
    assert stages(client, name) == state.stages
    active = [experiment.name for experiment in client.search_experiments(filter_string=f"name LIKE '{name}%'")]
    assert active == [f"{name} history"]
    for experiment in client.search_experiments(filter_string=f"name = '{name} history'"):
        assert [run.info.status for run in client.search_runs([experiment.experiment_id])] == ["FINISHED"]


def test_versions_move_and_come_back(client: mlflow.MlflowClient, name: str):
    promote(name, "1")
    promote(name, "2", "staging")
    assert (aliases(client, name), stages(client, name)) == (
        {"production": "1", "staging": "2"},
        {"1": "production", "2": "staging"},
    )
    promote(name, "2")
    assert aliases(client, name) == {"production": "2", "archived": "1"}
    promote(name, "3")
    assert stages(client, name) == {"1": "archived", "2": "archived", "3": "production"}
    assert [reconcile.roll_back(name).version for _ in range(2)] == ["2", "1"]
    assert (aliases(client, name)["production"], stages(client, name)["3"]) == ("1", "archived")
    with pytest.raises(RegistryError, match="nothing to go back to: version 1 is the first"):
        reconcile.roll_back(name)
    promote(name, "4")
    assert reconcile.roll_back(name).version == "1"
    assert [entry.action for entry in reconcile.history(name)].count("rolled back") == 3
    check_whole(client, name)


def test_a_page_says_where_its_version_is_and_keeps_its_card(client: mlflow.MlflowClient, name: str):
    promote(name, "1")
    promote(name, "2")
    descriptions = [client.get_model_version(name, version).description for version in ("1", "2")]
    assert "**archived** · replaced by version 2" in descriptions[0]
    assert "**production** · promoted to production" in descriptions[1]
    assert all(text.endswith("\n\n# card\n\nwhat it is") for text in descriptions)


def test_an_alias_that_was_moved_by_other_means_is_noted_and_can_be_rolled_back(client: mlflow.MlflowClient, name: str):
    promote(name, "1")
    client.set_registered_model_alias(name, "production", "4")
    assert [(entry.action, entry.version) for entry in reconcile.history(name)] == [("promoted", "1"), ("found", "4")]
    assert reconcile.roll_back(name).version == "1"
    check_whole(client, name)


def test_an_alias_that_somebody_removed_stays_away_and_can_be_brought_back(client: mlflow.MlflowClient, name: str):
    promote(name, "1")
    promote(name, "2")
    client.delete_registered_model_alias(name, "production")
    promote(name, "3", "staging")
    assert aliases(client, name) == {"staging": "3", "archived": "1"}
    assert stages(client, name)["2"] == "archived"
    assert [(entry.action, entry.version) for entry in reconcile.history(name)][2] == ("found", "")
    assert reconcile.roll_back(name).version == "1"
    check_whole(client, name)


def test_what_stood_in_production_before_the_first_promotion_can_be_rolled_back_to(client: mlflow.MlflowClient, name: str):
    client.set_registered_model_alias(name, "production", "3")
    promote(name, "4")
    assert reconcile.roll_back(name).version == "3"
    check_whole(client, name)


def test_a_roll_back_passes_over_what_was_deleted(client: mlflow.MlflowClient, name: str):
    for version in ("1", "2", "3"):
        promote(name, version)
    client.delete_model_version(name, "2")
    assert reconcile.roll_back(name).version == "1"


@pytest.mark.parametrize("done", ["first", "next", "roll back"])
def test_a_move_that_was_killed_at_any_step_is_finished_or_was_never_made(
    done: str, client: mlflow.MlflowClient, crew: Crew, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(audit_log, "_LEFT_FOR_S", 0.0)  # nobody else is at work here
    outcomes = []
    for step in range(MOST_STEPS):
        name = register(client, versions=2)
        if done != "first":
            promote(name, "1")
            promote(name, "2", "staging")
            if done == "roll back":
                promote(name, "2")
        before = reconcile.history(name) if done != "first" else []
        job = {"do": "roll back" if done == "roll back" else "promote", "name": name, "version": "2", "alias": "production"}
        (code,) = crew.do({**job, "die_before": step})
        at_once = aliases(client, name)
        after = reconcile.history(name)  # the next command
        check_whole(client, name)
        made = len(after) - len(before)
        assert made in (0, 1)
        outcomes.append((step, code, at_once, made))
        if code == DONE:
            break
        assert code == -signal.SIGKILL
    print(f"\n{done}: killed before write n: aliases then; whether the move stands after the next command")
    for step, code, at_once, made in outcomes:
        print(f"  {step}: {'not killed' if code == DONE else 'killed'}; {at_once}; {'stands' if made else 'never made'}")
    assert outcomes[-1][1] == DONE
    assert {made for _, _, _, made in outcomes} == {0, 1}


def test_of_several_promotions_at_once_one_wins_and_the_others_say_so(client: mlflow.MlflowClient, name: str, crew: Crew):
    for turn in range(3):
        start = time.time() + 1.0
        jobs = [
            {"do": "promote", "name": name, "version": version, "alias": "production", "start": start}
            for version in ("1", "2", "3", "4")
        ]
        assert sorted(crew.do(*jobs)) == [DONE, LOST, LOST, LOST]
        assert len(reconcile.history(name)) == turn + 1
        check_whole(client, name)


def test_a_trail_is_begun_once_however_many_begin_it(client: mlflow.MlflowClient, name: str, crew: Crew):
    assert crew.do(*[{"do": "open", "name": name}] * 6) == [DONE] * 6
    promote(name, "1")
    check_whole(client, name)


def test_a_deleted_trail_is_named_with_the_remedy(client: mlflow.MlflowClient, name: str):
    promote(name, "1")
    experiment = client.get_experiment_by_name(f"{name} history").experiment_id
    client.delete_experiment(experiment)
    with pytest.raises(RegistryError, match=f"mlflow experiments restore -x {experiment}"):
        reconcile.history(name)
    client.restore_experiment(experiment)
    assert len(reconcile.history(name)) == 1


def test_a_reason_too_long_for_the_trail_is_refused_before_anything_moves(client: mlflow.MlflowClient, name: str):
    with pytest.raises(InvalidSetting, match="be brief"):
        reconcile.commit(open_audit_log(name), Entry(PROMOTED, "production", "1", None, "why " * 2000), [])
    assert aliases(client, name) == {}
