"""deploy/tracking: a team's MLflow on PostgreSQL, used through MLFLOW_TRACKING_URI alone, and killed.

CATDOG_POSTGRES_IMAGE and CATDOG_PYTHON_IMAGE may name other images to run and build on.
"""

from __future__ import annotations

import base64
import os
import re
import secrets
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from docker import DockerClient

from tests.docker.conftest import COMPOSE, Stack, composed
from tests.project import MODEL, REPOSITORY, Project, free_port, serving
from tests.request_formats import post

FILE = REPOSITORY / "deploy" / "tracking" / "compose.yaml"
UP_TIMEOUT_S = 120


@dataclass(frozen=True)
class Team:
    """The stack, and a project that knows its address."""

    stack: Stack
    project: Project

    def ready(self) -> float:
        return self.stack.await_up(f"{self.project.tracking_uri}/health", UP_TIMEOUT_S)


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory, drawn: Path, weights: Path) -> Iterator[Team]:
    """One version trained and promoted, all through the server."""
    folder, port = tmp_path_factory.mktemp("team"), free_port()
    settings = {"CATDOG_TRACKING_PORT": str(port), "CATDOG_DB_PASSWORD": f"geheim:/@%{secrets.token_urlsafe(12)}"}
    environment = {**os.environ, "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{port}", "XDG_CACHE_HOME": str(folder / "cache")}
    with composed(FILE, f"catdog-test-{os.getpid()}-team", settings) as stack:
        team = Team(stack, Project(folder, environment))
        print(f"\nup after {team.ready():.1f} s")
        train = ("-P", f"data={drawn}", "-P", f"weights={weights}", "-P", "image_size=96")
        promote = ("-e", "promote", "-P", "version=1", "-P", "min_accuracy=0", "-P", "reason=first")
        for words in (train, promote):
            done = team.project.run(*words)
            assert done.returncode == 0, done.stderr
        yield team


def stored(team: Team) -> dict[str, object]:
    """All that must never be lost: runs with metrics, versions, aliases, and the bytes of artifacts."""
    client = team.project.client()
    experiments = client.search_experiments()
    runs = client.search_runs([experiment.experiment_id for experiment in experiments])
    files = {}
    for run in runs:
        for entry in client.list_artifacts(run.info.run_id):
            path = Path(client.download_artifacts(run.info.run_id, entry.path, str(team.project.folder)))
            for file in path.rglob("*") if path.is_dir() else [path]:
                if file.is_file():
                    files[run.info.run_id, str(file)] = file.read_bytes()
    assert files
    return {
        "runs": {run.info.run_id: (run.info.status, run.data.metrics, run.data.params, run.data.tags) for run in runs},
        "versions": {version.version: version.tags for version in client.search_model_versions(f"name='{MODEL}'")},
        "aliases": client.get_registered_model(MODEL).aliases,
        "files": files,
    }


def served_row(team: Team, image_bytes: bytes, cwd: Path) -> dict:
    with serving(team.project, "--env-manager", "local", cwd=cwd) as address:
        return post(address, {"dataframe_records": [{"image": base64.b64encode(image_bytes).decode()}]})[0]


def test_clients_need_only_the_address(team: Team):
    assert not any("PASSWORD" in name for name in team.project.environment)
    (experiment,) = [entry for entry in team.project.client().search_experiments() if entry.name == "catdog"]
    assert experiment.artifact_location.startswith("mlflow-artifacts:/")
    assert stored(team)["aliases"] == {"production": "1"}


def test_containers_are_healthy_and_locked_down(team: Team, docker_client: DockerClient):
    server, database = (docker_client.containers.get(team.stack.container(service)) for service in ("server", "database"))
    assert {server.attrs["State"]["Health"]["Status"], database.attrs["State"]["Health"]["Status"]} == {"healthy"}
    assert server.exec_run("id -u").output.strip() == b"10001"
    assert server.exec_run("touch /usr/x").exit_code != 0
    assert "CapEff:\t0000000000000000" in server.exec_run("cat /proc/1/status").output.decode()
    assert not database.attrs["NetworkSettings"]["Ports"].get("5432/tcp")
    assert server.attrs["NetworkSettings"]["Ports"]["5000/tcp"][0]["HostIp"] == "127.0.0.1"


def test_killed_containers_come_back_with_nothing_lost(team: Team, docker_client: DockerClient, drawn: Path, tmp_path: Path):
    image_bytes = (drawn / "test" / "cat" / "cat-0001.jpg").read_bytes()
    before, row = stored(team), served_row(team, image_bytes, tmp_path)
    for killed in (["server"], ["database"], ["server", "database"]):
        for service in killed:
            docker_client.containers.get(team.stack.container(service)).kill()
        team.stack.execute("up -d")
        print(f"\n{'+'.join(killed)}: back after {team.ready():.1f} s")
        assert stored(team) == before
    assert served_row(team, image_bytes, tmp_path) == row


def test_volumes_keep_everything_when_containers_are_removed(team: Team):
    before = stored(team)
    team.stack.execute("down")
    team.stack.execute("up -d")
    team.ready()
    assert stored(team) == before
    done = team.project.run("-e", "history")
    assert done.returncode == 0, done.stderr
    assert re.search(r"promoted +production +- +1 .* first$", done.stdout, re.MULTILINE), done.stdout


def test_without_a_password_nothing_starts():
    environment = {name: value for name, value in os.environ.items() if name != "CATDOG_DB_PASSWORD"}
    words = [*COMPOSE.split(), "-f", str(FILE), "-p", f"catdog-test-{os.getpid()}-none", "up", "-d"]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert "CATDOG_DB_PASSWORD" in done.stderr
    assert "set it to a secret" in done.stderr
