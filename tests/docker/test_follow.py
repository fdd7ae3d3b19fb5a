"""`follow=true`: a deployment goes where its model's alias points, whatever fails, is killed, or happens twice."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import mlflow
import pytest
import requests

from catdog_pyfunc.pipeline.registry import reconcile
from tests.docker.conftest import Live, Target
from tests.load_clients import assert_none_lost, under_load
from tests.project import MODEL, Project, free_port, running
from tests.third_party_models import BROKEN, save
from tests.waiting import await_condition

FOLLOWED, ALIAS, SECRET = "Followed", "production", "a secret of this test"
URI = f"models:/{FOLLOWED}@{ALIAS}"
BUILD_S, LEFT_S = 180, 150  # LEFT_S: until a killed command's candidate counts as abandoned, and is replaced


@dataclass
class Registry:
    """A tracking server, which can go away, and a registered model of these tests' own: 1 and 2 work, 3 does not."""

    project: Project
    command: list[str]
    running: contextlib.ExitStack

    @property
    def client(self) -> mlflow.MlflowClient:
        return self.project.client()

    def start(self) -> None:
        health = f"{self.project.tracking_uri}/health"
        log = self.project.folder / "server.log"
        self.running.enter_context(running(self.command, health, log, cwd=self.project.folder, env=self.project.environment))

    def stop(self) -> None:
        self.running.close()

    def point(self, version: int) -> float:
        """Move the alias; when."""
        self.client.set_registered_model_alias(FOLLOWED, ALIAS, str(version))
        return time.monotonic()

    def outcomes(self, deployment: str) -> list[tuple[str, str | None, str]]:
        """Action, previous version and version of the audit log's entries, without those of other deployments."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MLFLOW_TRACKING_URI", self.project.tracking_uri)
            entries = reconcile.history(FOLLOWED)
        return [(entry.action, entry.previous, entry.version) for entry in entries if entry.deployment in ("", deployment)]

    def last_deployed(self, deployment: str) -> str:
        return next((version for action, _, version in reversed(self.outcomes(deployment)) if action == "deployed"), "")

    def await_outcome(self, deployment: str, outcome: tuple[str, str | None, str]) -> None:
        """Wait until the audit log's last entry is that one: action, previous version, version."""
        await_condition(lambda: self.outcomes(deployment)[-1] == outcome)


@pytest.fixture(scope="module")
def registry(project: Project, requirements: list[str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    folder, port = tmp_path_factory.mktemp("follow"), free_port()
    source = project.client()
    source.create_registered_model(FOLLOWED)
    for version in (1, 2):
        source.copy_model_version(f"models:/{MODEL}/{version}", FOLLOWED)
    broken = save(folder / "broken", requirements, *BROKEN["raises when it predicts"][:2])
    source.create_model_version(FOLLOWED, str(broken))
    environment = {
        **project.environment,
        "MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http",
        "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true",
        "MLFLOW_WEBHOOK_CACHE_TTL": "1",
        "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY": "VGhpcnR5LXR3byBieXRlcyBvZiBhIHRlc3Qga2V5ISE=",
    }
    command = ["mlflow", "server", "--port", str(port), "--workers", "1", "--backend-store-uri", project.tracking_uri]
    client = Project(folder, {**environment, "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{port}"})
    with contextlib.ExitStack() as stack:
        registry = Registry(client, command, stack)
        registry.start()
        yield registry
        registry.stop()


class Follower:
    """A `catdog-follow` process."""

    def __init__(self, registry: Registry, log: Path, *words: str) -> None:
        self.address, self._log = f"http://127.0.0.1:{free_port()}", log
        self._stream = log.open("a")
        self._process = subprocess.Popen(
            ["catdog-follow", "--port", self.address.rsplit(":", 1)[1], *words],
            env=dict(registry.project.environment),
            stdout=self._stream,
            stderr=self._stream,
        )

    def log(self) -> str:
        return self._log.read_text()

    def await_log(self, what: str, times: int = 1, timeout_s: float = 60) -> None:
        await_condition(lambda: self.log().count(what) >= times, timeout_s)

    def metrics(self) -> str:
        return requests.get(f"{self.address}/metrics", timeout=5).text

    def kill(self, number: signal.Signals = signal.SIGKILL) -> int:
        self._process.send_signal(number)
        self._stream.close()
        return self._process.wait(timeout=20)

    def __enter__(self) -> Follower:
        return self

    def __exit__(self, *failure: object) -> None:
        if self._process.poll() is None:
            self.kill(signal.SIGTERM)


@dataclass(frozen=True)
class Deployed:
    """A deployment that follows, at version 1."""

    name: str
    address: str

    def version(self) -> int:
        """The version that serves."""
        metrics = requests.get(f"{self.address}/metrics", timeout=30).text
        found = re.search(r'catdog_model_info\{name="Followed",version="(\d+)"\}', metrics)
        assert found, metrics[:2000]
        return int(found[1])

    def await_version(self, version: int, since: float, timeout_s: float = BUILD_S) -> float:
        await_condition(lambda: self.version() == version, timeout_s)
        took = time.monotonic() - since
        print(f"\nversion {version} responded {took:.1f} s after the alias moved")
        return took


@pytest.fixture(scope="module")
def deployed(target: Target, registry: Registry, live: Live) -> Deployed:
    registry.point(1)
    name, port = target.new_name(), free_port()
    options = ("-C", f"port={port}", "-C", "follow=true", "-C", "ready_timeout_s=30")
    followed = Target(registry.project)
    done = followed.call("create", "--name", name, "-m", URI, *options)
    assert done.returncode == 0, done.stderr
    return Deployed(name, f"http://127.0.0.1:{port}")


@pytest.fixture
def at_version_1(registry: Registry, deployed: Deployed, tmp_path: Path) -> Deployed:
    """Whatever an earlier test left."""
    registry.point(1)
    with Follower(registry, tmp_path / "before.log", "--interval", "1") as follower:
        follower.await_log("1 serves, as", timeout_s=LEFT_S + BUILD_S)
        await_condition(lambda: registry.last_deployed(deployed.name) == "1")
    return deployed


@pytest.fixture
def start(registry: Registry, tmp_path: Path) -> Callable[..., Follower]:
    return lambda *words: Follower(registry, tmp_path / f"{time.monotonic_ns()}.log", *(words or ("--interval", "1")))


def test_an_alias_is_needed(target: Target, deployed: Deployed, registry: Registry):
    done = Target(registry.project).call("update", "--name", deployed.name, "-m", f"models:/{FOLLOWED}/1")
    assert done.returncode == 1
    assert "follow=true needs a model named by an alias, such as models:/" in done.stderr


def test_a_promotion_and_its_roll_back_go_live_without_a_lost_request(
    registry: Registry, at_version_1: Deployed, live: Live, start: Callable[..., Follower]
):
    name = at_version_1.name
    with start() as follower, under_load(at_version_1.address, live.body, pause_s=0.1) as responses:
        follower.await_log(f"{name}: models:/{FOLLOWED}/1 serves, as {URI} says")
        for version in (2, 1, 2, 1):
            at_version_1.await_version(version, registry.point(version))
            registry.await_outcome(name, ("deployed", str(3 - version), str(version)))
        assert follower.log().count("building the image") == 1  # the other three had their image
        assert f'catdog_follow_behind{{deployment="{name}"}} 0.0' in follower.metrics()
    assert_none_lost(responses)


def test_a_broken_version_is_tried_once_and_the_old_one_serves_on(
    registry: Registry, at_version_1: Deployed, start: Callable[..., Follower]
):
    name = at_version_1.name
    with start() as follower:
        registry.point(3)
        follower.await_log(f"models:/{FOLLOWED}/3 failed, so models:/{FOLLOWED}/1 serves on", timeout_s=BUILD_S)
        assert registry.outcomes(name)[-1] == ("not deployed", "1", "3")
        assert f'catdog_follow_behind{{deployment="{name}"}} 1.0' in follower.metrics()
    with start() as again:  # one that remembers nothing
        again.await_log(f"models:/{FOLLOWED}/3 failed, so models:/{FOLLOWED}/1 serves on")
        assert "building" not in again.log()
        assert at_version_1.version() == 1
        moved = registry.point(2)
        at_version_1.await_version(2, moved)
        registry.await_outcome(name, ("deployed", "1", "2"))


def test_a_webhook_means_look_now(
    registry: Registry, at_version_1: Deployed, start: Callable[..., Follower], tmp_path: Path
):
    (tmp_path / "secret").write_text(f"{SECRET}\n")
    with start("--interval", "600", "--webhook-secret-file", str(tmp_path / "secret")) as follower:
        follower.await_log("1 serves, as")
        forged = {"X-MLflow-Delivery-Id": "1", "X-MLflow-Timestamp": str(int(time.time())), "X-MLflow-Signature": "v1,AAAA"}
        assert requests.post(f"{follower.address}/webhook", "{}", headers=forged, timeout=5).status_code == 401
        events = ["model_version_alias.created", "model_version_alias.deleted"]
        hook = registry.client.create_webhook("follow", f"{follower.address}/webhook", events, secret=SECRET)
        try:
            at_version_1.await_version(2, registry.point(2))
        finally:
            registry.client.delete_webhook(hook.webhook_id)


@pytest.mark.parametrize("message", ["replacing it", "starting models:/"])
def test_a_killed_follower_is_continued_by_the_next(
    message: str, registry: Registry, at_version_1: Deployed, start: Callable[..., Follower]
):
    with start() as follower:
        follower.await_log("1 serves, as")
        registry.point(2)
        follower.await_log(message)
        follower.kill()
    assert at_version_1.version() in (1, 2)
    with start() as following:  # version 2 may respond long before: as a candidate of the killed one
        following.await_log("2 serves, as", timeout_s=LEFT_S)
        registry.await_outcome(at_version_1.name, ("deployed", "1", "2"))
        assert at_version_1.version() == 2


def test_two_followers_end_where_the_alias_is(registry: Registry, at_version_1: Deployed, start: Callable[..., Follower]):
    with start(), start():
        for version in (2, 1, 2):
            at_version_1.await_version(version, registry.point(version), LEFT_S)
            registry.await_outcome(at_version_1.name, ("deployed", str(3 - version), str(version)))
    deployed = [outcome for outcome in registry.outcomes(at_version_1.name) if outcome[0] == "deployed"]
    assert deployed[-3:] == [("deployed", "1", "2"), ("deployed", "2", "1"), ("deployed", "1", "2")]


def test_ten_moves_in_ten_seconds_end_where_the_alias_is(
    registry: Registry, at_version_1: Deployed, start: Callable[..., Follower]
):
    with start() as follower:
        follower.await_log("1 serves, as")
        for version in (2, 1, 3, 1, 2, 1, 2, 3, 1, 2):
            moved = registry.point(version)
            time.sleep(1)  # part of what is tested, not a wait
        await_condition(lambda: "2 serves, as" in follower.log().splitlines()[-1], BUILD_S)
        at_version_1.await_version(2, moved)


def test_a_deleted_alias_and_a_registry_that_is_away_change_nothing(
    registry: Registry, at_version_1: Deployed, start: Callable[..., Follower]
):
    with start() as follower:
        follower.await_log("1 serves, as")
        registry.client.delete_registered_model_alias(FOLLOWED, ALIAS)
        follower.await_log("trying again: cannot load model")
        assert at_version_1.version() == 1
        at_version_1.await_version(2, registry.point(2))
        follower.await_log("2 serves, as")
        registry.stop()
        follower.await_log("trying again: cannot load model", times=2, timeout_s=120)
        assert at_version_1.version() == 2
        registry.start()
        at_version_1.await_version(1, registry.point(1))


def test_a_follower_ends_on_sigterm(start: Callable[..., Follower]):
    with start() as follower:
        follower.await_log("following: ")
        assert follower.kill(signal.SIGTERM) == 0
