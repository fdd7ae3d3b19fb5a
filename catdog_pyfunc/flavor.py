"""Saving, logging and loading a model: one artifact with three flavors (python_function, pytorch, onnx)."""

from __future__ import annotations

import contextlib
import importlib.metadata
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.models.model import ModelInfo
from packaging.requirements import Requirement

from catdog_pyfunc import access, export, internals
from catdog_pyfunc import bundle as bundles
from catdog_pyfunc.bundle import Bundle, Description
from catdog_pyfunc.classifier import Classifier
from catdog_pyfunc.errors import InvalidBundle, RegistryError, first_line
from catdog_pyfunc.images import IMAGE_COLUMN
from catdog_pyfunc.preprocessing import DEFAULT_LIMITS, Floats, Limits
from catdog_pyfunc.pyfunc_model import BUNDLE_ARTIFACT, DEFAULT_MODEL_CONFIG, signature

if TYPE_CHECKING:
    from catdog_pyfunc.network import Network

_PACKAGE = Path(__file__).parent


def save_model(
    path: str | Path,
    network: Network,
    description: Description,
    reference_embeddings: Floats,
    *,
    images: Sequence[bytes],
    graph: bytes | None = None,
    mlflow_model: Model | None = None,
) -> None:
    """Save a classifier as an MLflow model, completely or not at all.

    Args:
        path: The folder to create.
        network: The trained network; it is moved to the CPU and put into evaluation mode.
        description: Classes, preprocessing, calibration and provenance.
        reference_embeddings: (M, D) float32, embeddings of training images; see `Prediction.in_domain`.
        images: Image files on which both engines must agree; 16 or more if available. The first becomes the input example.
        graph: An ONNX graph to serve instead of the network's own, if the description says that it is quantized.
        mlflow_model: MLflow's metadata, passed by `log_model`.

    Raises:
        EnginesDisagree: The logits of PyTorch and ONNX Runtime differ by more than 1e-3; nothing is left at `path`.
        FileExistsError: `path` exists and is not empty.
        InvalidImage: One of `images` cannot be read.

    Example:
        >>> import numpy as np, catdog_pyfunc
        >>> network = catdog_pyfunc.build_network("resnet18", n_classes=2)
        >>> description = catdog_pyfunc.Description("resnet18", ("cat", "dog"), catdog_pyfunc.Preprocess())
        >>> reference = np.full((1, 512), 512**-0.5, np.float32)
        >>> catdog_pyfunc.save_model("model", network, description, reference, images=[image])
        >>> catdog_pyfunc.load_model("model").description.classes
        ('cat', 'dog')
    """
    path = Path(path)
    if path.exists() and any(path.iterdir()):
        raise FileExistsError(f"{path} exists and is not empty: give a folder that does not exist")
    network = network.cpu().eval()
    with tempfile.TemporaryDirectory(prefix="catdog-") as scratch:
        bundle = _write_bundle(Path(scratch) / BUNDLE_ARTIFACT, network, description, reference_embeddings, images, graph)
        try:
            _save_flavors(path, Path(scratch), network, bundle, images[0], mlflow_model or Model())
        except BaseException:
            shutil.rmtree(path, ignore_errors=True)
            raise


def log_model(
    network: Network,
    description: Description,
    reference_embeddings: Floats,
    *,
    images: Sequence[bytes],
    graph: bytes | None = None,
    name: str = "model",
    registered_model_name: str | None = None,
    params: Mapping[str, Any] | None = None,
    tags: Mapping[str, Any] | None = None,
    step: int = 0,
) -> ModelInfo:
    """Log a classifier to the active run; MLflow starts one if there is none.

    Args:
        network: The trained network; it is moved to the CPU and put into evaluation mode.
        description: Classes, preprocessing, calibration and provenance.
        reference_embeddings: (M, D) float32, embeddings of training images.
        images: Image files on which both engines must agree; see `save_model`.
        graph: An ONNX graph to serve instead of the network's own; see `save_model`.
        name: The logged model's name.
        registered_model_name: If given, also register the model under this name.
        params: Parameters of the logged model.
        tags: Tags of the logged model.
        step: The training step.

    Returns:
        MLflow's `ModelInfo`; its `model_uri` loads the model.

    Raises:
        EnginesDisagree: The logits of PyTorch and ONNX Runtime differ by more than 1e-3; nothing is logged.
        InvalidImage: One of `images` cannot be read.

    Example:
        >>> with mlflow.start_run():
        ...     info = catdog_pyfunc.log_model(network, description, reference, images=[image], tags={"stage": "dev"})
        >>> catdog_pyfunc.load_model(info.model_uri).description.backbone
        'resnet18'
    """
    info: ModelInfo = Model.log(
        artifact_path=None,
        name=name,
        flavor=sys.modules[__name__],
        registered_model_name=registered_model_name,
        params=dict(params) if params else None,
        tags=dict(tags) if tags else None,
        step=step,
        network=network,
        description=description,
        reference_embeddings=reference_embeddings,
        images=images,
        graph=graph,
    )
    return info


def load_model(
    model_uri: str, *, engine: str = "auto", threads: int | None = None, limits: Limits = DEFAULT_LIMITS
) -> Classifier:
    """Load a model's classifier, for use without DataFrames.

    Args:
        model_uri: Any URI that MLflow resolves: `models:/CatDogClassifier@production`, `runs:/<RUN_ID>/model`, a folder.
        engine: "onnx", "torch", or "auto": PyTorch if it is installed and finds a CUDA device, else ONNX Runtime.
        threads: How many cores to use; None for all that are available.
        limits: Largest file and image.

    Returns:
        The classifier.

    Raises:
        RegistryError: There is no such model, or it cannot be downloaded.
        InvalidBundle: The model was not saved by this project, or is damaged.
        InvalidSetting: The engine is unknown.
        MissingDependency: The engine is "torch" and PyTorch is not installed.

    Example:
        >>> classifier = catdog_pyfunc.load_model("model", limits=catdog_pyfunc.Limits(max_bytes=5_000_000))
        >>> (prediction,) = classifier.predict([b"%PDF-1.7"])
        >>> print(prediction.error.split(";")[0])
        image 0 is neither an image nor base64: starts with b'%PDF-1.7'
    """
    with opened_bundle(model_uri) as bundle:
        return Classifier(bundle, engine=engine, threads=threads, limits=limits)


@contextlib.contextmanager
def opened_bundle(model_uri: str) -> Iterator[Bundle]:
    """Make the bundle of a model that this project logged available as files.

    Args:
        model_uri: Any URI that MLflow resolves.

    Yields:
        The bundle; a download is deleted when the context ends.

    Raises:
        RegistryError: There is no such model, or it cannot be downloaded.
        InvalidBundle: The model was not saved by this project, or is damaged.
    """
    with downloaded_model(model_uri) as folder:
        bundle = folder / "artifacts" / BUNDLE_ARTIFACT
        if not bundle.is_dir():
            raise InvalidBundle(f"{model_uri} contains no catdog bundle: give a model that this project saved")
        yield bundles.read(bundle)


@contextlib.contextmanager
def downloaded_model(model_uri: str) -> Iterator[Path]:
    """Make a model available as a folder.

    Args:
        model_uri: Any URI that MLflow resolves.

    Yields:
        The folder that contains `MLmodel`. If the model is on this machine already, that is its own folder; otherwise a
        download, which is deleted when the context ends.

    Raises:
        RegistryError: There is no such model, or it cannot be downloaded.
    """
    with contextlib.ExitStack() as stack:
        with _loading(model_uri):
            folder = internals.local_model(model_uri)
            if folder is None:
                scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="catdog-"))
                folder = Path(mlflow.artifacts.download_artifacts(artifact_uri=model_uri, dst_path=scratch))
        yield folder


def exact_uri(model_uri: str) -> str:
    """Resolve an alias, so that whatever is loaded later is the version that it names now.

    Args:
        model_uri: Any URI that MLflow resolves.

    Returns:
        `models:/<name>/<number>` for a registered version or an alias; any other URI as it is.

    Raises:
        RegistryError: There is no such model or alias, or the registry cannot be reached.
    """
    if not re.fullmatch(r"models:/[^/@]+[/@].+", model_uri):  # a run's model, a folder, models:/m-<id>
        return model_uri
    with _loading(model_uri):
        name, version = internals.registered_version(mlflow.MlflowClient(), model_uri)
    return f"models:/{name}/{version}"


@contextlib.contextmanager
def _loading(model_uri: str) -> Iterator[None]:
    try:
        if model_uri.startswith(("models:", "runs:")):
            access.signed_in_user()  # fails at once where MLflow would try for minutes
        yield
    except (MlflowException, OSError) as error:
        access.check(error)
        raise RegistryError(
            f"cannot load model {model_uri} from {mlflow.get_tracking_uri()} ({first_line(error)}): "
            "give models:/<name>@<alias>, models:/<name>/<version>, runs:/<run id>/model or a folder"
        ) from None


def _write_bundle(
    path: Path,
    network: Network,
    description: Description,
    reference_embeddings: Floats,
    images: Sequence[bytes],
    graph: bytes | None,
) -> Bundle:
    from safetensors.torch import save

    exported = export.onnx_graph(network, description, reference_embeddings)
    export.check_agreement(exported, network, description, reference_embeddings, images)
    weights = save({name: tensor.contiguous() for name, tensor in network.state_dict().items()})
    return bundles.write(path, description, reference_embeddings, weights=weights, graph=graph or exported)


def _save_flavors(path: Path, scratch: Path, network: Network, bundle: Bundle, image: bytes, model: Model) -> None:
    model.metadata = {**(model.metadata or {}), "bundle_digest": bundle.digest}
    _add_frameworks(model)
    code = scratch / _PACKAGE.name
    code.mkdir()
    for file in _PACKAGE.glob("*.py"):  # the serving files only: `pipeline` stays out of the model
        shutil.copy(file, code)
    mlflow.pyfunc.save_model(
        path,
        python_model=str(_PACKAGE / "from_code.py"),
        artifacts={BUNDLE_ARTIFACT: str(bundle.path)},
        code_paths=[str(code)],
        signature=signature(bundle.description.classes),
        input_example=pd.DataFrame({IMAGE_COLUMN: [image]}),
        pip_requirements=_pinned_requirements(),
        model_config=dict(DEFAULT_MODEL_CONFIG),  # MLflow later accepts only the keys given here
        mlflow_model=model,
    )
    folder = path / "pytorch"
    folder.mkdir()
    export.save_torchscript(network, bundle.description.preprocess.size, folder / "model.pth")
    name, module = internals.PICKLE_MODULE_FILE
    (folder / name).write_text(module)


def _pinned_requirements() -> list[str]:
    """The packages of requirements.txt that apply here, in their installed versions."""
    lines = (_PACKAGE / "requirements.txt").read_text().splitlines()
    requirements = [Requirement(line) for line in lines if line and not line.startswith("#")]
    pinned = []
    for requirement in requirements:
        if requirement.marker is None or requirement.marker.evaluate():
            marker = f"; {requirement.marker}" if requirement.marker else ""
            pinned.append(f"{requirement.name}=={importlib.metadata.version(requirement.name)}{marker}")
    return pinned


def _add_frameworks(model: Model) -> None:
    import torch

    graph = f"artifacts/{BUNDLE_ARTIFACT}/{bundles.GRAPH}"
    model.add_flavor("pytorch", pytorch_version=str(torch.__version__), model_data="pytorch")
    model.add_flavor("onnx", onnx_version=importlib.metadata.version("onnx"), data=graph, providers=["CPUExecutionProvider"])
