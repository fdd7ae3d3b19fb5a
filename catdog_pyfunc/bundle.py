"""The stored classifier: weights, graph, reference embeddings and description; written atomically, verified on loading."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from catdog_pyfunc.errors import InvalidBundle
from catdog_pyfunc.preprocessing import Floats, Preprocess

FORMAT = 1
WEIGHTS, GRAPH, DESCRIPTION = "weights.safetensors", "model.onnx", "classifier.json"
REFERENCE_EMBEDDINGS = "reference_embeddings.npy"
TIMM = "timm/"  # what the names of timm's backbones begin with


@dataclass(frozen=True)
class Description:
    """Everything about a classifier except its weights.

    Attributes:
        backbone: The network's name in `torchvision.models`, or `timm/<name>`.
        classes: Class names, in the order of the logits.
        preprocess: How an image is turned into the network's input.
        temperature: Logits are divided by it before softmax.
        ood_threshold: An image whose similarity to the reference embeddings is below this is out of distribution: it
            probably shows none of the classes.
        quantized: Whether the graph computes in int8; the weights are float32 all the same.
        provenance: Where the classifier came from: data digest, weights, seed, versions.
    """

    backbone: str
    classes: tuple[str, ...]
    preprocess: Preprocess
    temperature: float = 1.0
    ood_threshold: float = -1.0
    quantized: bool = False
    provenance: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Bundle:
    """A stored classifier whose files have been verified.

    Attributes:
        path: The folder.
        description: The content of classifier.json.
        digest: SHA-256 (hex) of classifier.json, which holds the digests of the other files, so it identifies them all.
    """

    path: Path
    description: Description
    digest: str

    def reference_embeddings(self) -> Floats:
        """Load (M, D) float32: embeddings of training images, stored in float16 precision."""
        return np.asarray(np.load(self.path / REFERENCE_EMBEDDINGS, allow_pickle=False), dtype=np.float32)


def write(path: Path, description: Description, reference_embeddings: Floats, *, weights: bytes, graph: bytes) -> Bundle:
    """Store a classifier, completely or not at all.

    Args:
        path: The folder to create; must not exist.
        description: Everything except the weights.
        reference_embeddings: (M, D), embeddings of training images.
        weights: Content of a safetensors file.
        graph: Content of an ONNX file.

    Returns:
        The bundle that was written.

    Raises:
        FileExistsError: `path` exists.
    """
    if path.exists():
        raise FileExistsError(f"{path} already exists: give a folder that does not")
    array = io.BytesIO()
    np.save(array, reference_embeddings.astype(np.float16), allow_pickle=False)
    files = {WEIGHTS: weights, GRAPH: graph, REFERENCE_EMBEDDINGS: array.getvalue()}
    content = {
        "format": FORMAT,
        "backbone": description.backbone,
        "classes": list(description.classes),
        "preprocess": description.preprocess.to_dict(),
        "temperature": description.temperature,
        "ood_threshold": description.ood_threshold,
        "quantized": description.quantized,
        "provenance": dict(description.provenance),
        "files": {name: {"sha256": _sha256(data), "bytes": len(data)} for name, data in files.items()},
    }
    files[DESCRIPTION] = (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        scratch.chmod(0o755)  # mkdtemp's 0700 would keep a server that runs as another user from reading it
        for name, data in files.items():
            (scratch / name).write_bytes(data)
        scratch.rename(path)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    return Bundle(path, description, _sha256(files[DESCRIPTION]))


def read(path: Path) -> Bundle:
    """Open a stored classifier and verify each of its files.

    Args:
        path: A folder that `write` created.

    Returns:
        The bundle.

    Raises:
        InvalidBundle: A file is missing or changed, or was written by a newer version.
    """
    with _open(path / DESCRIPTION) as file:
        raw = file.read()
    try:
        content = json.loads(raw)
        version = int(content["format"])
        if version > FORMAT:
            raise InvalidBundle(
                f"{path / DESCRIPTION} has format {version}, but this catdog-pyfunc reads up to {FORMAT}: "
                "install a newer catdog-pyfunc"
            )
        description = Description(
            backbone=str(content["backbone"]),
            classes=tuple(str(name) for name in content["classes"]),
            preprocess=Preprocess.from_dict(content["preprocess"]),
            temperature=float(content["temperature"]),
            ood_threshold=float(content["ood_threshold"]),
            quantized=bool(content.get("quantized", False)),  # older bundles do not say
            provenance=content["provenance"],
        )
        digests = {name: str(entry["sha256"]) for name, entry in content["files"].items()}
    except InvalidBundle:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidBundle(f"cannot read {path / DESCRIPTION} ({error!r}): save the model again") from None
    for name in (WEIGHTS, GRAPH, REFERENCE_EMBEDDINGS):
        if _file_digest(path / name) != digests.get(name):
            raise InvalidBundle(f"{path / name} is not the file that was saved (SHA-256 differs): fetch the model again")
    return Bundle(path, description, _sha256(raw))


def _file_digest(path: Path) -> str:
    digest = hashlib.sha256()
    with _open(path) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _open(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise InvalidBundle(f"cannot read {path} ({error.strerror}): fetch the model again") from None


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
