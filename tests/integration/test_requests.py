"""Every way to send a picture gives the same row; what can't be read is a row; nothing makes the server fail."""

from __future__ import annotations

import base64
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import requests
from PIL import Image


def post(
    address: str, body: object = None, content: bytes | str | None = None, kind: str = "application/json"
) -> list[dict]:
    data = json.dumps(body) if content is None else content
    answer = requests.post(f"{address}/invocations", data=data, headers={"Content-Type": kind}, timeout=60)
    assert answer.status_code == 200, answer.text[:500]
    assert "Traceback" not in answer.text
    return list(answer.json()["predictions"])


@pytest.fixture(scope="module")
def photo(drawn: Path) -> bytes:
    return (drawn / "test" / "cat" / "cat-0001.jpg").read_bytes()


@pytest.fixture(scope="module")
def expected(address: str, photo: bytes) -> dict:
    (row,) = post(address, {"dataframe_records": [{"image": base64.b64encode(photo).decode()}]})
    assert row["label"] in ("cat", "dog")
    return row


def bodies(photo: bytes) -> dict[str, object]:
    standard = base64.b64encode(photo).decode()
    cells = {
        "standard": standard,
        "url-safe": base64.urlsafe_b64encode(photo).decode(),
        "without padding": standard.rstrip("="),
        "line breaks": base64.encodebytes(photo).decode(),
        "data URI": f"data:image/jpeg;base64,{standard}",
    }
    forms: dict[str, object] = {}
    for name, cell in cells.items():
        forms[f"dataframe_split, {name}"] = {"dataframe_split": {"columns": ["image"], "data": [[cell]]}}
        forms[f"dataframe_records, {name}"] = {"dataframe_records": [{"image": cell}]}
        forms[f"inputs list, {name}"] = {"inputs": [cell]}
        forms[f"inputs dict, {name}"] = {"inputs": {"image": [cell]}}
        forms[f"inputs records, {name}"] = {"inputs": [{"image": cell}]}
        forms[f"instances, {name}"] = {"instances": [cell]}
        forms[f"instances records, {name}"] = {"instances": [{"image": cell}]}
    return forms


@pytest.mark.parametrize("form", list(bodies(b"")))
def test_every_json_form_gives_the_same_row(form: str, address: str, photo: bytes, expected: dict):
    assert post(address, bodies(photo)[form]) == [expected]


def test_csv_and_parquet_give_the_same_row(address: str, photo: bytes, expected: dict):
    csv = pd.DataFrame({"image": [base64.b64encode(photo).decode()]}).to_csv(index=False)
    assert post(address, content=csv, kind="text/csv") == [expected]
    parquet = pd.DataFrame({"image": [photo]}).to_parquet()
    assert post(address, content=parquet, kind="application/vnd.apache.parquet") == [expected]


def test_explain_over_rest(address: str, photo: bytes):
    (row,) = post(address, {"dataframe_records": [{"image": base64.b64encode(photo).decode()}], "params": {"explain": True}})
    assert Image.open(io.BytesIO(base64.b64decode(row["heatmap"]))).format == "PNG"


def damaged(photo: bytes) -> Iterator[bytes]:
    """Cut, bit-flipped, zero-filled, concatenated, wrongly named and lying files."""
    for k in range(0, len(photo), max(1, len(photo) // 40)):
        yield photo[:k]
        flipped = bytearray(photo)
        flipped[k] ^= 1 << (k % 8)
        yield bytes(flipped)
        yield photo[:k] + bytes(200) + photo[k + 200 :]
    yield photo + photo
    yield b"%PDF-1.7\n" + photo
    yield os.urandom(4000)
    picture = Image.open(io.BytesIO(photo))
    for kind in ("PNG", "GIF", "BMP", "TIFF", "WEBP"):
        buffer = io.BytesIO()
        picture.save(buffer, kind)
        content = buffer.getvalue()
        for k in range(0, min(len(content), 400), 13):
            lying = bytearray(content)
            lying[k : k + 4] = b"\xff\xff\xff\x7f"
            yield bytes(lying)
        yield content[: len(content) // 2]


def test_damaged_files_are_rows_and_the_server_goes_on(address: str, photo: bytes, expected: dict):
    files = list(damaged(photo))
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
def test_text_that_is_no_picture_is_a_row(text: str, address: str):
    for body in ({"inputs": [text]}, {"instances": [text]}):
        (row,) = post(address, body)
        assert row["label"] is None
        assert "send" in row["error"]
