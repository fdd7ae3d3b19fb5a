"""A model → an image that serves it."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import yaml
from mlflow.exceptions import MlflowException
from mlflow.models import Model

from catdog_pyfunc.pipeline.console import log
from mlflow_catdog.deployments.errors import DeploymentError, DeploymentMissing
from mlflow_catdog.deployments.smoke_request import request_for

if TYPE_CHECKING:
    from docker import DockerClient

_INSIDE = Path(__file__).parents[1] / "runtime"
_FLAVOR = "python_function"


@dataclass(frozen=True)
class FetchedModel:
    """A model's files, in a folder of their own, and what it is called.

    Attributes:
        folder: Holds `MLmodel`.
        uri: As it was asked for.
        version: `models:/<name>/<number>` if it is a registered version; else as it was asked for.
    """

    folder: Path
    uri: str
    version: str

    def python(self) -> str:
        """The Python that it was made with, X.Y.Z."""
        pyfunc = Model.load(self.folder).flavors[_FLAVOR]
        environment = self.folder / pyfunc.get("env", {}).get("virtualenv", "python_env.yaml")
        said = (yaml.safe_load(environment.read_text()) if environment.is_file() else {}).get("python")
        return str(said or pyfunc.get("python_version") or ".".join(map(str, sys.version_info[:3])))


@contextmanager
def fetched(uri: str, flavor: str | None = None) -> Iterator[FetchedModel]:
    """Fetch a model; its folder goes with the context.

    Args:
        uri: Any that MLflow knows.
        flavor: Only "python_function".

    Yields:
        The model.

    Raises:
        DeploymentMissing: There is no such model, or it can't be had.
        DeploymentError: It can't be deployed as that flavor.
    """
    if flavor not in (None, _FLAVOR):
        raise DeploymentError(f"flavor {flavor!r} can't be deployed here: leave it out, or give {_FLAVOR}")
    with tempfile.TemporaryDirectory(prefix="catdog-") as scratch:
        folder = Path(scratch) / "model"
        folder.mkdir()
        try:
            found = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=str(folder)))
        except (MlflowException, OSError) as missing:
            raise DeploymentMissing(f"model {uri} can't be had from {mlflow.get_tracking_uri()}: {missing}") from None
        if not (found / "MLmodel").is_file() or _FLAVOR not in Model.load(found).flavors:
            raise DeploymentError(f"{uri} is no model with the flavor {_FLAVOR}: give one that MLflow can serve")
        meta = found / "registered_model_meta"
        named = yaml.safe_load(meta.read_text()) if meta.is_file() else None
        yield FetchedModel(found, uri, f"models:/{named['model_name']}/{named['model_version']}" if named else uri)


def build(engine: DockerClient, model: FetchedModel, base_image: str, tag: str, labels: Mapping[str, str]) -> str:
    """Build the image of a model, for the engine's own architecture.

    Args:
        engine: Where to.
        model: Which.
        base_image: What to build on; with Python and pip. What pip has to know about package indexes is set there.
        tag: Of the image.
        labels: Likewise.

    Returns:
        The image's id.

    Raises:
        DeploymentError: The base image can't be had, or a package can't be installed; the message ends with the log's end.
    """
    with tempfile.TemporaryDirectory(prefix="catdog-") as scratch:
        context = Path(scratch)
        shutil.copytree(
            _INSIDE, context / "runtime", ignore=shutil.ignore_patterns("__pycache__", "Dockerfile", "listener.py")
        )
        shutil.copytree(model.folder, context / "model")
        requirements = model.folder / "requirements.txt"
        (context / "requirements.txt").write_text(requirements.read_text() if requirements.is_file() else "")
        (context / "probe.json").write_text(json.dumps(request_for(model.folder)))
        shutil.copy(_INSIDE / "Dockerfile", context)
        for path in context.rglob("*"):  # the container's user is nobody here
            path.chmod(0o755 if path.is_dir() else 0o644)
        log(f"building the image of {model.version} on {base_image}; a minute, if its packages aren't there yet")
        return _build(engine, context, base_image, tag, labels)


def _build(engine: DockerClient, context: Path, base_image: str, tag: str, labels: Mapping[str, str]) -> str:
    log: list[str] = []
    image = ""
    options: dict[str, Any] = {"buildargs": {"BASE": base_image}, "labels": labels, "tag": tag, "rm": True, "forcerm": True}
    for entry in engine.api.build(path=str(context), decode=True, **options):
        if "error" in entry:
            engine.images.prune({"dangling": True, "label": "catdog.layer"})  # what the steps before it made
            end = "\n".join("".join(log).splitlines()[-30:])
            raise DeploymentError(f"the image on {base_image} can't be built: {entry['error'].strip()}\n{end}")
        log.append(entry.get("stream", ""))
        if "aux" in entry:
            image = str(entry["aux"]["ID"])
    return image
