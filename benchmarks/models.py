"""The models that are served (this project's, the plain one, one that does nothing), and the environment for it."""

from __future__ import annotations

import json
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
    """The environment that MLflow would build for the model: what its requirements.txt names, and nothing else."""
    folder, wanted = REPOSITORY / ".venv-served", (model / "requirements.txt").read_text()
    stamp = folder / "requirements.txt"
    if not stamp.exists() or stamp.read_text() != wanted:
        print(f"installing the model's requirements into {folder.name}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        python = str(folder / "bin" / "python")
        subprocess.run([python, "-m", "pip", "install", "-q", "-r", str(model / "requirements.txt")], check=True)
        stamp.write_text(wanted)
    return folder / "bin" / "python"


def peers(model: Path, weights: Path, scratch: Path) -> tuple[Path, Path]:
    """Save the model that does nothing and the plain one, with the real one's signature."""
    served = mlflow.pyfunc.load_model(str(model))
    example = served.input_example
    answer = scratch / "answer.json"
    answer.write_text(json.dumps(json.loads(served.predict(example).to_json(orient="records"))))
    nothing, plain = scratch / "nothing", scratch / "plain"
    signature = served.metadata.signature
    sys.path.insert(0, str(PEERS))  # saving a model from code runs it, and one imports plain.py
    for path, code, artifacts, required in (
        (nothing, "nothing_pyfunc.py", {"answer": str(answer)}, []),
        (plain, "plain_pyfunc.py", {"weights": str(weights)}, ["torch", "torchvision"]),
    ):
        mlflow.pyfunc.save_model(
            path,
            python_model=str(PEERS / code),
            artifacts=artifacts,
            signature=signature,
            pip_requirements=["mlflow", *required],
            code_paths=[str(PEERS / "plain.py")],
        )
    return nothing, plain


def open_or_make(uri: str | None, picture: bytes, scratch: Path) -> Path:
    """The folder of the model to measure: the given one, or an untrained one."""
    if uri:
        return Path(mlflow.artifacts.download_artifacts(artifact_uri=uri))
    import torch

    from catdog_pyfunc.network import build

    print("no --model: an untrained mobilenet_v2 is measured, which takes as long")
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    reference = rng.normal(size=(2000, 1280)).astype(np.float32)
    reference /= np.linalg.norm(reference, axis=1, keepdims=True)
    description = Description("mobilenet_v2", ("cat", "dog"), Preprocess())
    flavor.save_model(scratch / "model", build("mobilenet_v2", 2), description, reference, pictures=[picture])
    return scratch / "model"
