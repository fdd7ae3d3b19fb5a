"""The images of a deployment: the one that serves, and the one before, which is kept so that a roll-back takes seconds."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import mlflow
from docker.errors import ImageNotFound
from mlflow.exceptions import MlflowException

from mlflow_catdog.deployments import build, containers
from mlflow_catdog.deployments.options import Options

if TYPE_CHECKING:
    from docker import DockerClient

_KEY, _BASE, _BASE_ID = (f"catdog.{name}" for name in ("image_key", "base", "base_id"))


def image_key(version: str, options: Options) -> str:
    """Digest of what an image is made of, the base image aside: a registered version, the server, the options of the build.

    Args:
        version: `models:/<name>/<number>`. Files behind other URIs may change, so for these the key is empty.
        options: Of the deployment.
    """
    if not (found := re.fullmatch(r"models:/([^/@]+)/(\d+)", version)):
        return ""
    try:
        registered = mlflow.MlflowClient().get_model_version(*found.groups())
    except MlflowException:  # fetching the model will fail, too, with a message
        return ""
    # Another registry may have a version of the same name and number.
    origin = [version, registered.creation_timestamp, registered.source]
    locked = Path(options.lock_file).read_text() if options.lock_file else ""
    return hashlib.sha256(json.dumps([*origin, build.server_digest(), options.base_image, locked]).encode()).hexdigest()


def labels(client: DockerClient, name: str, key: str, base: str) -> dict[str, str]:
    """The labels of an image that is about to be built on `base`."""
    return {containers.DEPLOYMENT: name, _KEY: key, _BASE: base, _BASE_ID: str(client.images.get(base).id)}


def find(client: DockerClient, name: str, key: str) -> str | None:
    """The id of a deployment's image with that key; None if there is none, or its base image has been replaced since."""
    for image in client.images.list(filters={"label": [f"{containers.DEPLOYMENT}={name}", f"{_KEY}={key}"]}) if key else []:
        try:
            base = str(client.images.get(image.labels[_BASE]).id)
        except ImageNotFound:  # removed: its layers are still in the image
            return str(image.id)
        if base == image.labels[_BASE_ID]:
            return str(image.id)
    return None


def keep(client: DockerClient, name: str, image: str, previous: str | None) -> None:
    """Tag the image that serves and the one that served before it; remove a deployment's other images.

    Args:
        client: Of the Docker daemon.
        name: The deployment's.
        image: Id of the image that serves.
        previous: Id of the image that served before; None for none.
    """
    if previous not in (None, image):
        client.images.get(str(previous)).tag(containers.previous_tag(name))
    client.images.get(image).tag(containers.image_tag(name))
    containers.remove_untagged_images(client, name)
