"""Embeddings of a frozen backbone: each picture is decoded and embedded once, and never again in a later run."""

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
from catdog_pyfunc.errors import InvalidImage
from catdog_pyfunc.pipeline.console import progress
from catdog_pyfunc.pipeline.data.dataset import Example
from catdog_pyfunc.preprocessing import Floats, Pixels, Preprocess, preprocess

_COMMIT_EVERY = 256


@dataclass(frozen=True)
class Embeddings:
    """What a backbone says of some pictures.

    Attributes:
        values: (N, D) float32, in the order asked for; a broken picture's row is NaN.
        broken: File → what is wrong with it.
    """

    values: Floats
    broken: dict[Path, str]


def embed(
    engine: Callable[[], Engine],
    examples: Sequence[Example],
    spec: Preprocess,
    *,
    cache: Path,
    backbone: str,
    flip: bool = False,
) -> Embeddings:
    """Embed pictures, taking what is known from the cache.

    Args:
        engine: Opens what runs the backbone; called only if a picture isn't in the cache.
        examples: The pictures.
        spec: How they are brought to the backbone.
        cache: An SQLite file, made if it isn't there. Interrupted work is kept.
        backbone: The backbone's digest; with `spec` and the picture's digest it is the key in the cache.
        flip: Mirror every picture left to right.

    Returns:
        The embeddings.
    """
    key = hashlib.sha256(json.dumps([spec.to_dict(), backbone, flip]).encode()).hexdigest()
    with closing(sqlite3.connect(cache, timeout=60, isolation_level=None)) as store:
        store.execute(
            "CREATE TABLE IF NOT EXISTS embedding (key TEXT, picture TEXT, value BLOB, PRIMARY KEY (key, picture))"
        )
        known = _known(store, key, {example.digest for example in examples})
        todo = list({example.digest: example for example in examples if example.digest not in known}.values())
        broken: dict[str, str] = {}
        batch: list[tuple[str, str, bytes]] = []
        for example, answer in _compute(engine(), todo, spec, flip) if todo else ():
            if isinstance(answer, str):
                broken[example.digest] = answer
                continue
            known[example.digest] = answer
            batch.append((key, example.digest, answer.tobytes()))
            if len(batch) == _COMMIT_EVERY:
                _keep(store, batch)
        _keep(store, batch)
    dimension = next((len(value) for value in known.values()), 0)
    nothing = np.full(dimension, np.nan, np.float32)
    values = (
        np.stack([known.get(example.digest, nothing) for example in examples]) if examples else np.empty((0, 0), np.float32)
    )
    return Embeddings(values, {e.path: broken[e.digest] for e in examples if e.digest in broken})


def _known(store: sqlite3.Connection, key: str, digests: set[str]) -> dict[str, Floats]:
    rows = store.execute("SELECT picture, value FROM embedding WHERE key = ?", (key,))
    return {picture: np.frombuffer(value, np.float32) for picture, value in rows if picture in digests}


def _keep(store: sqlite3.Connection, batch: list[tuple[str, str, bytes]]) -> None:
    store.execute("BEGIN IMMEDIATE")
    store.executemany("INSERT OR REPLACE INTO embedding VALUES (?, ?, ?)", batch)
    store.execute("COMMIT")
    batch.clear()


def _compute(
    engine: Engine, examples: Sequence[Example], spec: Preprocess, flip: bool
) -> Iterator[tuple[Example, Floats | str]]:
    size = engine.batch_size
    chunks = [examples[start : start + size] for start in range(0, len(examples), size)]

    def work(chunk: Sequence[Example]) -> list[Floats | str]:
        pictures = [_read(example, spec, flip) for example in chunk]
        readable = [picture for picture in pictures if not isinstance(picture, str)]
        values = iter(engine.run(np.stack(readable)).embedding if readable else ())
        return [picture if isinstance(picture, str) else next(values) for picture in pictures]

    with ThreadPoolExecutor(available_cores()) as pool:
        try:
            answers = progress(pool.map(work, chunks), "embedding pictures", len(chunks))
            for chunk, answer in zip(chunks, answers, strict=True):
                yield from zip(chunk, answer, strict=True)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)  # an interruption doesn't wait for what hasn't begun


def _read(example: Example, spec: Preprocess, flip: bool) -> Pixels | str:
    try:
        pixels = preprocess(example.path.read_bytes(), spec)
    except (InvalidImage, OSError) as wrong:
        return str(wrong)
    return np.ascontiguousarray(pixels[:, ::-1]) if flip else pixels
