"""Embeddings computed on a Spark cluster and read back."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from uuid import uuid4

import numpy as np
import pyarrow as pa

from catdog_pyfunc.engine import OnnxEngine
from catdog_pyfunc.errors import JobFailed, first_line
from catdog_pyfunc.pipeline.console import progress
from catdog_pyfunc.pipeline.data.dataset import Example
from catdog_pyfunc.pipeline.spark import session
from catdog_pyfunc.pipeline.training.embeddings import Outcome, embed_chunk
from catdog_pyfunc.preprocessing import Preprocess

_ROWS_PER_CORE, _MAX_ROWS = 2048, 65_536  # per job: what a dying driver loses, and what it has in memory (330 MB)
_COLUMNS = pa.schema([("digest", pa.string()), ("embedding", pa.binary()), ("error", pa.string())])


def compute_on_spark(
    engine: str, graph: bytes, examples: Sequence[Example], spec: Preprocess, flip: bool
) -> Iterator[tuple[Example, Outcome]]:
    """Embed images on a cluster; see `embeddings.Compute`.

    Args:
        engine: "spark", or the URL of a master.
        graph: The ONNX graph, which the executors get.
        examples: The images; the workers read them by these paths.
        spec: How to preprocess them.
        flip: Mirror every image left to right.

    Yields:
        Each image and its embedding, or what is wrong with it.

    Raises:
        JobFailed: The job was aborted.
    """
    from pyspark.errors import PySparkException

    by_digest = {example.digest: example for example in examples}
    with session(engine) as spark, tempfile.TemporaryDirectory(prefix="catdog-") as scratch:
        file = Path(scratch) / f"catdog-{uuid4().hex}.onnx"  # a session has one file of a name
        file.write_bytes(graph)
        spark.sparkContext.addFile(str(file))
        work = functools.partial(_embed_batches, graph=file.name, spec=spec, flip=flip)
        cores = spark.sparkContext.defaultParallelism
        size = min(_MAX_ROWS, cores * _ROWS_PER_CORE)
        starts = range(0, len(examples), size)
        for start in progress(starts, f"embedding images on Spark, {size} per job", len(starts)):
            rows = [(str(example.path), example.digest) for example in examples[start : start + size]]
            listed = spark.createDataFrame(rows, "path string, digest string").repartition(4 * cores)
            try:
                computed = listed.mapInArrow(work, "digest string, embedding binary, error string").toArrow()
            except PySparkException as error:
                raise JobFailed(
                    f"Spark gave up ({first_line(error)}): {start} of {len(examples)} embeddings are in the cache; "
                    "run the same command again, which goes on from there"
                ) from error
            for row in computed.to_pylist():
                outcome = row["error"] or np.frombuffer(row["embedding"], np.float32)
                yield by_digest[row["digest"]], outcome


def _embed_batches(batches: Iterator[pa.RecordBatch], graph: str, spec: Preprocess, flip: bool) -> Iterator[pa.RecordBatch]:
    """Runs in a Python worker: paths and digests → embeddings or errors."""
    engine = _engine(graph)
    for batch in batches:
        rows = []
        for path, digest in zip(*batch.to_pydict().values(), strict=True):
            (outcome,) = embed_chunk(engine, [Example(Path(path), 0, digest)], spec, flip)
            name, cell = ("error", outcome) if isinstance(outcome, str) else ("embedding", outcome.tobytes())
            rows.append({"digest": digest, name: cell})
        yield pa.RecordBatch.from_pylist(rows, _COLUMNS)


@functools.lru_cache(maxsize=1)
def _engine(graph: str) -> OnnxEngine:
    from pyspark import SparkFiles

    return OnnxEngine(Path(SparkFiles.get(graph)))
