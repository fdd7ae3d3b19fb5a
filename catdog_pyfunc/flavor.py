"""save_model, log_model, load_model: one artifact, three flavors (python_function, pytorch, onnx)."""

from __future__ import annotations

import importlib.metadata
import io
import shutil
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import Model

from catdog_pyfunc import bundle as bundles
from catdog_pyfunc import internals
from catdog_pyfunc.bundle import Bundle, Description
from catdog_pyfunc.classifier import Classifier
from catdog_pyfunc.engine import OUTPUTS, OnnxEngine
from catdog_pyfunc.errors import EnginesDisagree, InvalidBundle, RegistryError
from catdog_pyfunc.images import IMAGE_COLUMN
from catdog_pyfunc.preprocessing import Floats, preprocess
from catdog_pyfunc.pyfunc_model import ARTIFACT, SETTINGS, signature

if TYPE_CHECKING:
    from catdog_pyfunc.network import Network

TOLERANCE = 1e-3  # how far the two engines' logits may be apart
_POSIX_ONLY = {"uvloop": "; sys_platform != 'win32'"}
_PACKAGE = Path(__file__).parent
# mlflow-skinny and not mlflow: the server needs no more, and installs in half the time and space. MLflow's server takes
# fastparquet, httptools and uvloop where it finds them: parquet bodies, faster HTTP, no 40 ms of waiting with two workers.
_REQUIREMENTS = (
    "fastparquet",
    "httptools",
    "mlflow-skinny",
    "numpy",
    "onnxruntime",
    "pandas",
    "pillow",
    "pybase64",
    "uvloop",
)


def save_model(
    path: str | Path,
    network: Network,
    description: Description,
    reference: Floats,
    *,
    pictures: Sequence[bytes],
    mlflow_model: Model | None = None,
) -> None:
    """Save a classifier as an MLflow model, whole or not at all.

    Args:
        path: The folder to make.
        network: The trained network; it is left on CPU, in evaluation mode.
        description: Classes, preprocessing and where it all came from.
        reference: (M, D), embeddings of training pictures, each of length 1; what is like none: neither.
        pictures: Files of the training data on which the two engines must agree; 16 or more, if there are so many. The
            first is kept as the input example.
        mlflow_model: MLflow's own description, when `log_model` calls.

    Raises:
        EnginesDisagree: PyTorch's and ONNX Runtime's logits differ by more than 1e-3: nothing is left at `path`.
        FileExistsError: There is something at `path`.
    """
    path = Path(path)
    if path.exists() and any(path.iterdir()):
        raise FileExistsError(f"{path} is there already and not empty: give a folder that doesn't exist")
    network = network.cpu().eval()
    with tempfile.TemporaryDirectory(prefix="catdog-") as scratch:
        bundle = _write_bundle(Path(scratch) / ARTIFACT, network, description, reference, pictures)
        try:
            _save_flavors(path, Path(scratch), network, bundle, pictures[0], mlflow_model or Model())
        except BaseException:
            shutil.rmtree(path, ignore_errors=True)
            raise


def log_model(
    network: Network,
    description: Description,
    reference: Floats,
    *,
    pictures: Sequence[bytes],
    name: str = "model",
    **logging: Any,
) -> Any:
    """Log a classifier to the active run.

    Args:
        network: As for `save_model`.
        description: Likewise.
        reference: Likewise.
        pictures: Likewise.
        name: The model's name in the run: `runs:/<RUN_ID>/<name>`.
        **logging: What `mlflow.models.Model.log` takes besides: `registered_model_name`, `tags`, `params`, …

    Returns:
        MLflow's `ModelInfo`.
    """
    return Model.log(
        artifact_path=None,
        name=name,
        flavor=sys.modules[__name__],
        network=network,
        description=description,
        reference=reference,
        pictures=pictures,
        **logging,
    )


def load_model(model_uri: str, **settings: Any) -> Classifier:
    """Load the classifier behind a model, without the DataFrames.

    Args:
        model_uri: Any that MLflow knows: `models:/CatDogClassifier@production`, `runs:/<RUN_ID>/model`, a folder.
        **settings: What `Classifier` takes: engine, threads, limits.

    Returns:
        The classifier.

    Raises:
        RegistryError: There is no such model.
        InvalidBundle: The model isn't one of this project's, or is damaged.
    """
    folder = download_model(model_uri) / "artifacts" / ARTIFACT
    if not folder.is_dir():
        raise InvalidBundle(f"{model_uri} holds no catdog bundle: give a model that this project's training logged")
    return Classifier(bundles.read(folder), **settings)


def download_model(model_uri: str) -> Path:
    """The folder of a model, downloaded if it is elsewhere.

    Args:
        model_uri: Any that MLflow knows.

    Returns:
        The folder that holds `MLmodel`.

    Raises:
        RegistryError: There is no such model.
    """
    try:
        return Path(mlflow.artifacts.download_artifacts(artifact_uri=str(model_uri)))
    except (MlflowException, OSError) as missing:
        raise RegistryError(
            f"model {model_uri} can't be had from {mlflow.get_tracking_uri()} ({missing}): "
            "give models:/<name>@<alias>, models:/<name>/<version>, runs:/<run id>/model or a folder"
        ) from None


def _write_bundle(
    path: Path, network: Network, description: Description, reference: Floats, pictures: Sequence[bytes]
) -> Bundle:
    from safetensors.torch import save

    graph = export_graph(network, description, reference)
    _check_agreement(network, graph, description, reference, pictures)
    weights = save({name: tensor.contiguous() for name, tensor in network.state_dict().items()})
    return bundles.write(path, description, reference, weights=weights, graph=graph)


def export_graph(network: Network, description: Description, reference: Floats) -> bytes:
    """Turn a network into ONNX: `images` (N, size, size, 3) uint8 in; logits, embedding, class maps, likeness out.

    Args:
        network: On CPU, in evaluation mode.
        description: Its preprocessing goes into the graph.
        reference: (M, D), so does this.

    Returns:
        An ONNX file's content; N is free.
    """
    import torch

    from catdog_pyfunc.network import ServingNetwork

    spec = description.preprocess
    example = torch.zeros(2, spec.size, spec.size, 3, dtype=torch.uint8)
    content = io.BytesIO()
    with warnings.catch_warnings(), torch.inference_mode(False), torch.no_grad():
        # dynamo=False: the same graph in 0.7 s instead of 6.5, without onnxscript; PyTorch calls it legacy, and says so.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            ServingNetwork(network, spec.mean, spec.std, torch.from_numpy(reference)).eval(),
            (example,),
            content,  # type: ignore[arg-type]  # a file object is taken, though only paths are declared
            dynamo=False,
            opset_version=17,
            input_names=["images"],
            output_names=list(OUTPUTS),
            dynamic_axes={name: {0: "N"} for name in ("images", *OUTPUTS)},
        )
    return content.getvalue()


def _check_agreement(
    network: Network, graph: bytes, description: Description, reference: Floats, pictures: Sequence[bytes]
) -> None:
    import torch

    from catdog_pyfunc.network import ServingNetwork

    spec = description.preprocess
    images = np.stack([preprocess(picture, spec) for picture in pictures])
    with torch.inference_mode():
        engine = ServingNetwork(network, spec.mean, spec.std, torch.from_numpy(reference)).eval()
        expected = engine(torch.from_numpy(images))[0].numpy()
    found = OnnxEngine(graph).run(images).logits
    apart = np.abs(expected - found)
    if not (apart <= TOLERANCE).all():  # so that NaN fails, too
        raise EnginesDisagree(
            f"PyTorch and ONNX Runtime differ by {apart.max():.2g} in the logits of {len(images)} pictures, more than "
            f"{TOLERANCE:g}: nothing was saved; try another backbone or another onnxruntime"
        )


def _save_flavors(path: Path, scratch: Path, network: Network, bundle: Bundle, picture: bytes, model: Model) -> None:
    model.metadata = {**(model.metadata or {}), "bundle_digest": bundle.digest}
    _add_frameworks(model)
    code = scratch / _PACKAGE.name
    code.mkdir()
    for file in _PACKAGE.glob("*.py"):  # the serving files only: `pipeline` never travels
        shutil.copy(file, code)
    mlflow.pyfunc.save_model(
        path,
        python_model=str(_PACKAGE / "from_code.py"),
        artifacts={ARTIFACT: str(bundle.path)},
        code_paths=[str(code)],
        signature=signature(bundle.description.classes),
        input_example=pd.DataFrame({IMAGE_COLUMN: [picture]}),
        pip_requirements=_requirements(),
        model_config=dict(SETTINGS),  # MLflow lets only those be set later that stand here
        mlflow_model=model,
    )
    _save_torchscript(path / "pytorch", network, bundle.description.preprocess.size)


def _requirements() -> list[str]:
    versions = {
        name: importlib.metadata.version(name) for name in _REQUIREMENTS if name != "uvloop" or sys.platform != "win32"
    }
    return [f"{name}=={version}" + _POSIX_ONLY.get(name, "") for name, version in versions.items()]


def _save_torchscript(folder: Path, network: Network, size: int) -> None:
    """Write what `mlflow.pytorch.load_model` opens.

    TorchScript, because it is the one form which that function loads into a module with `.to()` and `.eval()` without
    unpickling Python objects: `pt2` has no `.eval()`, and a pickled module runs whatever code it names.
    """
    import torch

    folder.mkdir(parents=True)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(network.requires_grad_(False), torch.zeros(2, 3, size, size), check_trace=False)  # type: ignore[no-untyped-call]
        torch.jit.save(traced, folder / "model.pth")
    name, module = internals.PICKLE_MODULE_FILE
    (folder / name).write_text(module)


def _add_frameworks(model: Model) -> None:
    import torch

    graph = f"artifacts/{ARTIFACT}/{bundles.GRAPH}"
    model.add_flavor("pytorch", pytorch_version=str(torch.__version__), model_data="pytorch")
    model.add_flavor("onnx", onnx_version=importlib.metadata.version("onnx"), data=graph, providers=["CPUExecutionProvider"])
