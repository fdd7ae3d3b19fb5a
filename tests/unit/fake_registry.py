"""An MLflow client in memory, with what the registry's modules use of it; each test can let it die before any write."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST

MAX_DESCRIPTION = 5000


class Killed(BaseException):
    """The process was killed: no `except Exception` may notice."""


def write(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def counted(self: FakeRegistry, *args: Any, **kwargs: Any) -> Any:
        if self.die_before is not None and self.writes >= self.die_before:
            raise Killed
        if self.failures and (self.fail_on is None or self.fail_on == method.__name__):
            self.failures -= 1
            raise MlflowException("the store is busy")
        self.writes += 1
        return method(self, *args, **kwargs)

    return counted


class FakeRegistry:
    """One registered model, its experiment and its runs."""

    def __init__(self, name: str = "model", versions: int = 4) -> None:
        self.name, self.description = name, ""
        self.aliases: dict[str, str] = {}
        self.versions = {
            str(number): SimpleNamespace(
                version=str(number), run_id=f"run {number}", tags={}, description="# card\n\nwhat it is"
            )
            for number in range(1, versions + 1)
        }
        self.experiments: dict[str, SimpleNamespace] = {}
        self.runs: dict[str, SimpleNamespace] = {}
        self.die_before: int | None = None
        self.failures, self.fail_on = 0, None
        self.writes = 0

    # registry

    def _check(self, name: str) -> None:
        if name != self.name:
            raise MlflowException(f"no model {name}", RESOURCE_DOES_NOT_EXIST)

    def get_registered_model(self, name: str) -> SimpleNamespace:
        self._check(name)
        return SimpleNamespace(
            aliases=dict(self.aliases), description=self.description, latest_versions=list(self.versions.values())[-1:]
        )

    def get_model_version(self, name: str, version: str) -> SimpleNamespace:
        self._check(name)
        if str(version) not in self.versions:
            raise MlflowException(f"no version {version}", RESOURCE_DOES_NOT_EXIST)
        found = self.versions[str(version)]
        return SimpleNamespace(**{**vars(found), "tags": dict(found.tags)})

    def search_model_versions(self, filter_string: str) -> list[SimpleNamespace]:
        run_id = filter_string.removeprefix("run_id='").removesuffix("'")
        found = [version for version in self.versions.values() if version.run_id == run_id]
        return [SimpleNamespace(name=self.name, **vars(version)) for version in found]

    @write
    def set_registered_model_alias(self, name: str, alias: str, version: str) -> None:
        self.get_model_version(name, version)
        self.aliases[alias] = version

    @write
    def delete_registered_model_alias(self, name: str, alias: str) -> None:
        self._check(name)
        del self.aliases[alias]

    @write
    def set_model_version_tag(self, name: str, version: str, key: str, value: str) -> None:
        self._check(name)
        self.versions[version].tags[key] = value

    @write
    def update_model_version(self, name: str, version: str, description: str) -> None:
        self._check(name)
        assert len(description) <= MAX_DESCRIPTION
        self.versions[version].description = description

    @write
    def update_registered_model(self, name: str, description: str) -> None:
        self._check(name)
        assert len(description) <= MAX_DESCRIPTION
        self.description = description

    # tracking

    def get_experiment_by_name(self, name: str) -> SimpleNamespace | None:
        return next((found for found in self.experiments.values() if found.name == name), None)

    def search_experiments(self, filter_string: str) -> list[SimpleNamespace]:
        prefix = filter_string.removeprefix("name LIKE '").removesuffix("%'")
        active = [found for found in self.experiments.values() if found.lifecycle_stage == "active"]
        return [found for found in active if found.name.startswith(prefix)]

    @write
    def create_experiment(self, name: str) -> str:
        id_ = str(len(self.experiments) + 1)
        self.experiments[id_] = SimpleNamespace(
            experiment_id=id_, name=name, tags={}, lifecycle_stage="active", creation_time=1000 * time.time()
        )
        return id_

    @write
    def rename_experiment(self, experiment_id: str, name: str) -> None:
        if self.get_experiment_by_name(name):
            raise MlflowException(f"there is an experiment {name}")
        self.experiments[experiment_id].name = name

    @write
    def delete_experiment(self, experiment_id: str) -> None:
        self.experiments[experiment_id].lifecycle_stage = "deleted"

    @write
    def set_experiment_tag(self, experiment_id: str, key: str, value: str) -> None:
        self.experiments[experiment_id].tags[key] = value

    @write
    def create_run(self, experiment_id: str, run_name: str) -> SimpleNamespace:
        run = SimpleNamespace(
            info=SimpleNamespace(run_id=f"log {len(self.runs)}", status="RUNNING", run_name=run_name),
            data=SimpleNamespace(params={}, tags={}, metrics={}),
            outputs=None,
        )
        self.runs[run.info.run_id] = run
        return run

    @write
    def update_run(self, run_id: str, status: str) -> None:
        self.runs[run_id].info.status = status

    def get_run(self, run_id: str) -> SimpleNamespace:
        if run_id not in self.runs:
            raise MlflowException(f"no run {run_id}", RESOURCE_DOES_NOT_EXIST)
        run = self.runs[run_id]
        data = SimpleNamespace(**{**vars(run.data), "params": dict(run.data.params)})
        return SimpleNamespace(info=run.info, data=data, outputs=run.outputs)

    @write
    def log_param(self, run_id: str, key: str, value: str) -> None:
        if self.runs[run_id].data.params.setdefault(key, value) != value:
            raise MlflowException(f"{key} was logged already")
