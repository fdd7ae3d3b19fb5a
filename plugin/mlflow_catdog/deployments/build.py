"""Builds the image that serves a model."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from docker.errors import APIError
from mlflow.models import Model

from catdog_pyfunc import cpu
from catdog_pyfunc.errors import AccessDenied, RegistryError
from catdog_pyfunc.flavor import downloaded_model, exact_uri
from catdog_pyfunc.pipeline.console import log
from mlflow_catdog.deployments import lock
from mlflow_catdog.deployments.errors import DeploymentError, DeploymentMissing, ModelFailed
from mlflow_catdog.deployments.smoke_request import image_column, smoke_request

if TYPE_CHECKING:
    from docker import DockerClient

_RUNTIME = Path(__file__).parents[1] / "runtime"
_FLAVOR = "python_function"
_LOG_LINES = 30
_OTHER_WHEEL = re.compile(r"\s+Expected\s+or ")  # pip names the hash of every wheel of a release: hundreds, for some


@dataclass(frozen=True)
class FetchedModel:
    """A model's files, and what it is called.

    Attributes:
        folder: Holds `MLmodel`.
        uri: As the user gave it.
        version: `models:/<name>/<number>` if the URI names a registered version or an alias; else the URI.
    """

    folder: Path
    uri: str
    version: str

    def python_version(self) -> str:
        """The Python it was logged with, X.Y.Z."""
        pyfunc = Model.load(self.folder).flavors[_FLAVOR]
        environment = self.folder / pyfunc.get("env", {}).get("virtualenv", "python_env.yaml")
        recorded = (yaml.safe_load(environment.read_text()) if environment.is_file() else {}).get("python")
        return str(recorded or pyfunc.get("python_version") or ".".join(map(str, sys.version_info[:3])))


def alias_of(uri: str) -> tuple[str, str] | None:
    """Registered model and alias of `models:/<name>@<alias>`; None for any other URI."""
    found = re.fullmatch(r"models:/([^/@]+)@(.+)", uri)
    return (found[1], found[2]) if found else None


def exact_version(uri: str) -> str:
    """`exact_uri`, with this target's errors."""
    with _registry_errors():
        return exact_uri(uri)


@contextlib.contextmanager
def _registry_errors() -> Iterator[None]:
    try:
        yield
    except RegistryError as failure:
        raise DeploymentMissing(str(failure)) from None
    except AccessDenied as refusal:
        raise DeploymentError(str(refusal)) from None


def server_digest() -> str:
    """Digest of the server's files, which are in every image."""
    files = [
        *(path for path in _RUNTIME.rglob("*") if path.is_file() and "__pycache__" not in path.parts),
        Path(cpu.__file__),
    ]
    digests = [f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}" for path in files]
    return hashlib.sha256("\n".join(sorted(digests)).encode()).hexdigest()


@contextlib.contextmanager
def fetched(uri: str, flavor: str | None = None, version: str = "") -> Iterator[FetchedModel]:
    """Fetch a model; a downloaded copy is removed when the block ends.

    Args:
        uri: Any URI that MLflow reads.
        flavor: Only "python_function".
        version: What `uri` has been resolved to, if it has been.

    Yields:
        The model. An alias is resolved first, and exactly that version is fetched.

    Raises:
        DeploymentMissing: There is no such model, or it cannot be downloaded.
        DeploymentError: It cannot be deployed as that flavor.
    """
    if flavor not in (None, _FLAVOR):
        raise DeploymentError(f"flavor {flavor!r} cannot be deployed: omit it, or use {_FLAVOR}")
    with contextlib.ExitStack() as stack:
        version = version or exact_version(uri)
        with _registry_errors():
            folder = stack.enter_context(downloaded_model(version))
        if not (folder / "MLmodel").is_file() or _FLAVOR not in Model.load(folder).flavors:
            raise DeploymentError(f"{uri} is not a model with the flavor {_FLAVOR}: choose one that MLflow can serve")
        yield FetchedModel(folder, uri, version)


def build(
    client: DockerClient, model: FetchedModel, base_image: str, tag: str, labels: Mapping[str, str], lock_file: str = ""
) -> str:
    """Build a model's image, for the Docker host's own architecture.

    Args:
        client: Of the Docker daemon that builds.
        model: What to serve.
        base_image: Has Python and pip, and pip's configuration if packages come from an index of the user's.
        tag: Of the image.
        labels: Of the image.
        lock_file: Has all that pip may install, with hashes; empty: it installs what the model and the server require.

    Returns:
        The image's id.

    Raises:
        ModelFailed: A build step failed, as when a package cannot be installed; the message quotes the build's log.
    """
    with tempfile.TemporaryDirectory(prefix="catdog-") as scratch:
        context = Path(scratch)
        write_context(model.folder, context, model.version, lock_file)
        log(f"building the image of {model.version} on {base_image}; about a minute if its packages are not cached")
        requirements = _RUNTIME / "requirements.txt"
        hint = lock.how_to_lock(model.version, model.python_version(), requirements, lock_file) if lock_file else ""
        return _build(client, context, base_image, tag, labels, hint)


def write_context(model: Path, context: Path, uri: str = "", lock_file: str = "") -> None:
    """Write all that the Dockerfile copies; `python -m runtime.supervisor` runs in this folder as it does in the image.

    Args:
        model: The model's folder.
        context: An empty folder.
        uri: `models:/<name>/<number>`, by which the V1 and V2 protocols know the model; any other is called `model`.
        lock_file: As for `build`.
    """
    hidden = shutil.ignore_patterns("__pycache__", "Dockerfile", "listener.py")
    shutil.copytree(_RUNTIME, context / "runtime", ignore=hidden)
    shutil.copy(cpu.__file__, context / "runtime")
    shutil.copy(_RUNTIME / "Dockerfile", context)
    shutil.copytree(model, context / "model")
    lock.write_requirements(model, context / "requirements", lock_file)
    (context / "runtime" / "requirements.txt").rename(context / "requirements" / "runtime.txt")
    (context / "smoke_request.json").write_text(json.dumps(smoke_request(model)))
    (context / "served.json").write_text(json.dumps({"image_column": image_column(model), **registered_name(uri)}))
    for path in context.rglob("*"):  # the container's user owns none of them
        path.chmod(0o755 if path.is_dir() else 0o644)


def registered_name(uri: str) -> dict[str, str]:
    """`name` and `version` of a registered version; of any other URI, "model" and none."""
    found = re.fullmatch(r"models:/([^/@]+)/(\d+)", uri)
    return {"name": found[1], "version": found[2]} if found else {"name": "model", "version": ""}


def _build(client: DockerClient, context: Path, base_image: str, tag: str, labels: Mapping[str, str], hint: str) -> str:
    output: list[str] = []
    image = ""
    options: dict[str, Any] = {"buildargs": {"BASE": base_image}, "labels": labels, "tag": tag, "rm": True, "forcerm": True}
    try:
        for entry in client.api.build(path=str(context), decode=True, **options):
            if "error" in entry:
                lines = [line for line in "".join(output).splitlines() if not _OTHER_WHEEL.match(line)][-_LOG_LINES:]
                lines += [hint] if "pip install" in entry["error"] else []
                raise ModelFailed("\n".join([f"cannot build the image on {base_image}: {entry['error'].strip()}", *lines]))
            output.append(entry.get("stream", ""))
            image = str(entry["aux"]["ID"]) if "aux" in entry else image
    except BaseException:
        for layer in reversed(new_layers("".join(output))):
            with contextlib.suppress(APIError):  # another build has continued from it
                client.api.remove_image(layer, noprune=True)
        raise
    return image


def new_layers(output: str) -> list[str]:
    """Find the layers that an unfinished build made, oldest first: not its base image, not what it took from the cache.

    Args:
        output: What Docker has printed so far; its last step did not end.

    Returns:
        The ids of intermediate images.
    """
    steps = re.split(r"^Step \d+/\d+ : ", output, flags=re.MULTILINE)[1:-1]
    made = [step for step in steps if not step.startswith("FROM") and "\n ---> Using cache\n" not in step]
    return [found[-1] for step in made if (found := re.findall(r"^ ---> ([0-9a-f]{12,64})$", step, re.MULTILINE))]
