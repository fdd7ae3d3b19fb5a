"""Every request format gives the same row; an unreadable image is a row with an error; nothing makes the server fail."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.request_formats import bodies, csv, parquet, post


@pytest.fixture(scope="module")
def photo(drawn: Path) -> bytes:
    return (drawn / "test" / "cat" / "cat-0001.jpg").read_bytes()


@pytest.fixture(scope="module")
def expected(address: str, photo: bytes) -> dict:
    (row,) = post(address, {"dataframe_records": [{"image": base64.b64encode(photo).decode()}]})
    assert row["label"] in ("cat", "dog")
    return row


@pytest.mark.parametrize("request_format", list(bodies(b"")))
def test_every_json_format_gives_the_same_row(request_format: str, address: str, photo: bytes, expected: dict):
    assert post(address, bodies(photo)[request_format]) == [expected]


def test_csv_and_parquet_give_the_same_row(address: str, photo: bytes, expected: dict):
    assert post(address, content=csv(photo), kind="text/csv") == [expected]
    assert post(address, content=parquet(photo), kind="application/vnd.apache.parquet") == [expected]


def test_explain_over_rest(address: str, photo: bytes):
    (row,) = post(address, {"dataframe_records": [{"image": base64.b64encode(photo).decode()}], "params": {"explain": True}})
    assert Image.open(io.BytesIO(base64.b64decode(row["heatmap"]))).format == "PNG"
    (row,) = post(address, bodies(photo)["dataframe_records, standard"])
    assert row["heatmap"] is None


def corrupt_files(photo: bytes) -> Iterator[bytes]:
    """Truncated, bit-flipped, zero-filled and concatenated files, and headers with false sizes."""
    for k in range(0, len(photo), max(1, len(photo) // 40)):
        yield photo[:k]
        flipped = bytearray(photo)
        flipped[k] ^= 1 << (k % 8)
        yield bytes(flipped)
        yield photo[:k] + bytes(200) + photo[k + 200 :]
    yield photo + photo
    yield b"%PDF-1.7\n" + photo
    yield os.urandom(4000)
    image = Image.open(io.BytesIO(photo))
    for kind in ("PNG", "GIF", "BMP", "TIFF", "WEBP"):
        buffer = io.BytesIO()
        image.save(buffer, kind)
        content = buffer.getvalue()
        for k in range(0, min(len(content), 400), 13):
            changed = bytearray(content)
            changed[k : k + 4] = b"\xff\xff\xff\x7f"
            yield bytes(changed)
        yield content[: len(content) // 2]


def test_corrupt_files_are_rows_with_an_error_and_the_server_goes_on(address: str, photo: bytes, expected: dict):
    files = list(corrupt_files(photo))
    for start in range(0, len(files), 25):
        batch = [base64.b64encode(file).decode() for file in files[start : start + 25]]
        rows = post(address, {"dataframe_records": [{"image": cell} for cell in batch]})
        assert len(rows) == len(batch)
        for number, row in enumerate(rows):
            assert (row["label"] is None) == (row["error"] is not None)
            assert row["error"] is None or row["error"].startswith(f"image {number} ")
    assert post(address, bodies(photo)["dataframe_records, standard"]) == [expected]


@pytest.mark.parametrize(
    "text", ["", " ", "not base64 !", "/etc/passwd", "http://127.0.0.1/photo.jpg", "ä", "\x00", "AAAA" * 1000]
)
def test_text_that_is_not_an_image_is_a_row_with_an_error(text: str, address: str):
    for body in ({"inputs": [text]}, {"instances": [text]}):
        (row,) = post(address, body)
        assert row["label"] is None
        assert "send" in row["error"]
