"""What a killed update leaves: completed, removed, or left alone while it may still be running."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from docker.errors import APIError, NotFound
from mlflow.exceptions import MlflowException
from mlflow_catdog.deployments import containers, recovery
from mlflow_catdog.deployments.options import Options

NOW = "2026-01-01T12:10:00Z"


class FakeContainer:
    """A container that a fake Docker client knows by name."""

    def __init__(self, docker: FakeDocker, name: str, policy: str = "no", created: str = NOW) -> None:
        self.docker, self.name, self.id = docker, name, f"id of {name}"
        self.labels = {containers.OPTIONS: Options(ready_timeout_s=120).to_json()}
        self.attrs = {"HostConfig": {"RestartPolicy": {"Name": policy}}, "Created": created}
        docker.by_name[name] = self

    def update(self, restart_policy: dict[str, str]) -> None:
        self.attrs["HostConfig"] = {"RestartPolicy": restart_policy}

    def stop(self, timeout: float) -> None:
        pass

    def remove(self, force: bool) -> None:
        del self.docker.by_name[self.name]

    def rename(self, name: str) -> None:
        assert name not in self.docker.by_name
        self.remove(force=True)
        self.name = name
        self.docker.by_name[name] = self


class FakeDocker:
    """The part of docker's client that recovery uses."""

    def __init__(self) -> None:
        self.by_name: dict[str, FakeContainer] = {}
        self.containers = SimpleNamespace(get=self._get)

    def _get(self, name: str) -> FakeContainer:
        if name not in self.by_name:
            raise NotFound(name)
        return self.by_name[name]

    def info(self) -> dict[str, str]:
        return {"SystemTime": NOW}


@pytest.fixture
def docker() -> Any:
    return FakeDocker()


def test_a_candidate_that_passed_serves_and_replaces_the_previous_model(docker: Any):
    FakeContainer(docker, "catdog-live", policy="unless-stopped")
    candidate = FakeContainer(docker, "catdog-live.new", policy="unless-stopped")
    assert recovery.serving(docker, "live") is candidate
    recovery.recover(docker, "live")
    assert docker.by_name == {"catdog-live": candidate}


def test_a_candidate_without_a_result_does_not_serve_and_is_left_alone_for_its_time(docker: Any):
    previous = FakeContainer(docker, "catdog-live", policy="unless-stopped")
    FakeContainer(docker, "catdog-live.new", created="2026-01-01T12:07:01Z")  # 179 s of 120 + 60
    assert recovery.serving(docker, "live") is previous
    with pytest.raises(MlflowException, match="'live' has been changing for 179 s: wait for that; after 180 s") as running:
        recovery.recover(docker, "live")
    assert running.value.error_code == "RESOURCE_ALREADY_EXISTS"
    assert set(docker.by_name) == {"catdog-live", "catdog-live.new"}


def test_a_candidate_whose_time_is_over_is_removed(docker: Any):
    previous = FakeContainer(docker, "catdog-live", policy="unless-stopped")
    FakeContainer(docker, "catdog-live.new", created="2026-01-01T12:07:00Z")
    recovery.recover(docker, "live")
    assert docker.by_name == {"catdog-live": previous}


def test_a_candidate_that_another_command_commits_at_the_same_moment_stays(docker: Any):
    candidate = FakeContainer(docker, "catdog-live.new", policy="unless-stopped")
    found = SimpleNamespace(
        id=candidate.id, name="catdog-live", update=candidate.update, rename=refused, reload=lambda: None
    )
    candidate.rename("catdog-live")  # the other command's, between this one's look for it and its commit
    recovery.commit(docker, "live", found)  # type: ignore[arg-type]
    assert docker.by_name == {"catdog-live": candidate}


def refused(name: str) -> None:
    raise APIError(f"the name {name} is taken")


def test_a_committed_candidate_is_restarted_by_docker(docker: Any):
    recovery.commit(docker, "live", FakeContainer(docker, "catdog-live.new"))  # type: ignore[arg-type]
    (container,) = docker.by_name.values()
    assert (container.name, container.attrs["HostConfig"]) == (
        "catdog-live",
        {"RestartPolicy": {"Name": "unless-stopped"}},
    )
