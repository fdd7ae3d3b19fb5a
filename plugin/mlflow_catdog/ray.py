"""Ray Serve: `serve run mlflow_catdog.ray:app model_uri=models:/CatDogClassifier/2` serves a model on a Ray cluster.

Each replica is a process with one copy of the model, behind the same server as in a deployment's containers.
"""

# No `from __future__ import annotations`: Ray Serve looks at the class that annotates the builder's parameter.
import contextlib
import json
import math
import os
from typing import Any, Literal

import ray
from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from starlette.types import ASGIApp

from catdog_pyfunc.flavor import downloaded_model, exact_uri
from catdog_pyfunc.internals import SERVING_MODEL_CONFIG
from mlflow_catdog.deployments.build import registered_name
from mlflow_catdog.deployments.smoke_request import image_column, smoke_request
from mlflow_catdog.runtime.app import load
from mlflow_catdog.runtime.settings import Settings


class Arguments(BaseModel):
    """What follows `mlflow_catdog.ray:app` on the command line, or stands under `args` in a configuration file.

    Attributes:
        model_uri: Any URI that MLflow resolves on every node. An alias is resolved once, when the application is built.
        max_body_mb: Larger bodies, in MiB, get a 413.
        num_replicas: How many processes serve; "auto" for Ray Serve's autoscaling from 1 to 100.
        max_queued_requests: How many requests wait in each proxy; further ones get a 429. -1 for no limit.
    """

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    model_uri: str
    max_body_mb: float = Field(100, gt=0)
    num_replicas: int | Literal["auto"] = 1
    max_queued_requests: int = -1


@serve.ingress()
class Classifier:
    """One replica. It raises what is wrong with the model, so that `serve status` shows it."""

    def __init__(self, model_uri: str, max_body_mb: float) -> None:
        """Download the model.

        Args:
            model_uri: An exact version, or any other URI that always means the same model.
            max_body_mb: Larger bodies, in MiB, get a 413.

        Raises:
            RegistryError: There is no such model, or it cannot be downloaded.
        """
        self._download = contextlib.ExitStack()  # kept while in use: a model may read its files at any time
        self._folder = self._download.enter_context(downloaded_model(model_uri))
        self._uri, self._max_body_mb = model_uri, max_body_mb

    async def __serve_build_asgi_app__(self) -> ASGIApp:
        """Load the model, and send it the smoke request; Ray Serve calls it before the replica takes requests.

        Returns:
            The server.

        Raises:
            InvalidOption: The signature does not tell which column takes the image.
            SmokeTestFailed: The model responded with something no user should get.
        """
        threads = max(1, math.floor(ray.get_runtime_context().get_assigned_resources().get("CPU", 1)))
        _limit_threads(threads)
        known = registered_name(self._uri)
        settings = Settings(self._max_body_mb, threads=threads, name=known["name"], version=known["version"])
        request = json.dumps(smoke_request(self._folder)).encode()
        app, _ = await load(str(self._folder), image_column(self._folder), settings, request)
        return app

    def __del__(self) -> None:
        """Delete the download; Ray Serve calls it when the replica has drained."""
        self._download.close()


def app(args: Arguments) -> serve.Application:
    """Build the application.

    Args:
        args: From the command line, or from a configuration file, which may also set each of Ray Serve's own options for
            the deployment `Classifier`.

    Returns:
        The application, of one deployment.

    Raises:
        RegistryError: There is no such model or alias, or the registry cannot be reached.
    """
    deployment = serve.deployment(
        Classifier,
        max_surge_percent=20,  # an update starts new replicas before it stops old ones, at least one
        graceful_shutdown_timeout_s=60,  # as long as MLflow's server lets a request take
        max_constructor_retry_count=3,  # then the model is at fault, not the network
        backpressure_config={"status_code": 429, "retry_after_s": 1},
        **args.model_dump(include={"num_replicas", "max_queued_requests"}, exclude_unset=True),
    )
    return deployment.bind(exact_uri(args.model_uri), args.max_body_mb)


def _limit_threads(threads: int) -> None:
    """Let the model use as many cores as its replica has been given, unless its configuration says otherwise."""
    configured: dict[str, Any] = json.loads(os.environ.get(SERVING_MODEL_CONFIG) or "{}")
    os.environ[SERVING_MODEL_CONFIG] = json.dumps({"threads": threads, **configured})
