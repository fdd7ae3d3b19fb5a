"""uint8 images → logits, embeddings and similarity: by ONNX Runtime (the default on CPU) or by PyTorch, from one bundle."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import threading
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from catdog_pyfunc.bundle import GRAPH, TIMM, WEIGHTS, Bundle
from catdog_pyfunc.errors import InvalidBundle, InvalidSetting, MissingDependency
from catdog_pyfunc.preprocessing import Floats, Pixels

ENGINES = ("auto", "onnx", "torch")


class Outputs(NamedTuple):
    """A network's outputs for N images; the graph's outputs have these names, in this order.

    The similarity is computed inside the graph as well: NumPy's BLAS keeps its threads spinning for a while after each
    product, which halves the throughput (6.0 ms per image instead of 3.2, mobilenet_v2 on 2 cores).

    Attributes:
        logits: (N, C).
        embedding: (N, D), pooled features.
        class_maps: (N, C, h, w), each class's evidence at each location.
        similarity: (N,), to the reference embeddings, at most 1.
    """

    logits: Floats
    embedding: Floats
    class_maps: Floats
    similarity: Floats


class Engine(Protocol):
    """Runs the network. Safe to call from several threads at once.

    Attributes:
        batch_size: How many images per call are fastest.
    """

    batch_size: int

    def run(self, images: Pixels, *, exclusive: bool = False) -> Outputs:
        """Run the network.

        Args:
            images: (N, size, size, 3) uint8, as `preprocess` returns them.
            exclusive: Whether this call may use all cores because no other is in progress.

        Returns:
            The network's outputs.
        """
        ...


class OnnxEngine:
    """ONNX Runtime on CPU: one thread per call, or all cores for an exclusive call.

    Single images in concurrent calls are fastest on CPU: with mobilenet_v2 on 2 cores 2.3 ms per image, against 3.1 in
    batches of 8. An exclusive call takes 4.4 ms on one thread, 2.5 on two (AMD EPYC).
    """

    batch_size = 1

    def __init__(self, graph: Path | bytes, threads: int = 1, *, quantized: bool = False) -> None:
        source = graph if isinstance(graph, bytes) else os.fspath(graph)
        self._shared_session = _session(source, 1, quantized)
        self._exclusive_session = _session(source, threads, quantized) if threads > 1 else self._shared_session
        self.n_classes = int(self._shared_session.get_outputs()[0].shape[1])
        with contextlib.suppress(OSError, AttributeError):  # only glibc has it
            ctypes.CDLL(None).malloc_trim(0)  # returns what parsing the graph had allocated: 25 MB per server

    def run(self, images: Pixels, *, exclusive: bool = False) -> Outputs:
        """Run the network on (N, size, size, 3) uint8; see `Engine.run`."""
        session = self._exclusive_session if exclusive else self._shared_session
        return Outputs(*session.run(Outputs._fields, {"images": images}))


def _session(source: str | bytes, threads: int, quantized: bool) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Spinning threads start the next operator sooner, but take the cores away from everything else.
    options.add_session_config_entry("session.intra_op.spin_duration_us", "10")
    # Prepacked weights take 10 MB more per session, and bring nothing in float32; int8 is slower than float32 without.
    options.add_session_config_entry("session.disable_prepacking", "0" if quantized else "1")
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


class TorchEngine:
    """PyTorch with the bundle's safetensors weights; on CUDA if there is a device."""

    def __init__(self, bundle: Bundle) -> None:
        try:
            import torch
            from safetensors.torch import load_file

            from catdog_pyfunc.network import ServingNetwork, build_network
        except ImportError as error:
            raise MissingDependency("this needs PyTorch: pip install 'catdog-pyfunc[torch]'") from error

        description = bundle.description
        weights = load_file(bundle.path / WEIGHTS)
        _check_classes(bundle, weights["head.weight"].shape[0])
        pretrained_head = any(name.startswith("pretrained_head.") for name in weights)
        size, n_classes = description.preprocess.size, len(description.classes)
        network = build_network(description.backbone, n_classes, size, pretrained_head=pretrained_head)
        network.load_state_dict(weights)
        serving = ServingNetwork(network, description.preprocess, torch.from_numpy(bundle.reference_embeddings()))
        self._torch = torch
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._network = serving.eval().to(self._device)
        self.batch_size = 64 if self._device.type == "cuda" else 4
        self._lock = threading.Lock()  # PyTorch uses all cores for each call: concurrent calls would slow each other down

    def run(self, images: Pixels, *, exclusive: bool = False) -> Outputs:
        """Run the network on (N, size, size, 3) uint8; see `Engine.run`."""
        torch = self._torch
        with self._lock, torch.inference_mode():
            outputs = self._network(torch.from_numpy(images).to(self._device))
        return Outputs(*(output.cpu().numpy() for output in outputs))


def open_engine(bundle: Bundle, name: str = "auto", threads: int = 1) -> Engine:
    """Open the engine that serves a bundle.

    Args:
        bundle: The stored classifier.
        name: "onnx", "torch", or "auto": PyTorch if it, and timm if needed, is installed and finds a CUDA device, else
            ONNX Runtime.
        threads: How many threads an exclusive call may use.

    Returns:
        The engine, with the network loaded.

    Raises:
        InvalidSetting: There is no such engine.
        InvalidBundle: The network's number of classes differs from the description's.
        MissingDependency: The engine is "torch", and PyTorch, or timm for a backbone of timm's, is not installed.
    """
    if name not in ENGINES:
        raise InvalidSetting(f"engine {name!r} is unknown: give one of {', '.join(ENGINES)}")
    if name == "torch" or (name == "auto" and _has_cuda() and _has_backbone(bundle.description.backbone)):
        return TorchEngine(bundle)
    engine = OnnxEngine(bundle.path / GRAPH, threads, quantized=bundle.description.quantized)
    _check_classes(bundle, engine.n_classes)
    return engine


def _check_classes(bundle: Bundle, found: int) -> None:
    named = len(bundle.description.classes)
    if named != found:
        raise InvalidBundle(f"{bundle.path} names {named} classes, but its network has {found}: fetch the model again")


def _has_backbone(name: str) -> bool:
    return not name.startswith(TIMM) or importlib.util.find_spec("timm") is not None


def _has_cuda() -> bool:
    # The device file first: importing torch only to find no GPU would triple a server's memory.
    if not Path("/dev/nvidiactl").exists():
        return False
    try:
        import torch
        import torchvision  # noqa: F401
    except ImportError:
        return False
    return torch.cuda.is_available()
