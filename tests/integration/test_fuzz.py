"""Thousands of corrupt images sent to a real server: each gives a row, no request fails, and memory does not grow."""

from __future__ import annotations

import base64
import io
import json
import struct
import zlib
from pathlib import Path

import psutil
import pytest
import requests
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

EXAMPLES, CELLS = 260, 8  # requests, and the least number of images in each
ORIGINALS: list[bytes] = []


@pytest.fixture(scope="module", autouse=True)
def originals(drawn: Path) -> None:
    """Valid files in every supported format, to be corrupted."""
    image = Image.open(drawn / "test" / "cat" / "cat-0001.jpg")
    ORIGINALS[:] = [(drawn / "test" / "dog" / "dog-0001.jpg").read_bytes()]
    for kind, mode, options in (
        ("JPEG", "RGB", {"progressive": True}),
        ("JPEG", "CMYK", {}),
        ("PNG", "RGBA", {}),
        ("PNG", "P", {}),
        ("WEBP", "RGB", {}),
        ("GIF", "P", {}),
        ("BMP", "RGB", {}),
        ("TIFF", "RGB", {"compression": "tiff_lzw"}),
        ("TIFF", "L", {"compression": "tiff_deflate"}),
    ):
        buffer = io.BytesIO()
        image.convert(mode).save(buffer, kind, **options)
        ORIGINALS.append(buffer.getvalue())


@st.composite
def corrupt(draw: st.DrawFn) -> bytes:
    """A valid file that is truncated, bit-flipped, zero-filled, concatenated, prefixed or has false sizes in its header."""
    content = ORIGINALS[draw(st.integers(0, len(ORIGINALS) - 1))]
    place = draw(st.integers(0, len(content) - 1))
    kind = draw(st.sampled_from(["cut", "flip", "zero", "join", "prefix", "number", "size"]))
    if kind == "cut":
        return content[:place]
    if kind == "flip":
        changed = bytearray(content)
        for bit in draw(st.lists(st.integers(0, 8 * len(content) - 1), min_size=1, max_size=20)):
            changed[bit // 8] ^= 1 << bit % 8
        return bytes(changed)
    if kind == "zero":
        return content[:place] + bytes(draw(st.integers(1, 3000))) + content[place + 200 :]
    if kind == "join":
        return content[:place] + ORIGINALS[draw(st.integers(0, len(ORIGINALS) - 1))]
    if kind == "prefix":
        return (
            draw(st.sampled_from([b"%PDF-1.7\n", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"GIF89a", b"RIFF", b"BM"]))
            + content
        )
    number = draw(st.sampled_from([0, 1, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF]))
    if kind == "number":  # somewhere in the header
        place %= 64
        return content[:place] + struct.pack(draw(st.sampled_from(["<I", ">I"])), number) + content[place + 4 :]
    return png_of_size(draw(st.integers(0, 2**31 - 1)), draw(st.integers(0, 2**31 - 1)))


def png_of_size(width: int, height: int) -> bytes:
    """A PNG with valid checksums whose header states any size."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(5000))) + chunk(b"IEND", b"")


def as_text(content: bytes) -> str:
    return base64.b64encode(content).decode()


cells = st.one_of(
    corrupt().map(as_text),
    corrupt().map(as_text),
    corrupt().map(as_text),
    st.binary(max_size=2000).map(as_text),
    st.text(max_size=200),
    st.text("ABCabc+/-_= \r\n", max_size=200),
)


def post(address: str, given: list[str], request_format: str) -> list[dict]:
    body = {"inputs": given} if request_format == "inputs" else {"dataframe_records": [{"image": cell} for cell in given]}
    response = requests.post(f"{address}/invocations", json=body, timeout=60)
    assert response.status_code == 200, (response.text[:500], json.dumps(body)[:500])
    assert "Traceback" not in response.text
    assert "stack_trace" not in response.text
    return list(response.json()["predictions"])


def server_process(address: str) -> psutil.Process:
    """The process that holds the model: the largest of those started for this port."""
    port = address.rsplit(":", 1)[1]
    found = [process for process in psutil.process_iter(["cmdline"]) if port in (process.info["cmdline"] or [])]
    return max(found, key=lambda process: process.memory_info().rss)


def test_no_input_makes_the_server_fail_or_grow(address: str, drawn: Path):
    photo = as_text((drawn / "test" / "cat" / "cat-0001.jpg").read_bytes())
    expected = post(address, [photo], "inputs")
    process, counts = server_process(address), []

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(cells, min_size=CELLS, max_size=CELLS + 4), st.sampled_from(["inputs", "records"]))
    def fuzz(given: list[str], request_format: str) -> None:
        rows = post(address, given, request_format)
        assert len(rows) == len(given)
        for number, row in enumerate(rows):
            assert (row["label"] is None) == (row["error"] is not None)
            assert row["error"] is None or row["error"].startswith(f"image {number} ")
        counts.append(len(given))

    fuzz()  # during the first round, buffers grow to their final size
    before, count = process.memory_info().rss, sum(counts)
    assert count >= 2000
    fuzz()
    assert post(address, [photo], "inputs") == expected
    after = process.memory_info().rss
    print(f"{sum(counts)} inputs; {before / 1e6:.0f} MB before the second {count}, {after / 1e6:.0f} MB after")
    assert after <= 1.1 * before


def bomb(side: int, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.new("1" if kind == "PNG" else "L", (side, side)).save(buffer, kind, **options)
    return buffer.getvalue()


def test_decompression_bombs_cost_no_memory(address: str):
    process = server_process(address)
    before = process.memory_info().rss
    bombs = [
        bomb(9_900, "PNG"),
        bomb(20_000, "PNG"),
        bomb(9_900, "JPEG", progressive=True),
        png_of_size(2**31 - 1, 2**31 - 1),
    ]
    for row in post(address, [as_text(content) for content in bombs], "records"):
        assert row["label"] is None
        assert "pixels" in row["error"]
    assert process.memory_info().rss - before < 50e6
