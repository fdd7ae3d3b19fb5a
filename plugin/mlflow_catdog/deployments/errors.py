"""Errors of the deployment target: MLflow exceptions, which `mlflow deployments` prints without a traceback."""

from __future__ import annotations

from click import ClickException
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import (
    INVALID_PARAMETER_VALUE,
    RESOURCE_ALREADY_EXISTS,
    RESOURCE_DOES_NOT_EXIST,
    TEMPORARILY_UNAVAILABLE,
    ErrorCode,
)

from catdog_pyfunc.errors import CatDogError


class DeploymentError(CatDogError, MlflowException, ClickException):  # type: ignore[misc]  # both have `message`
    """A deployment cannot be created, changed, found or reached; whatever was deployed before is unchanged.

    Each subclass sets MLflow's `error_code`.
    """

    code = ErrorCode.Name(TEMPORARILY_UNAVAILABLE)

    def __init__(self, message: str) -> None:
        MlflowException.__init__(self, message, ErrorCode.Value(self.code))


class InvalidOption(DeploymentError, ValueError):  # type: ignore[misc]
    """A name, an option or an input cannot be used."""

    code = ErrorCode.Name(INVALID_PARAMETER_VALUE)


class ModelFailed(DeploymentError):
    """The model cannot be built or started, or fails its smoke test: trying again would not help."""


class Superseded(DeploymentError):
    """Another version has been asked for meanwhile."""


class DeploymentMissing(DeploymentError):
    """There is no deployment, or no model, of that name."""

    code = ErrorCode.Name(RESOURCE_DOES_NOT_EXIST)


class DeploymentExists(DeploymentError):
    """The name is taken, or another command is changing that deployment."""

    code = ErrorCode.Name(RESOURCE_ALREADY_EXISTS)
