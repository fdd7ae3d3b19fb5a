"""uint8 pictures → logits and embedding: ONNX Runtime (the default on CPU), or PyTorch from the same bundle."""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from catdog_pyfunc.bundle import GRAPH, WEIGHTS, Bundle
from catdog_pyfunc.errors import InvalidBundle, InvalidSetting, MissingDependency
from catdog_pyfunc.preprocessing import Floats, Pixels

ENGINES = ("auto", "onnx", "torch")
OUTPUTS = ("logits", "embedding", "class_maps", "likeness")  # of the graph, in this order


class Outputs(NamedTuple):
    """What a network says of N pictures: logits (N, C), embedding (N, D), class maps (N, C, h, w), likeness (N,).

    Likeness is computed in the graph, too: NumPy's BLAS would keep its threads spinning on the cores for a while after each
    product, and halve the throughput (6.0 ms a picture instead of 3.2, mobilenet_v2 on 2 cores).
    """

    logits: Floats
    embedding: Floats
    class_maps: Floats
    similarity: Floats


class Engine(Protocol):
    """Runs the network. Safe to call from several threads at once.

    Attributes:
        batch_size: How many pictures a call should hold to be fastest.
    """

    batch_size: int

    def run(self, images: Pixels, *, exclusive: bool = False) -> Outputs:
        """Classify pictures: (N, size, size, 3) uint8, as `preprocess` makes them.

        Args:
            images: The pictures.
            alone: Whether nothing else is being worked on, so that this call may use every core.
        """
        ...


class OnnxEngine:
    """ONNX Runtime on CPU: one thread a call, or every core for a call that is alone.

    Single pictures in calls side by side are the fastest way on CPU: with mobilenet_v2 on 2 cores 2.3 ms a picture, against
    3.1 in batches of 8. A lone call takes 4.4 ms on one thread, 2.5 on two (AMD EPYC).
    """

    batch_size = 1

    def __init__(self, graph: Path | bytes, threads: int = 1) -> None:
        source = graph if isinstance(graph, bytes) else os.fspath(graph)
        self._narrow = _session(source, 1)
        self._wide = _session(source, threads) if threads > 1 else self._narrow
        self.n_classes = int(self._narrow.get_outputs()[0].shape[1])
        with contextlib.suppress(OSError, AttributeError):  # where there is no glibc
            ctypes.CDLL(None).malloc_trim(0)  # what reading the graph took and freed: 25 MB a server

    def run(self, images: Pixels, *, exclusive: bool = False) -> Outputs:
        """Classify pictures: (N, size, size, 3) uint8, as `preprocess` makes them."""
        session = self._wide if exclusive else self._narrow
        return Outputs(*session.run(OUTPUTS, {"images": images}))


def _session(source: str | bytes, threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Threads that wait by spinning are quick at the next operator, but take the cores from whatever else there is.
    options.add_session_config_entry("session.intra_op.spin_duration_us", "10")
    options.add_session_config_entry("session.disable_prepacking", "1")  # 10 MB a session, for the likeness alone
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


class TorchEngine:
    """PyTorch, from the bundle's safetensors: on CUDA where there is one."""

    def __init__(self, bundle: Bundle) -> None:
        try:
            import torch
            from safetensors.torch import load_file

            from catdog_pyfunc.network import ServingNetwork, build
        except ImportError as missing:
            raise MissingDependency("PyTorch is needed here: pip install 'catdog-pyfunc[torch]'") from missing

        description = bundle.description
        weights = load_file(bundle.path / WEIGHTS)
        _check_classes(bundle, weights["head.weight"].shape[0])
        network = build(description.backbone, len(description.classes))
        network.load_state_dict(weights)
        spec = description.preprocess
        self._torch = torch
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._network = (
            ServingNetwork(network, spec.mean, spec.std, torch.from_numpy(bundle.reference())).eval().to(self._device)
        )
        self.batch_size = 64 if self._device.type == "cuda" else 4
        self._turn = threading.Lock()  # PyTorch uses every core for each call: two at once would get in each other's way

    def run(self, images: Pixels, *, exclusive: bool = False) -> Outputs:
        """Classify pictures: (N, size, size, 3) uint8, as `preprocess` makes them."""
        torch = self._torch
        with self._turn, torch.inference_mode():
            outputs = self._network(torch.from_numpy(images).to(self._device))
        return Outputs(*(output.cpu().numpy() for output in outputs))


def open_engine(bundle: Bundle, name: str = "auto", threads: int = 1) -> Engine:
    """Open the engine that serves a bundle.

    Args:
        bundle: The stored classifier.
        name: "onnx", "torch", or "auto": PyTorch where it is installed and sees a CUDA device, else ONNX Runtime.
        threads: How many a call that is alone may use.

    Returns:
        The engine, loaded.

    Raises:
        InvalidSetting: No such engine.
        InvalidBundle: The network has another number of classes than the description.
        MissingDependency: PyTorch was asked for and isn't installed.
    """
    if name not in ENGINES:
        raise InvalidSetting(f"engine {name!r} is not known: give one of {', '.join(ENGINES)}")
    if name == "torch" or (name == "auto" and _cuda_is_there()):
        return TorchEngine(bundle)
    engine = OnnxEngine(bundle.path / GRAPH, threads)
    _check_classes(bundle, engine.n_classes)
    return engine


def _check_classes(bundle: Bundle, found: int) -> None:
    named = len(bundle.description.classes)
    if named != found:
        raise InvalidBundle(f"{bundle.path} names {named} classes, its network tells {found} apart: get the model again")


def _cuda_is_there() -> bool:
    # /dev/nvidiactl first: importing torch only to hear "no" would triple a server's memory.
    if not Path("/dev/nvidiactl").exists():
        return False
    try:
        import torch
        import torchvision  # noqa: F401
    except ImportError:
        return False
    return torch.cuda.is_available()
