"""The int8 graph: what stays exact in it, and when it is kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import mlflow
import numpy as np
import onnx
import pytest
import torch

from catdog_pyfunc import bundle, export, flavor
from catdog_pyfunc.engine import OnnxEngine
from catdog_pyfunc.network import Network
from catdog_pyfunc.pipeline.data.dataset import Dataset, read_folder
from catdog_pyfunc.pipeline.training import quantization
from catdog_pyfunc.pipeline.training.quantization import quantize, quantized_graph
from catdog_pyfunc.preprocessing import preprocess
from tests.unit.conftest import DESCRIPTION, REFERENCE_EMBEDDINGS, SPEC

TWO_CLASSES = replace(DESCRIPTION, classes=("cat", "dog"))


@pytest.fixture(scope="module")
def network() -> Network:
    torch.manual_seed(2)
    features = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 8, stride=8), torch.nn.ReLU())
    return Network(features, 8, 2).eval()


@pytest.fixture
def dataset(drawn: Path) -> Dataset:
    return read_folder(drawn)


@pytest.fixture
def store(tmp_path: Path) -> None:
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")


def test_an_int8_graph_answers_like_the_float32_one(network: Network, images: list[bytes]):
    pixels = np.stack([preprocess(image, SPEC) for image in images])
    graph = export.onnx_graph(network, TWO_CLASSES, REFERENCE_EMBEDDINGS)
    quantized = quantize(graph, list(pixels))
    assert "QuantizeLinear" in {node.op_type for node in onnx.load_from_string(quantized).graph.node}
    exact, outputs = OnnxEngine(graph).run(pixels), OnnxEngine(quantized, quantized=True).run(pixels)
    np.testing.assert_allclose(outputs.logits, exact.logits, atol=0.05)
    np.testing.assert_allclose(outputs.similarity, exact.similarity, atol=0.05)
    bias = network.head.bias.detach().numpy()
    np.testing.assert_allclose(outputs.class_maps.mean((2, 3)) + bias, outputs.logits, atol=1e-5)


@pytest.mark.usefixtures("store")
def test_an_int8_graph_that_is_fast_enough_is_saved(
    network: Network, dataset: Dataset, images: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(quantization, "LEAST_SPEEDUP", 0)
    with mlflow.start_run() as run:
        graph = quantized_graph(network, TWO_CLASSES, REFERENCE_EMBEDDINGS, dataset, seed=0)
    assert mlflow.get_run(run.info.run_id).data.params["quantize.kept"] == "True"
    described = replace(TWO_CLASSES, quantized=True)
    flavor.save_model(tmp_path / "model", network, described, REFERENCE_EMBEDDINGS, images=images[:4], graph=graph)
    saved = bundle.read(tmp_path / "model" / "artifacts" / "bundle")
    assert saved.description.quantized
    assert (saved.path / "model.onnx").read_bytes() == graph
    assert flavor.load_model(str(tmp_path / "model")).predict(images[:1])[0].label in TWO_CLASSES.classes


@pytest.mark.usefixtures("store")
def test_an_int8_graph_that_is_too_slow_is_not_kept(
    network: Network, dataset: Dataset, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(quantization, "LEAST_SPEEDUP", 1e9)
    with mlflow.start_run() as run:
        assert quantized_graph(network, TWO_CLASSES, REFERENCE_EMBEDDINGS, dataset, seed=0) is None
    assert "fails images per second (quantization.txt" in capsys.readouterr().err
    assert "FAILED" in mlflow.artifacts.load_text(f"runs:/{run.info.run_id}/quantization.txt")


@pytest.mark.usefixtures("store")
def test_an_int8_graph_that_is_worse_is_not_kept(
    network: Network, dataset: Dataset, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    backwards = Network(network.features, 8, 2).eval()
    with torch.no_grad():
        backwards.head.weight.copy_(-50 * network.head.weight)
        backwards.head.bias.copy_(-50 * network.head.bias)
    worse = export.onnx_graph(backwards, TWO_CLASSES, REFERENCE_EMBEDDINGS)
    monkeypatch.setattr(quantization, "quantize", lambda graph, images: worse)
    monkeypatch.setattr(quantization, "LEAST_SPEEDUP", 0)
    with mlflow.start_run():
        assert quantized_graph(network, TWO_CLASSES, REFERENCE_EMBEDDINGS, dataset, seed=0) is None
    assert "log_loss" in capsys.readouterr().err
