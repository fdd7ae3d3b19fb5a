"""Measures backbones, untrained: parameters, size of the ONNX graph, time of one core per image in ONNX Runtime."""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
import torch
from report import machine

from catdog_pyfunc import export
from catdog_pyfunc.bundle import Description
from catdog_pyfunc.engine import OnnxEngine
from catdog_pyfunc.pipeline.console import log, markdown_table
from catdog_pyfunc.pipeline.training.backbones import load_backbone

_WARM_UP = 5  # images


def main() -> None:
    """Print one row per backbone."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("backbones", nargs="+", help="names as for catdog train --backbone")
    parser.add_argument("--images", type=int, default=50, help="measured per backbone, one per call")
    arguments = parser.parse_args()
    rows = [
        ["backbone", "input", "features", "map", "parameters, M", "ONNX, MB", "ms of a core per image", "engines differ by"]
    ]
    for name in arguments.backbones:
        rows.append(measure(name, arguments.images))
        log(str(rows[-1]))
    print(markdown_table(rows))
    print(machine())


def measure(name: str, count: int) -> list[str]:
    """The row of one backbone; the time is the median over calls with one image."""
    backbone = load_backbone(name, "none", 2, seed=0)
    network, size = backbone.network, backbone.preprocess.size
    description = Description(name, ("cat", "dog"), backbone.preprocess)
    reference = np.eye(1, network.head.in_features, dtype=np.float32)
    graph = export.onnx_graph(network, description, reference)
    engine = OnnxEngine(graph)
    images = np.random.default_rng(0).integers(0, 256, (count + _WARM_UP, 1, size, size, 3), np.uint8)
    seconds = []
    for image in images:
        start = time.process_time()  # which other processes hardly change
        outputs = engine.run(image)
        seconds.append(time.process_time() - start)
    with torch.inference_mode():
        batch = torch.from_numpy(images[-1]).permute(0, 3, 1, 2) / 255
        mean, std = (torch.tensor(values)[:, None, None] for values in (backbone.preprocess.mean, backbone.preprocess.std))
        embedding = network.outputs((batch - mean) / std)[1].numpy()
    difference = np.abs(embedding - outputs.embedding).max() / np.abs(embedding).max()
    parameters = sum(parameter.numel() for parameter in network.features.parameters())
    return [
        f"`{name}`",
        str(size),
        str(network.head.in_features),
        "×".join(map(str, outputs.class_maps.shape[2:])),
        f"{parameters / 1e6:.1f}",
        f"{len(graph) / 1e6:.0f}",
        f"{1000 * statistics.median(seconds[_WARM_UP:]):.1f}",
        f"{difference:.0e}",
    ]


if __name__ == "__main__":
    main()
