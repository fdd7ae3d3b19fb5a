"""The model registry: register a run's model, find versions."""

from __future__ import annotations

import getpass
import math
import re
from collections.abc import Mapping

import mlflow
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion, RegisteredModel
from mlflow.exceptions import MlflowException

from catdog_pyfunc.errors import InvalidSetting, RegistryError

NAME = "CatDogClassifier"
PRODUCTION, STAGING, ARCHIVED = "production", "staging", "archived"
_RESERVED = re.compile(r"latest|v\d+", re.IGNORECASE)
_LONGEST_DESCRIPTION = 5000  # characters, in MLflow's schema; SQLite lets more pass, PostgreSQL doesn't
_METRIC_TAGS = ("test/accuracy", "test/log_loss")  # few, as each is a line in the list of versions
_MORE = ("log_loss", "calibration_error", "accepted")  # figures in a version's description
_RUN_TAGS = ("data.digest", "author")  # of the run, for its version


def register(run_id: str, name: str = NAME, *, description: str | None = None) -> ModelVersion:
    """Make the model of a run a version of a registered model, with description and tags; once only.

    Args:
        run_id: Of a training run that logged a model as `model`.
        name: The registered model; made if it isn't there.
        description: Of the version; by default the run's figures, and where its card lies.

    Returns:
        The version: the one there is, if this run's model is registered under this name already.

    Raises:
        RegistryError: No such run, or it has logged no model.
    """
    client = mlflow.MlflowClient()
    try:
        run = client.get_run(run_id)
    except MlflowException as unknown:
        raise RegistryError(
            f"run {run_id!r} is not in {mlflow.get_tracking_uri()} ({unknown.message}): give a run's id"
        ) from None
    if not (run.outputs and run.outputs.model_outputs):
        raise RegistryError(f"run {run_id!r} has logged no model: give the id of a finished training run")
    for version in client.search_model_versions(f"run_id='{run_id}'"):
        if version.name == name:
            return version
    # By the logged model and not by runs:/…/model, which is the same one, but MLflow warns that it had to look it up.
    version = mlflow.register_model(f"models:/{run.outputs.model_outputs[-1].model_id}", name)
    client.update_model_version(name, version.version, description=fitting(description or _description(run)))
    if not client.get_registered_model(name).description and run.data.params.get("data.classes"):
        client.update_registered_model(name, f"Tells {run.data.params['data.classes']} apart on photos.")
    for key, value in _version_tags(run.data.tags, run.data.metrics).items():
        client.set_model_version_tag(name, version.version, key, value)
    return client.get_model_version(name, version.version)


def check_alias(alias: str) -> None:
    """Refuse an alias that can't be moved to a version.

    Args:
        alias: Letters, digits, `_` and `-`; not `latest` or `v<number>`, which MLflow keeps for itself, nor `archived`.

    Raises:
        InvalidSetting: It is one of those.
    """
    if not re.fullmatch(r"[\w-]+", alias) or _RESERVED.fullmatch(alias):
        raise InvalidSetting(f"alias {alias!r} is not allowed: use letters, digits, _ and -, but not 'latest' or 'v1'")
    if alias == ARCHIVED:
        raise InvalidSetting(f"alias {alias!r} goes to what a promotion replaces: promote another version instead")


def find_model(name: str) -> RegisteredModel:
    """Get a registered model.

    Args:
        name: The registered model.

    Returns:
        It.

    Raises:
        RegistryError: There is none of this name.
    """
    try:
        return mlflow.MlflowClient().get_registered_model(name)
    except MlflowException:
        raise RegistryError(f"there is no model {name!r} in {mlflow.get_tracking_uri()}: train or register first") from None


def version_if_there(client: mlflow.MlflowClient, name: str, version: str) -> ModelVersion | None:
    """Get a version of a registered model; None if it was deleted."""
    try:
        return client.get_model_version(name, version)
    except MlflowException:
        return None


def find_version(name: str, version: str) -> ModelVersion:
    """Get a version of a registered model.

    Args:
        name: The registered model.
        version: The version's number.

    Returns:
        The version.

    Raises:
        RegistryError: No such model or version.
    """
    client = mlflow.MlflowClient()
    try:
        return client.get_model_version(name, version)
    except MlflowException:
        there = sorted((int(v.version) for v in _versions(client, name)), reverse=True)
        known = f"it has {', '.join(map(str, there[:10]))}" if there else "there is no such model: train or register first"
        raise RegistryError(f"{name!r} has no version {version!r} in {mlflow.get_tracking_uri()}: {known}") from None


def latest_version(name: str = NAME) -> str:
    """The highest version number of a registered model.

    Raises:
        RegistryError: It has none.
    """
    numbers = [int(version.version) for version in _versions(mlflow.MlflowClient(), name)]
    if not numbers:
        raise RegistryError(f"{name!r} has no versions in {mlflow.get_tracking_uri()}: train or register first")
    return str(max(numbers))


def author() -> str:
    """Who is at work: the login name, as MLflow takes it for a run's user."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return "unknown"


def fitting(text: str, rest: str = "the rest stands in the run's model_card.md") -> str:
    """Cut a description to what a database column of MLflow's takes, and say where the rest is."""
    if len(text) <= _LONGEST_DESCRIPTION:
        return text
    end = f"\n\n… {rest}"
    return text[: _LONGEST_DESCRIPTION - len(end)].rsplit("\n", 1)[0] + end


def _versions(client: mlflow.MlflowClient, name: str) -> list[ModelVersion]:
    return list(client.search_model_versions(f"name='{name}'"))


def _version_tags(run_tags: Mapping[str, str], metrics: Mapping[str, float]) -> dict[str, str]:
    tags = {key: run_tags[key] for key in _RUN_TAGS if key in run_tags}
    tags.setdefault("author", run_tags.get("mlflow.user", author()))
    return {**tags, **{key: f"{metrics[key]:.4f}" for key in _METRIC_TAGS if key in metrics}}


def _description(run: Run) -> str:
    """Short, as a version's tags stand below it: figures, and links to where there is more."""
    page = f"#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"
    links = f"[training]({page}) · [model card]({page}/artifacts/model_card.md)"
    metrics = run.data.metrics
    if "test/accuracy" not in metrics:
        return links
    low, high = (metrics.get(f"test/accuracy_{end}", math.nan) for end in ("low", "high"))
    described = [f"test accuracy **{metrics['test/accuracy']:.4f}** ({low:.4f}–{high:.4f})"]
    described += [f"{name.replace('_', ' ')} {metrics[f'test/{name}']:.4f}" for name in _MORE if f"test/{name}" in metrics]
    return f"{', '.join(described)}\n\n{links}"
