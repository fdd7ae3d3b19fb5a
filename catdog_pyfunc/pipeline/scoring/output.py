"""The folder of parquet for the predictions: each part is whole or absent, so that a later call goes on where one ended."""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from catdog_pyfunc.errors import InvalidData, JobFailed
from catdog_pyfunc.pipeline.evaluation.reference import MODEL_DIGEST

PART_ROWS, PART_ROWS_WITH_HEATMAPS = 4096, 512  # a heat map has about 80 KB
SUCCESS = "_SUCCESS"  # Spark's name; readers of parquet skip names that begin with an underscore or a dot
_WORK = "_scoring"  # a folder, until the output is complete: settings, lock, the images' paths, what Spark is writing
_SPARK_SCHEMA = b"org.apache.spark.sql.parquet.row.metadata"
_COLUMNS = pa.schema(
    [
        ("path", pa.string()),
        ("digest", pa.string()),
        ("image_bytes", pa.int64()),
        ("label", pa.string()),
        ("confidence", pa.float64()),
        ("probabilities", pa.map_(pa.string(), pa.float64())),
        ("in_domain", pa.bool_()),
        ("domain_score", pa.float64()),
        ("error", pa.string()),
    ]
)


def columns(heatmaps: bool, metadata: Mapping[str, str]) -> pa.Schema:
    """The columns of the predictions, and `heatmap` if wanted.

    Args:
        heatmaps: Whether there are heat maps.
        metadata: What to say in each file.

    Returns:
        The schema.
    """
    schema = _COLUMNS.append(pa.field("heatmap", pa.binary())) if heatmaps else _COLUMNS
    return schema.with_metadata(dict(metadata))


def model_digest(folder: Path) -> str:
    """The digest of the model whose predictions a folder holds; "" if it is no output."""
    part = next(folder.glob("part-*.parquet"), None)
    metadata = (pq.read_metadata(part).metadata or {}) if part else {}
    if MODEL_DIGEST.encode() in metadata:
        return str(metadata[MODEL_DIGEST.encode()].decode())
    of_spark = json.loads(metadata.get(_SPARK_SCHEMA, b'{"fields": [{"metadata": {}}]}'))  # that of the column `path`
    return str(of_spark["fields"][0]["metadata"].get(MODEL_DIGEST, ""))


class Output:
    """A folder for predictions that only this process writes to; see `open_output`.

    Attributes:
        listing: File for the paths of the images.
        done: Number of images whose predictions are written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.listing = folder / _WORK / "images.parquet"
        self._parts = len(list(folder.glob("part-*.parquet")))
        self.done = sum(int(pq.read_metadata(self._part(number)).num_rows) for number in range(self._parts))

    def write(self, rows: Iterable[Mapping[str, Any]], schema: pa.Schema) -> None:
        """Write the predictions of the images after the first `done`, and mark the output as complete.

        Args:
            rows: One per image.
            schema: Their columns.

        Raises:
            JobFailed: The folder cannot be written to; the parts written so far stay.
        """
        size = PART_ROWS_WITH_HEATMAPS if "heatmap" in schema.names else PART_ROWS
        rows = iter(rows)
        while part := list(islice(rows, size)):
            unfinished = self._folder / f".{self._part(self._parts).name}"
            try:
                pq.write_table(pa.Table.from_pylist(part, schema), unfinished)
                unfinished.replace(self._part(self._parts))
            except OSError as error:
                unfinished.unlink(missing_ok=True)
                raise JobFailed(
                    f"cannot write to {self._folder} ({error.strerror or error}): the predictions for {self.done} images "
                    "are there; make room and run the same command again, which goes on from there"
                ) from error
            self._parts += 1
            self.done += len(part)
        self._finish()

    @contextmanager
    def unfinished_folder(self) -> Iterator[Path]:
        """A folder for another program to write all predictions to; its parquet becomes the output when the block ends."""
        for number in range(self._parts):  # moved by a call that was cut off before it had moved all
            self._part(number).unlink()
        folder = self._folder / _WORK / "unfinished"
        yield folder
        for number, file in enumerate(sorted(folder.glob("*.parquet"))):
            file.replace(self._part(number))
        self._finish()

    def _finish(self) -> None:
        (self._folder / SUCCESS).touch()
        shutil.rmtree(self._folder / _WORK)

    def _part(self, number: int) -> Path:
        return self._folder / f"part-{number:05}.parquet"


@contextmanager
def open_output(folder: Path, identity: Mapping[str, str]) -> Iterator[Output]:
    """Create an output folder, or go on with one that was left incomplete.

    Args:
        folder: Does not exist, is empty, or was left by an interrupted call of the same identity.
        identity: What decides on the predictions: input, model and columns.

    Yields:
        The output.

    Raises:
        InvalidData: The folder holds something else, is complete, or is being written to by another process.
    """
    known, wanted = folder / _WORK / "settings.json", json.dumps(dict(identity), indent=2)
    if (folder / SUCCESS).exists():
        raise InvalidData(f"output {folder} is there already, and complete: give another folder, or remove it")
    if folder.exists() and not folder.is_dir():
        raise InvalidData(f"output {folder} is a file: give a folder that does not exist")
    if folder.exists() and any(folder.iterdir()) and not known.exists():
        raise InvalidData(f"output {folder} holds something else: give a folder that does not exist")
    known.parent.mkdir(parents=True, exist_ok=True)
    with (folder / _WORK / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InvalidData(f"another process is writing to {folder}: wait for it, or give another folder") from None
        if not known.exists():
            known.write_text(wanted)
        elif (found := known.read_text()) != wanted:
            raise InvalidData(
                f"output {folder} was begun with other settings ({_differences(found, identity)}): "
                "give another folder, or remove it"
            )
        output = Output(folder)
        try:
            yield output
        except Exception:
            if not output.done:  # it would only be in the way of a call with other settings
                shutil.rmtree(folder)
            raise


def _differences(found: str, identity: Mapping[str, str]) -> str:
    before = json.loads(found)
    return ", ".join(
        f"{key}: {before.get(key)!r}, now {value!r}" for key, value in identity.items() if before.get(key) != value
    )
