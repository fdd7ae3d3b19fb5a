"""Embeddings of a frozen backbone: each image is decoded and embedded once, and never again in a later run."""

from __future__ import annotations

import hashlib
import json
import mmap
import sqlite3
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from catdog_pyfunc.cpu import available_cores
from catdog_pyfunc.engine import Engine
from catdog_pyfunc.errors import JobFailed
from catdog_pyfunc.pipeline.console import progress
from catdog_pyfunc.pipeline.data.corrupt import read_image
from catdog_pyfunc.pipeline.data.dataset import Example
from catdog_pyfunc.preprocessing import Floats, Preprocess

_COMMIT_EVERY = 256
_BATCH = 8192
_SCHEMA = "CREATE TABLE IF NOT EXISTS embeddings (key TEXT, image TEXT, value BLOB, PRIMARY KEY (key, image))"

Outcome = Floats | str
"""An image's embedding (D,), or what is wrong with it."""
Compute = Callable[[Sequence[Example], Preprocess, bool], Iterable[tuple[Example, Outcome]]]
"""Embeds images (the third argument: mirrored left to right), in any order."""


@dataclass(frozen=True)
class Embeddings:
    """Pooled features of some images.

    Attributes:
        values: (N, D) float32, one row per intact image in the order given; in a file, not in memory.
        corrupt: Corrupt file → what is wrong with it.
    """

    values: Floats
    corrupt: dict[Path, str]


def embed(
    compute: Compute, examples: Sequence[Example], spec: Preprocess, *, cache: Path, backbone: str, flip: bool = False
) -> Embeddings:
    """Embed images, reusing cached embeddings.

    Args:
        compute: Embeds what is not in the cache; called only if there is something.
        examples: The images.
        spec: How to preprocess them.
        cache: SQLite file, created if missing. The work of an interrupted call is kept.
        backbone: Name of whatever computes the embeddings; with `spec`, `flip` and the image's digest it is the cache key.
        flip: Mirror every image left to right.

    Returns:
        The embeddings.

    Raises:
        JobFailed: The cache cannot be written.
    """
    key = hashlib.sha256(json.dumps([spec.to_dict(), backbone, flip]).encode()).hexdigest()
    try:
        with closing(sqlite3.connect(cache, timeout=60, isolation_level=None)) as store:
            store.execute(_SCHEMA)
            known = {image for (image,) in store.execute("SELECT image FROM embeddings WHERE key = ?", (key,))}
            missing = list({example.digest: example for example in examples if example.digest not in known}.values())
            errors = _save(store, key, compute(missing, spec, flip)) if missing else {}
            intact = [example.digest for example in examples if example.digest not in errors]
            values = _memory_mapped(store, key, intact, cache.parent)
    except (sqlite3.OperationalError, OSError) as error:
        raise JobFailed(
            f"cannot write embeddings to {cache.parent} ({error}): make room, or name another cache by XDG_CACHE_HOME; the "
            "same command goes on from there"
        ) from error
    return Embeddings(values, {example.path: errors[example.digest] for example in examples if example.digest in errors})


def batches(values: Floats) -> Iterator[Floats]:
    """Pass over embeddings, of which a part is in memory at a time.

    Args:
        values: (N, D), in memory or memory-mapped.

    Yields:
        (B, D), of at most 8,192 embeddings.
    """
    owner: object = values
    while isinstance(owner, np.ndarray):
        owner = owner.base
    for start in range(0, len(values), _BATCH):
        yield values[start : start + _BATCH]
        if isinstance(owner, mmap.mmap):
            owner.madvise(mmap.MADV_DONTNEED)  # whoever needs them reads them from the file again


def compute_here(
    engine: Engine, examples: Sequence[Example], spec: Preprocess, flip: bool
) -> Iterator[tuple[Example, Outcome]]:
    """Embed images on all cores of this machine; see `Compute`."""
    size = engine.batch_size
    chunks = [examples[start : start + size] for start in range(0, len(examples), size)]
    with ThreadPoolExecutor(available_cores()) as pool:
        try:
            outcomes = progress(
                pool.map(lambda chunk: embed_chunk(engine, chunk, spec, flip), chunks), "embedding images", len(chunks)
            )
            for chunk, outcome in zip(chunks, outcomes, strict=True):
                yield from zip(chunk, outcome, strict=True)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)  # an interrupted call does not wait for chunks not yet begun


def embed_chunk(engine: Engine, examples: Sequence[Example], spec: Preprocess, flip: bool) -> list[Outcome]:
    """Read and embed some images, in one call of the engine."""
    images = [read_image(example, spec) for example in examples]
    pixels = [image[:, ::-1] if flip else image for image in images if not isinstance(image, str)]
    values = iter(engine.run(np.stack(pixels)).embedding if pixels else ())
    return [image if isinstance(image, str) else next(values) for image in images]


def _save(store: sqlite3.Connection, key: str, computed: Iterable[tuple[Example, Outcome]]) -> dict[str, str]:
    """Store embeddings as they come; returns the digests of corrupt images, and what is wrong with them."""
    errors: dict[str, str] = {}
    rows: list[tuple[str, str, bytes]] = []

    def commit() -> None:
        store.execute("BEGIN IMMEDIATE")
        store.executemany("INSERT OR REPLACE INTO embeddings VALUES (?, ?, ?)", rows)
        store.execute("COMMIT")
        rows.clear()

    for example, outcome in computed:
        if isinstance(outcome, str):
            errors[example.digest] = outcome
            continue
        rows.append((key, example.digest, outcome.tobytes()))
        if len(rows) == _COMMIT_EVERY:
            commit()
    commit()
    return errors


def _memory_mapped(store: sqlite3.Connection, key: str, images: Sequence[str], folder: Path) -> Floats:
    """(N, D) in an unnamed file that goes with the array: as much of it is in memory as there is room for."""
    with tempfile.TemporaryFile(dir=folder) as file:
        for image in images:
            file.write(store.execute("SELECT value FROM embeddings WHERE key = ? AND image = ?", (key, image)).fetchone()[0])
        file.flush()
        if not images:
            return np.empty((0, 0), np.float32)
        # "r" would do, but PyTorch warns of arrays that cannot be written to.
        return np.memmap(file, np.float32, "c").reshape(len(images), -1)
