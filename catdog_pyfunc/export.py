"""The trained network in the two formats that a saved model holds: an ONNX graph, and TorchScript."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from catdog_pyfunc.bundle import Description
from catdog_pyfunc.engine import OnnxEngine, Outputs
from catdog_pyfunc.errors import EnginesDisagree
from catdog_pyfunc.preprocessing import Floats, preprocess

if TYPE_CHECKING:
    from catdog_pyfunc.network import Network, ServingNetwork

TOLERANCE = 1e-3  # largest difference between the two engines' logits


def onnx_graph(network: Network, description: Description, reference_embeddings: Floats) -> bytes:
    """Export a network to ONNX: input `images` (N, size, size, 3) uint8, outputs as in `Outputs`.

    Args:
        network: On CPU, in evaluation mode.
        description: Its preprocessing becomes part of the graph.
        reference_embeddings: (M, D); also part of the graph.

    Returns:
        An ONNX file's content; N is dynamic.
    """
    import torch

    size = description.preprocess.size
    example = torch.zeros(2, size, size, 3, dtype=torch.uint8)
    content = io.BytesIO()
    with warnings.catch_warnings(), torch.inference_mode(False), torch.no_grad():
        # dynamo=False gives the same graph in 0.7 s instead of 6.5 and without onnxscript; PyTorch deprecates it and warns.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            _serving_network(network, description, reference_embeddings),
            (example,),
            content,  # type: ignore[arg-type]  # accepts a file object, but declares only paths
            dynamo=False,
            opset_version=17,
            input_names=["images"],
            output_names=list(Outputs._fields),
            dynamic_axes={name: {0: "N"} for name in ("images", *Outputs._fields)},
        )
    return content.getvalue()


def check_agreement(
    graph: bytes, network: Network, description: Description, reference_embeddings: Floats, images: Sequence[bytes]
) -> None:
    """Compare PyTorch's logits with those of ONNX Runtime.

    Args:
        graph: What `onnx_graph` returned for the next three arguments.
        network: On CPU, in evaluation mode.
        description: Its preprocessing is applied to the images.
        reference_embeddings: (M, D).
        images: Image files.

    Raises:
        EnginesDisagree: They differ by more than `TOLERANCE`.
        InvalidImage: One of `images` cannot be read.
    """
    import torch

    batch = np.stack([preprocess(image, description.preprocess) for image in images])
    with torch.inference_mode():
        expected = _serving_network(network, description, reference_embeddings)(torch.from_numpy(batch))[0].numpy()
    difference = np.abs(expected - OnnxEngine(graph).run(batch).logits)
    if not (difference <= TOLERANCE).all():  # written so that NaN fails too
        raise EnginesDisagree(
            f"PyTorch and ONNX Runtime differ by {difference.max():.2g} in the logits of {len(batch)} images, more than "
            f"{TOLERANCE:g}: nothing was saved; try another backbone or another version of onnxruntime"
        )


def save_torchscript(network: Network, size: int, path: Path) -> None:
    """Write a network as `mlflow.pytorch.load_model` loads it, for float images of (N, 3, size, size).

    TorchScript is the only format which that function loads into a module with `.to()` and `.eval()` without unpickling
    Python objects: `pt2` has no `.eval()`, and a pickled module can run any code.

    Args:
        network: On CPU, in evaluation mode; its weights lose their gradients.
        size: Side of its images, in pixels.
        path: The file to write.
    """
    import torch

    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # PyTorch deprecates TorchScript
        traced = torch.jit.trace(network.requires_grad_(False), torch.zeros(2, 3, size, size), check_trace=False)  # type: ignore[no-untyped-call]
        torch.jit.save(traced, path)


def _serving_network(network: Network, description: Description, reference_embeddings: Floats) -> ServingNetwork:
    import torch

    from catdog_pyfunc.network import ServingNetwork

    return ServingNetwork(network, description.preprocess, torch.from_numpy(reference_embeddings)).eval()
