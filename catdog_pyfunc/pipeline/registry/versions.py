"""Registered models and their versions: register a run's model, find versions."""

from __future__ import annotations

import getpass
import math
import re
from collections.abc import Mapping

import mlflow
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion, RegisteredModel
from mlflow.exceptions import MlflowException

from catdog_pyfunc import access
from catdog_pyfunc.errors import InvalidSetting, RegistryError, TrackingError, first_line

NAME = "CatDogClassifier"
PRODUCTION, STAGING, ARCHIVED = "production", "staging", "archived"
MAX_DESCRIPTION = 5000  # characters, from MLflow's schema: SQLite lets more pass, PostgreSQL does not
_RESERVED = re.compile(r"latest|v\d+", re.IGNORECASE)
_METRIC_TAGS = ("test/accuracy", "test/log_loss")  # few: each takes a line in the list of versions
_DESCRIBED_METRICS = ("log_loss", "calibration_error", "accepted")
_MISSING = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")  # how MLflow's stores say that something does not exist
_RUN_TAGS = ("data.digest", "author")  # copied from the run to its version


def register(run_id: str, name: str = NAME, *, description: str | None = None) -> ModelVersion:
    """Register the model that a run has logged, with a description and tags.

    Registering the same run's model again changes nothing and returns the version there is.

    Args:
        run_id: A training run that has logged a model.
        name: The registered model; created if it does not exist.
        description: The version's description; by default the run's test metrics and links to its page and model card.

    Returns:
        The version.

    Raises:
        RegistryError: There is no such run, or it has logged no model.

    Example:
        >>> version = register("0123456789abcdef0123456789abcdef")  # doctest: +SKIP
        >>> version.version  # doctest: +SKIP
        '1'
    """
    client = mlflow.MlflowClient()
    try:
        run = client.get_run(run_id)
    except MlflowException as unknown:
        _check_missing(unknown)
        raise RegistryError(
            f"run {run_id!r} is not in {mlflow.get_tracking_uri()} ({unknown.message}): give the id of a training run"
        ) from None
    if not (run.outputs and run.outputs.model_outputs):
        raise RegistryError(f"run {run_id!r} has logged no model: give the id of a finished training run")
    for version in client.search_model_versions(f"run_id='{run_id}'"):
        if version.name == name:
            return version
    # By the logged model's id: for the equivalent runs:/…/model MLflow warns that it had to look the model up.
    version = mlflow.register_model(f"models:/{run.outputs.model_outputs[-1].model_id}", name)
    client.update_model_version(name, version.version, description=_truncate(description or _description(run)))
    if not client.get_registered_model(name).description and run.data.params.get("data.classes"):
        client.update_registered_model(name, f"Classifies images as one of: {run.data.params['data.classes']}.")
    for key, value in _version_tags(run.data.tags, run.data.metrics).items():
        client.set_model_version_tag(name, version.version, key, value)
    return client.get_model_version(name, version.version)


def check_alias(alias: str) -> None:
    """Check that an alias can be given to a version.

    Args:
        alias: Letters, digits, `_` and `-`; not `latest` or `v<number>`, which MLflow reserves, nor `archived`.

    Raises:
        InvalidSetting: The alias is not allowed.
    """
    if not re.fullmatch(r"[\w-]+", alias) or _RESERVED.fullmatch(alias):
        raise InvalidSetting(f"alias {alias!r} is not allowed: use letters, digits, _ and -, but not 'latest' or 'v1'")
    if alias == ARCHIVED:
        raise InvalidSetting(f"alias {alias!r} is set by promotions, on the version they replace: use another alias")


def find_model(name: str) -> RegisteredModel:
    """Get a registered model.

    Args:
        name: The registered model.

    Returns:
        The registered model.

    Raises:
        RegistryError: There is no such model.
    """
    access.signed_in_user()  # fails at once where MLflow would try for minutes
    try:
        return mlflow.MlflowClient().get_registered_model(name)
    except MlflowException as error:
        _check_missing(error)
        raise RegistryError(f"there is no model {name!r} in {mlflow.get_tracking_uri()}: train or register first") from None


def get_version(name: str, version: str) -> ModelVersion | None:
    """Get a version of a registered model, or None if it does not exist (any more)."""
    try:
        return mlflow.MlflowClient().get_model_version(name, version)
    except MlflowException as error:
        _check_missing(error)
        return None


def find_version(name: str, version: str) -> ModelVersion:
    """Get a version of a registered model.

    Args:
        name: The registered model.
        version: The version's number.

    Returns:
        The version.

    Raises:
        RegistryError: There is no such model or version.
    """
    found = get_version(name, version)
    if found is None:
        latest = latest_version(name)
        raise RegistryError(f"{name!r} has no version {version!r} in {mlflow.get_tracking_uri()}: the latest is {latest}")
    return found


def latest_version(name: str = NAME) -> str:
    """Get the highest version number of a registered model.

    Args:
        name: The registered model.

    Returns:
        The version's number.

    Raises:
        RegistryError: There is no such model, or it has no versions.
    """
    numbers = [int(version.version) for version in find_model(name).latest_versions]
    if not numbers:
        raise RegistryError(f"{name!r} has no versions in {mlflow.get_tracking_uri()}: train or register first")
    return str(max(numbers))


def author() -> str:
    """Get the name of whoever runs this: as the tracking server knows it or, without a sign-in, the login name."""
    if user := access.signed_in_user():
        return user
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return "unknown"


def _check_missing(error: MlflowException) -> None:
    """Check that an error says that something does not exist."""
    access.check(error)
    if error.error_code not in _MISSING:
        raise TrackingError(f"{mlflow.get_tracking_uri()} cannot be reached, or failed ({first_line(error)})") from None


def _truncate(text: str) -> str:
    """Cut a description at the end of a line so that it fits into MLflow's database column, and say where the rest is."""
    if len(text) <= MAX_DESCRIPTION:
        return text
    end = "\n\n… the rest is in the run's model_card.md"
    return text[: MAX_DESCRIPTION - len(end)].rsplit("\n", 1)[0] + end


def _version_tags(run_tags: Mapping[str, str], metrics: Mapping[str, float]) -> dict[str, str]:
    tags = {key: run_tags[key] for key in _RUN_TAGS if key in run_tags}
    tags.setdefault("author", run_tags.get("mlflow.user", author()))
    return {**tags, **{key: f"{metrics[key]:.4f}" for key in _METRIC_TAGS if key in metrics}}


def _description(run: Run) -> str:
    """Short, because the version's tags stand below it."""
    page = f"#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"
    links = f"[training]({page}) · [model card]({page}/artifacts/model_card.md)"
    metrics = run.data.metrics
    if "test/accuracy" not in metrics:
        return links
    low, high = (metrics.get(f"test/accuracy_{end}", math.nan) for end in ("low", "high"))
    described = [f"test accuracy **{metrics['test/accuracy']:.4f}** ({low:.4f}–{high:.4f})"]
    described += [
        f"{name.replace('_', ' ')} {metrics[f'test/{name}']:.4f}" for name in _DESCRIBED_METRICS if f"test/{name}" in metrics
    ]
    return f"{', '.join(described)}\n\n{links}"
