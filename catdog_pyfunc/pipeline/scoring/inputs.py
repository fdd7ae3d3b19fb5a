"""Where the images come from: a folder, a list of paths, or parquet with a column of bytes; never all in memory at once."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from catdog_pyfunc.errors import InvalidData
from catdog_pyfunc.images import IMAGE_COLUMN
from catdog_pyfunc.pipeline.data.dataset import SUFFIXES

BYTES_COLUMNS = (IMAGE_COLUMN, "content", "bytes")
"""Columns of parquet that may hold the files' bytes: this project's name for it, Spark's, and a plain one."""
_PATHS = pa.schema([("path", pa.string())])
_BATCH_ROWS = 64  # so many images of 5 MB are 320 MB
_BUFFER_BYTES = 1 << 20  # without it pyarrow reads a whole row group at once


class Item(NamedTuple):
    """One image to score.

    Attributes:
        path: The file; in parquet the column `path`, or else the file and the row's number.
        content: The file's bytes; None if they are to be read from `path`.
    """

    path: str
    content: bytes | None = None


class Images:
    """The images of an input, in an order that does not change between two calls.

    Attributes:
        files: Parquet that holds them, or lists their paths.
        columns: The columns to read: the one with the files' bytes, if there is one, and `path`, if there is one.
        count: How many there are.
    """

    def __init__(self, files: list[Path], columns: list[str]) -> None:
        self.files, self.columns = files, columns
        self.count = sum(int(pq.read_metadata(file).num_rows) for file in files)

    def items(self, start: int = 0) -> Iterator[Item]:
        """Yield the images from a position on."""
        for file in self.files:
            rows = int(pq.read_metadata(file).num_rows)
            for number, row in enumerate(_rows(file, self.columns, start), start):
                path = row.get("path") or f"{file}#{number}"
                content = [row[name] or b"" for name in self.columns if name != "path"]
                yield Item(path, *content)
            start = max(0, start - rows)


def open_images(source: str, listing: Path) -> Images:
    """Open the images to score.

    Args:
        source: Folder of images (any depth), folder or file of parquet, or text file with one path per line.
        listing: File for the paths of a folder or a list. If it exists, it is used: the second call sees the same images.

    Returns:
        The images.

    Raises:
        InvalidData: There is nothing at `source`, or nothing that can be scored.
    """
    path = Path(source).expanduser().absolute()
    if not path.exists():
        raise InvalidData(f"input {path} does not exist: give a folder, a text file with one path per line, or parquet")
    if files := parquet_files(path):
        return Images(files, _columns(files[0]))
    if not listing.exists():
        _write(_walk(path) if path.is_dir() else _lines(path), listing)
    images = Images([listing], ["path"])
    if not images.count:
        listing.unlink()
        raise InvalidData(
            f"input {path} has no images: give files with the suffixes {', '.join(sorted(SUFFIXES))}, or parquet"
        )
    return images


def parquet_files(path: Path) -> list[Path]:
    """The parquet files at a path, or directly in the folder at a path; none if it holds something else."""
    candidates = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    return [file for file in candidates if file.suffix == ".parquet" and not file.name.startswith(("_", "."))]


def _columns(file: Path) -> list[str]:
    try:
        names = pq.read_schema(file).names
    except pa.ArrowInvalid as error:
        raise InvalidData(
            f"{file} is not parquet ({error}): give a folder, a text file with one path per line, or parquet"
        ) from None
    content = next((name for name in BYTES_COLUMNS if name in names), None)
    if content is None:
        wanted = " or ".join(map(repr, BYTES_COLUMNS))
        raise InvalidData(f"{file} has the columns {', '.join(names)}: call the one with the images' bytes {wanted}")
    return [content, *(name for name in ("path",) if name in names)]


def _rows(file: Path, columns: list[str], start: int) -> Iterator[dict[str, Any]]:
    """The rows of a parquet file from a position on; row groups before it are not read."""
    with pq.ParquetFile(file, buffer_size=_BUFFER_BYTES) as parquet:
        groups = list(range(parquet.num_row_groups))
        while groups and start >= (rows := parquet.metadata.row_group(groups[0]).num_rows):
            del groups[0]
            start -= rows
        batches = parquet.iter_batches(_BATCH_ROWS, groups, columns)
        yield from islice((row for batch in batches for row in batch.to_pylist()), start, None)


def _write(paths: Iterable[str], listing: Path) -> None:
    unfinished, paths = listing.with_suffix(".tmp"), iter(paths)
    with pq.ParquetWriter(unfinished, _PATHS) as writer:
        while some := list(islice(paths, 10_000)):
            writer.write_table(pa.table({"path": some}, _PATHS))
    unfinished.replace(listing)


def _walk(folder: Path) -> Iterator[str]:
    for parent, folders, files in os.walk(folder):
        folders.sort()
        yield from (f"{parent}{os.sep}{name}" for name in sorted(files) if Path(name).suffix.lower() in SUFFIXES)


def _lines(file: Path) -> Iterator[str]:
    try:
        with file.open(encoding="utf-8") as lines:
            yield from (line.rstrip("\n") for line in lines if line.strip())
    except UnicodeDecodeError:
        raise InvalidData(f"{file} is not text: give a folder, a text file with one path per line, or parquet") from None
