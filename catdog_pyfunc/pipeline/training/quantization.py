"""An int8 graph beside the float32 one: calibrated on val, and kept only if it is faster and not worse."""

from __future__ import annotations

import contextlib
import io
import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from catdog_pyfunc import bundle as bundles
from catdog_pyfunc import export
from catdog_pyfunc.bundle import Description
from catdog_pyfunc.classifier import Classifier
from catdog_pyfunc.network import Network
from catdog_pyfunc.pipeline.console import log, text_table
from catdog_pyfunc.pipeline.data.dataset import Dataset
from catdog_pyfunc.pipeline.evaluation.evaluation import evaluate, labelled_images
from catdog_pyfunc.pipeline.evaluation.predictors import Predictor, classifier_predictor
from catdog_pyfunc.pipeline.registry import checks, gate
from catdog_pyfunc.pipeline.registry.checks import Check
from catdog_pyfunc.preprocessing import Floats, Pixels, preprocess

LEAST_SPEEDUP = 1.25  # of whole predictions, decoding included
_CALIBRATION_IMAGES = 200
_TIMED_IMAGES, _TIMED_ROUNDS = 64, 8
_OPERATORS = ["Add", "Clip", "Conv", "GlobalAveragePool", "Relu"]


def quantized_graph(
    network: Network, description: Description, reference_embeddings: Floats, dataset: Dataset, seed: int
) -> bytes | None:
    """Quantize a classifier's graph, and compare the two on val by the gate's own checks.

    The checks go to the active run as `quantization.txt`.

    Args:
        network: On CPU, in evaluation mode.
        description: Its preprocessing and calibration, which both graphs share.
        reference_embeddings: (M, D).
        dataset: The graph is calibrated on 200 images of val, and compared on all of them.
        seed: Seed of the bootstrap.

    Returns:
        The int8 graph if it is not worse and at least 1.25 times as fast; else None.
    """
    log("quantizing the graph")
    images = labelled_images(dataset, "val")
    sample = images[:: -(-len(images) // _CALIBRATION_IMAGES)]
    graph = export.onnx_graph(network, description, reference_embeddings)
    quantized = quantize(graph, [preprocess(image.read(), description.preprocess) for image in sample])
    with tempfile.TemporaryDirectory(prefix="catdog-") as scratch:

        def predictor(content: bytes, *, quantized: bool) -> Predictor:
            path = Path(scratch) / ("int8" if quantized else "float32")
            described = replace(description, quantized=quantized)
            bundle = bundles.write(path, described, reference_embeddings, weights=b"", graph=content)
            return classifier_predictor(Classifier(bundle, engine="onnx"))

        challenger, champion = predictor(quantized, quantized=True), predictor(graph, quantized=False)
        mine, theirs = (evaluate(predict, images, seed=seed, latency=False) for predict in (challenger, champion))
        speed = _throughput(challenger, champion, [image.read() for image in images[:_TIMED_IMAGES]])
    return quantized if _kept([*gate.comparison(mine, theirs, gate.Thresholds()), speed]) else None


def quantize(graph: bytes, images: Sequence[Pixels]) -> bytes:
    """Quantize the convolutions of a graph to int8: statically, weights by channel, activations by relative entropy.

    The head and the class maps stay in float32, so that a class's map still adds up to its logit.

    Args:
        graph: What `export.onnx_graph` returned.
        images: (size, size, 3) uint8 each, from which the ranges of the activations are taken.

    Returns:
        A graph with the same inputs and outputs.
    """
    with tempfile.TemporaryDirectory(prefix="catdog-") as scratch:
        source, prepared, quantized = (Path(scratch) / name for name in ("model.onnx", "prepared.onnx", "int8.onnx"))
        source.write_bytes(graph)
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        nodes = onnx.load(prepared).graph.node
        with contextlib.redirect_stdout(io.StringIO()):  # it prints a line per image
            quantize_static(
                prepared,
                quantized,
                _Calibration(images),
                op_types_to_quantize=_OPERATORS,
                nodes_to_exclude=[node.name for node in nodes if set(node.output) & {"logits", "class_maps"}],
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=CalibrationMethod.Entropy,
                extra_options={"CalibStridedMinMax": 1},  # whatever the name says, for every method
            )
        return quantized.read_bytes()


class _Calibration(CalibrationDataReader):  # type: ignore[misc]  # untyped
    """Hands out one image at a time, so that only one's activations are in memory (27 MB with mobilenet_v2)."""

    def __init__(self, images: Sequence[Pixels]) -> None:
        self._images = images
        self._remaining = iter(images)

    def __len__(self) -> int:
        return len(self._images)

    def set_range(self, start_index: int, end_index: int) -> None:
        self._remaining = iter(self._images[start_index:end_index])

    def get_next(self) -> dict[str, Any] | None:
        image = next(self._remaining, None)
        return None if image is None else {"images": image[np.newaxis]}


def _throughput(challenger: Predictor, champion: Predictor, images: Sequence[bytes]) -> Check:
    """Check how many images all cores predict in a second.

    Both are called in turns, and only the fastest call of each counts: other load on the machine only slows a call down.
    """
    fastest = [math.inf, math.inf]
    for turn, predict in [*enumerate((challenger, champion))] * _TIMED_ROUNDS:
        started = time.perf_counter()
        predict(images, False)
        fastest[turn] = min(fastest[turn], time.perf_counter() - started)
    mine, theirs = (len(images) / seconds for seconds in fastest)
    required = LEAST_SPEEDUP * theirs
    return Check("images per second", f"{mine:.0f}", f"{theirs:.0f}", f"≥ {required:.0f}", mine >= required)


def _kept(found: Sequence[Check]) -> bool:
    """Log the checks; whether all of them passed."""
    failed = [check.name for check in found if not check.passed]
    mlflow.log_text(text_table(checks.checks_table(found)) + "\n", "quantization.txt")
    mlflow.log_param("quantize.kept", not failed)
    if failed:
        log(f"the int8 graph is not kept, as it fails {', '.join(failed)} (quantization.txt in the run)")
    return not failed
