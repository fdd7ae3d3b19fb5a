"""Replaces a deployment's model: image, candidate, smoke test, commit. Until the last, the previous model serves."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from catdog_pyfunc.pipeline.console import log
from mlflow_catdog.deployments import build, containers, images, recovery
from mlflow_catdog.deployments.docker_client import ensure_image, untag
from mlflow_catdog.deployments.errors import Superseded
from mlflow_catdog.deployments.options import Options

if TYPE_CHECKING:
    from docker import DockerClient


def base_image(client: DockerClient, model: build.FetchedModel, options: Options) -> str:
    """The image to build on, pulled unless it is there."""
    base = options.base_image or f"python:{model.python_version()}-slim"
    ensure_image(client, base)
    return base


def update(
    client: DockerClient,
    name: str,
    uri: str,
    version: str,
    options: Options,
    flavor: str | None = None,
    still_wanted: Callable[[], bool] = lambda: True,
) -> Any:
    """Serve a model, from an image that is still there or else from a new one.

    Args:
        client: Of the Docker daemon.
        name: The deployment's.
        uri: Any URI that MLflow reads.
        version: What `uri` has been resolved to.
        options: Of the deployment.
        flavor: Only "python_function".
        still_wanted: Asked once the image is built, which may take minutes.

    Returns:
        The model's response to the smoke test.

    Raises:
        DeploymentError: The previous model serves on.
    """
    if image := images.find(client, name, images.image_key(version, options)):
        return _serve(client, name, image, uri, version, options)
    with build.fetched(uri, flavor, version) as model:
        return build_and_serve(client, name, model, options, base_image(client, model, options), still_wanted)


def build_and_serve(
    client: DockerClient,
    name: str,
    model: build.FetchedModel,
    options: Options,
    base: str,
    still_wanted: Callable[[], bool] = lambda: True,
) -> Any:
    """Build a model's image, and serve it; as `update`."""
    labels = images.labels(client, name, images.image_key(model.version, options), base)
    tag = containers.candidate_tag(name)
    try:
        image = build.build(client, model, base, tag, labels, options.lock_file)
        if not still_wanted():
            raise Superseded(f"{model.uri} is no longer {model.version}: it was not deployed")
        return _serve(client, name, image, model.uri, model.version, options)
    finally:
        untag(client, tag)


def _serve(client: DockerClient, name: str, image: str, uri: str, version: str, options: Options) -> Any:
    previous = recovery.serving(client, name)
    log(f"{name}: starting {version}")
    labels = {containers.MODEL_URI: uri, containers.MODEL: version}
    with contextlib.ExitStack() as undo:
        candidate = containers.start_candidate(client, name, image, options, labels)
        undo.callback(containers.remove, candidate, timeout_s=5)  # it may still be loading
        prediction = containers.await_prediction(candidate, options.ready_timeout_s)
        undo.pop_all()
    recovery.commit(client, name, candidate)
    images.keep(client, name, image, previous.attrs["Image"] if previous else None)
    return prediction
