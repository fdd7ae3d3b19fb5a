"""Embeddings of a frozen backbone: each image is decoded and embedded once, and never again in a later run."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from catdog_pyfunc.cpu import available_cores
from catdog_pyfunc.engine import Engine
from catdog_pyfunc.pipeline.console import progress
from catdog_pyfunc.pipeline.data.corrupt import read_image
from catdog_pyfunc.pipeline.data.dataset import Example
from catdog_pyfunc.preprocessing import Floats, Preprocess

_COMMIT_EVERY = 256
_SCHEMA = "CREATE TABLE IF NOT EXISTS embeddings (key TEXT, image TEXT, value BLOB, PRIMARY KEY (key, image))"


@dataclass(frozen=True)
class Embeddings:
    """Pooled features of some images.

    Attributes:
        values: (N, D) float32, one row per image in the order given; NaN for a corrupt image.
        corrupt: Corrupt file → what is wrong with it.
    """

    values: Floats
    corrupt: dict[Path, str]


def embed(
    engine: Callable[[], Engine],
    examples: Sequence[Example],
    spec: Preprocess,
    *,
    cache: Path,
    backbone: str,
    flip: bool = False,
) -> Embeddings:
    """Embed images, reusing cached embeddings.

    Args:
        engine: Opens the engine that runs the backbone; called only if an image is not in the cache.
        examples: The images.
        spec: How to preprocess them.
        cache: SQLite file, created if missing. The work of an interrupted call is kept.
        backbone: Name of whatever computes the embeddings; with `spec`, `flip` and the image's digest it is the cache key.
        flip: Mirror every image left to right.

    Returns:
        The embeddings.
    """
    key = hashlib.sha256(json.dumps([spec.to_dict(), backbone, flip]).encode()).hexdigest()
    corrupt: dict[str, str] = {}
    with closing(sqlite3.connect(cache, timeout=60, isolation_level=None)) as store:
        store.execute(_SCHEMA)
        known = _load(store, key, {example.digest for example in examples})
        missing = list({example.digest: example for example in examples if example.digest not in known}.values())
        rows: list[tuple[str, str, bytes]] = []
        for example, outcome in _compute(engine(), missing, spec, flip) if missing else ():
            if isinstance(outcome, str):
                corrupt[example.digest] = outcome
                continue
            known[example.digest] = outcome
            rows.append((key, example.digest, outcome.tobytes()))
            if len(rows) == _COMMIT_EVERY:
                _save(store, rows)
        _save(store, rows)
    dimension = next((len(value) for value in known.values()), 0)
    unknown = np.full(dimension, np.nan, np.float32)
    values = [known.get(example.digest, unknown) for example in examples]
    return Embeddings(
        np.stack(values) if values else np.empty((0, 0), np.float32),
        {example.path: corrupt[example.digest] for example in examples if example.digest in corrupt},
    )


def _load(store: sqlite3.Connection, key: str, digests: set[str]) -> dict[str, Floats]:
    rows = store.execute("SELECT image, value FROM embeddings WHERE key = ?", (key,))
    return {image: np.frombuffer(value, np.float32) for image, value in rows if image in digests}


def _save(store: sqlite3.Connection, rows: list[tuple[str, str, bytes]]) -> None:
    store.execute("BEGIN IMMEDIATE")
    store.executemany("INSERT OR REPLACE INTO embeddings VALUES (?, ?, ?)", rows)
    store.execute("COMMIT")
    rows.clear()


def _compute(
    engine: Engine, examples: Sequence[Example], spec: Preprocess, flip: bool
) -> Iterator[tuple[Example, Floats | str]]:
    """Embed images on all cores; the outcome is an embedding (D,), or what is wrong with the image."""
    size = engine.batch_size
    chunks = [examples[start : start + size] for start in range(0, len(examples), size)]

    def embed_chunk(chunk: Sequence[Example]) -> list[Floats | str]:
        images = [read_image(example, spec) for example in chunk]
        pixels = [image[:, ::-1] if flip else image for image in images if not isinstance(image, str)]
        values = iter(engine.run(np.stack(pixels)).embedding if pixels else ())
        return [image if isinstance(image, str) else next(values) for image in images]

    with ThreadPoolExecutor(available_cores()) as pool:
        try:
            outcomes = progress(pool.map(embed_chunk, chunks), "embedding images", len(chunks))
            for chunk, outcome in zip(chunks, outcomes, strict=True):
                yield from zip(chunk, outcome, strict=True)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)  # an interrupted call does not wait for chunks not yet begun
