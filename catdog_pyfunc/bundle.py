"""What is stored: weights, graph, reference and description, written whole or not at all, checked on loading."""

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
WEIGHTS, GRAPH, REFERENCE, DESCRIPTION = "weights.safetensors", "model.onnx", "reference.npy", "classifier.json"


@dataclass(frozen=True)
class Description:
    """All about a classifier that isn't a weight.

    Attributes:
        backbone: The network's name in `torchvision.models`.
        classes: Class names, in the order of the logits.
        preprocess: How a picture is brought to the network.
        temperature: Logits are divided by it before softmax.
        threshold: A picture of less likeness to the reference than this is probably none of the classes.
        provenance: Where the classifier came from: data digest, weights, seed, versions.
    """

    backbone: str
    classes: tuple[str, ...]
    preprocess: Preprocess
    temperature: float = 1.0
    threshold: float = -1.0
    provenance: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Bundle:
    """A stored classifier, its files checked against their digests.

    Attributes:
        path: The folder.
        description: What classifier.json says.
        digest: SHA-256 (hex) of classifier.json, which holds the digests of the other files: one name for the whole.
    """

    path: Path
    description: Description
    digest: str

    def reference(self) -> Floats:
        """Read (M, D), embeddings of training pictures, each of length 1, of float16 precision."""
        return np.asarray(np.load(self.path / REFERENCE, allow_pickle=False), dtype=np.float32)


def write(path: Path, description: Description, reference: Floats, *, weights: bytes, graph: bytes) -> Bundle:
    """Store a classifier, whole or not at all.

    Args:
        path: The folder to make; must not exist.
        description: All that isn't a weight.
        reference: (M, D), embeddings of training pictures, each of length 1.
        weights: A safetensors file's content.
        graph: An ONNX file's content.

    Returns:
        The bundle as it was written.

    Raises:
        FileExistsError: `path` is there already.
    """
    if path.exists():
        raise FileExistsError(f"{path} is there already: give a folder that doesn't exist")
    array = io.BytesIO()
    np.save(array, reference.astype(np.float16), allow_pickle=False)
    files = {WEIGHTS: weights, GRAPH: graph, REFERENCE: array.getvalue()}
    content = {
        "format": FORMAT,
        "backbone": description.backbone,
        "classes": list(description.classes),
        "preprocess": description.preprocess.to_dict(),
        "temperature": description.temperature,
        "threshold": description.threshold,
        "provenance": dict(description.provenance),
        "files": {name: {"sha256": _sha256(data), "bytes": len(data)} for name, data in files.items()},
    }
    files[DESCRIPTION] = (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        scratch.chmod(0o755)  # mkdtemp's 0700 would keep another user's server from reading it
        for name, data in files.items():
            (scratch / name).write_bytes(data)
        scratch.rename(path)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    return Bundle(path, description, _sha256(files[DESCRIPTION]))


def read(path: Path) -> Bundle:
    """Open a stored classifier and check every file of it.

    Args:
        path: The folder that `write` made.

    Returns:
        The bundle.

    Raises:
        InvalidBundle: A file is missing or changed, or a newer version wrote it.
    """
    with _opened(path / DESCRIPTION) as file:
        raw = file.read()
    try:
        content = json.loads(raw)
        version = int(content["format"])
        if version > FORMAT:
            raise InvalidBundle(
                f"{path / DESCRIPTION} has format {version}, this catdog-pyfunc reads up to {FORMAT}: install a newer one"
            )
        description = Description(
            backbone=str(content["backbone"]),
            classes=tuple(str(name) for name in content["classes"]),
            preprocess=Preprocess.from_dict(content["preprocess"]),
            temperature=float(content["temperature"]),
            threshold=float(content["threshold"]),
            provenance=content["provenance"],
        )
        digests = {name: str(entry["sha256"]) for name, entry in content["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as wrong:
        if isinstance(wrong, InvalidBundle):
            raise
        raise InvalidBundle(f"{path / DESCRIPTION} can't be read ({wrong!r}): save the model again") from None
    for name in (WEIGHTS, GRAPH, REFERENCE):
        if _file_digest(path / name) != digests.get(name):
            raise InvalidBundle(f"{path / name} is not the file that was saved (SHA-256 differs): get the model again")
    return Bundle(path, description, _sha256(raw))


def _file_digest(path: Path) -> str:
    digest = hashlib.sha256()
    with _opened(path) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as missing:
        raise InvalidBundle(f"{path} can't be read ({missing.strerror}): get the model again") from None


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
