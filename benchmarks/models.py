"""The models that are served (this project's, the PyTorch baseline, an empty one) and the environment that serves them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import mlflow
import numpy as np
from servers import PEERS

from catdog_pyfunc import flavor
from catdog_pyfunc.bundle import Description
from catdog_pyfunc.preprocessing import Preprocess

REPOSITORY = Path(__file__).parent.parent


def environment(model: Path) -> Path:
    """The Python of an environment with the requirements of the model and of a deployment's server, and nothing else."""
    files = (model / "requirements.txt", REPOSITORY / "plugin" / "mlflow_catdog" / "runtime" / "requirements.txt")
    folder, wanted = REPOSITORY / ".venv-served", "".join(file.read_text() for file in files)
    stamp = folder / "requirements.txt"
    if not stamp.exists() or stamp.read_text() != wanted:
        print(f"installing the model's requirements into {folder.name}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        python = str(folder / "bin" / "python")
        words = [word for file in files for word in ("-r", str(file))]
        subprocess.run([python, "-m", "pip", "install", "-q", *words], check=True)
        stamp.write_text(wanted)
    return folder / "bin" / "python"


def peers(model: Path, weights: Path, scratch: Path) -> tuple[Path, Path]:
    """Save the empty model and the PyTorch baseline with the real model's signature; their folders."""
    served = mlflow.pyfunc.load_model(str(model))
    response = scratch / "response.json"
    response.write_text(served.predict(served.input_example).to_json(orient="records"))
    empty, baseline = scratch / "empty", scratch / "baseline"
    signature = served.metadata.signature
    sys.path.insert(0, str(PEERS))  # saving a model from code runs it, and one imports torch_baseline.py
    for path, code, artifacts, required in (
        (empty, "empty_pyfunc.py", {"response": str(response)}, []),
        (baseline, "torch_pyfunc.py", {"weights": str(weights)}, ["torch", "torchvision"]),
    ):
        mlflow.pyfunc.save_model(
            path,
            python_model=str(PEERS / code),
            artifacts=artifacts,
            signature=signature,
            pip_requirements=["mlflow", *required],
            code_paths=[str(PEERS / "torch_baseline.py")],
        )
    return empty, baseline


def open_or_create(uri: str | None, image: bytes, scratch: Path) -> Path:
    """The folder of the model to measure: the given one, or a new, untrained one."""
    if uri:
        return Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=str(scratch / "model")))
    import torch

    from catdog_pyfunc.network import build_network

    print("no --model given: measuring an untrained mobilenet_v2, which is just as fast")
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    embeddings = rng.normal(size=(2000, 1280)).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    description = Description("mobilenet_v2", ("cat", "dog"), Preprocess())
    flavor.save_model(scratch / "model", build_network("mobilenet_v2", 2), description, embeddings, images=[image])
    return scratch / "model"
