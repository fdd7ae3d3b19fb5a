"""Models from a registry, in a local store or on a tracking server: what is used in place, and what is left behind."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch

from catdog_pyfunc import flavor
from catdog_pyfunc.bundle import Description
from catdog_pyfunc.network import Network
from catdog_pyfunc.pipeline.evaluation.subprocess_model import subprocess_model
from catdog_pyfunc.pipeline.processes import free_port
from catdog_pyfunc.preprocessing import Preprocess
from tests.project import running


@pytest.fixture(scope="module")
def image(drawn: Path) -> bytes:
    return (drawn / "test" / "cat" / "cat-0001.jpg").read_bytes()


@pytest.fixture(scope="module")
def tracking_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An MLflow server that stores artifacts behind HTTP, as a team's does."""
    folder, port = tmp_path_factory.mktemp("server"), free_port()
    command = ["mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1", "--serve-artifacts"]
    command += ["--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}", "--artifacts-destination", str(folder / "store")]
    address = f"http://127.0.0.1:{port}"
    with running(command, f"{address}/health", folder / "log", cwd=folder):
        yield address


@pytest.fixture(params=["local", pytest.param("server", marks=pytest.mark.slow)])
def registered(request: pytest.FixtureRequest, image: bytes, tmp_path: Path) -> Iterator[str]:
    """The URI of a registered version, in a local store or on a server."""
    local = request.param == "local"
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'mlflow.db'}" if local else request.getfixturevalue("tracking_server"))
    try:
        experiment = mlflow.create_experiment(f"flavor {tmp_path.name}", str(tmp_path / "artifacts") if local else None)
        network = Network(torch.nn.Conv2d(3, 8, 8, stride=8), 8, 2)
        description = Description("mobilenet_v2", ("cat", "dog"), Preprocess(64, 72))
        embeddings = np.eye(4, 8, dtype=np.float32)
        with mlflow.start_run(experiment_id=experiment):
            info = flavor.log_model(
                network,
                description,
                embeddings,
                images=[image],
                name="tiny",
                registered_model_name="Tiny",
                params={"alpha": 1},
                tags={"stage": "dev"},
                step=4,
            )
        assert info.params == {"alpha": "1"}
        assert info.tags["stage"] == "dev"
        yield f"models:/Tiny/{info.registered_model_version}"
    finally:
        mlflow.set_tracking_uri(None)


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The temporary folder of this process and its children, empty."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


def held(temporary: Path) -> list[str]:
    """What lies in the folder, less ONNX Runtime's own session file of a few bytes."""
    return [path.name for path in temporary.iterdir() if path.name != ".ses"]


def test_using_a_model_leaves_nothing_in_the_temporary_folder(
    registered: str, image: bytes, temporary: Path, request: pytest.FixtureRequest
):
    local = request.node.callspec.params["registered"] == "local"
    classifier = flavor.load_model(registered)
    assert held(temporary) == []
    assert classifier.predict([image])[0].error is None
    with flavor.downloaded_model(registered) as folder:
        assert (folder / "MLmodel").is_file()
        assert folder.is_relative_to(temporary) is not local
    assert folder.exists() is local
    assert held(temporary) == []
    with flavor.downloaded_model(registered) as folder:
        run_id = mlflow.models.Model.load(folder).run_id
    assert flavor.load_model(f"runs:/{run_id}/tiny").digest == classifier.digest
    assert held(temporary) == []
    with subprocess_model(registered) as model:
        assert model.predict([image])[0].error is None
    assert held(temporary) == []
