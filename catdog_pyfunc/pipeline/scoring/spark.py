"""Scores on a Spark cluster: whole partitions in `mapInArrow`, the model loaded once per Python worker."""

from __future__ import annotations

import functools
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import pyarrow as pa

from catdog_pyfunc import bundle
from catdog_pyfunc.classifier import Classifier
from catdog_pyfunc.errors import JobFailed, first_line
from catdog_pyfunc.pipeline.scoring.inputs import Item
from catdog_pyfunc.pipeline.scoring.local import score_chunk
from catdog_pyfunc.pipeline.scoring.output import columns

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

_PARTITION_ROWS = 2048  # of a listing
_SCHEMA = (
    "path string, digest string, image_bytes bigint, label string, confidence double, probabilities map<string, double>, "
    "in_domain boolean, domain_score double, error string"
)


def score(
    spark: SparkSession, images: DataFrame, model: Path, output: Path, heatmaps: bool, metadata: dict[str, str]
) -> None:
    """Classify images and write the predictions as parquet.

    Args:
        spark: The session; its executors get the model.
        images: One row per image: `path`, and `content` with the file's bytes, or null if the workers read the path.
        model: The model's bundle.
        output: Folder to create or replace, visible to all workers.
        heatmaps: Whether to add heat maps.
        metadata: What to say in each file, as metadata of the column `path`.

    Raises:
        JobFailed: The job was aborted.
    """
    from pyspark.errors import PySparkException
    from pyspark.sql import functions

    with tempfile.TemporaryDirectory(prefix="catdog-") as scratch:
        archive = shutil.make_archive(
            str(Path(scratch) / f"catdog-{uuid4().hex}"), "zip", model
        )  # a session has one of a name
        spark.sparkContext.addArchive(archive)
        work = functools.partial(_score_batches, archive=Path(archive).name, heatmaps=heatmaps)
        schema = f"{_SCHEMA}, heatmap binary" if heatmaps else _SCHEMA
        scored = images.select("path", "content").mapInArrow(work, schema)
        try:
            described = scored.withColumn("path", functions.col("path").alias("path", metadata=metadata))
            described.write.mode("overwrite").parquet(
                f"file://{output}"
            )  # `as_uri` would escape, and Spark not unescape, spaces
        except PySparkException as error:
            raise JobFailed(
                f"Spark gave up ({first_line(error)}): nothing was written; run the same command again"
            ) from error


def images_from(spark: SparkSession, files: list[Path], columns: list[str]) -> DataFrame:
    """The images of parquet files, or of a listing, as `score` takes them.

    Args:
        spark: The session.
        files: The files, visible to all workers.
        columns: Their columns: the one with the bytes, if there is one, and `path`, if there is one.

    Returns:
        `path` and `content`.
    """
    from pyspark.sql import functions

    read = spark.read.parquet(*(f"file://{file}" for file in files))
    content = next((name for name in columns if name != "path"), None)
    row = functions.concat(
        functions.regexp_replace("_metadata.file_path", "^file:/+", "/"), functions.lit("#"), "_metadata.row_index"
    )
    if content is None:
        partitions = max(spark.sparkContext.defaultParallelism * 4, read.count() // _PARTITION_ROWS)
        return read.select("path", functions.lit(None).cast("binary").alias("content")).repartition(partitions)
    return read.select(
        functions.coalesce("path", row).alias("path") if "path" in columns else row.alias("path"),
        functions.coalesce(content, functions.lit(b"")).alias("content"),
    )


def _score_batches(batches: Iterator[pa.RecordBatch], archive: str, heatmaps: bool) -> Iterator[pa.RecordBatch]:
    """Runs in a Python worker: some rows of `images` → their predictions."""
    classifier = _classifier(archive)
    for batch in batches:
        items = [Item(path, content) for path, content in zip(*batch.to_pydict().values(), strict=True)]
        yield pa.RecordBatch.from_pylist(score_chunk(classifier, items, heatmaps), columns(heatmaps, {}))


@functools.lru_cache(maxsize=1)
def _classifier(archive: str) -> Classifier:
    from pyspark import SparkFiles, TaskContext

    task = TaskContext.get()
    return Classifier(bundle.read(Path(SparkFiles.get(archive))), engine="onnx", threads=task.cpus() if task else 1)
