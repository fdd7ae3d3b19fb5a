"""Damaged image files, and files that cost far more to decode than to send."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

from hypothesis import strategies as st
from PIL import Image


def originals(drawn: Path) -> list[bytes]:
    """Valid files in every supported format, to be corrupted."""
    image = Image.open(drawn / "test" / "cat" / "cat-0001.jpg")
    files = [(drawn / "test" / "dog" / "dog-0001.jpg").read_bytes()]
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
        files.append(buffer.getvalue())
    return files


@st.composite
def corrupt(draw: st.DrawFn, files: list[bytes]) -> bytes:
    """A valid file that is truncated, bit-flipped, zero-filled, concatenated, prefixed or has false sizes in its header."""
    content = files[draw(st.integers(0, len(files) - 1))]
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
        return content[:place] + files[draw(st.integers(0, len(files) - 1))]
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


def bomb(side: int, kind: str, **options: object) -> bytes:
    """A small file with many pixels."""
    buffer = io.BytesIO()
    Image.new("1" if kind == "PNG" else "L", (side, side)).save(buffer, kind, **options)
    return buffer.getvalue()


def bombs() -> list[bytes]:
    """All that a model refuses before it decodes them."""
    return [
        bomb(9_900, "PNG"),
        bomb(20_000, "PNG"),
        bomb(9_900, "JPEG", progressive=True),
        png_of_size(2**31 - 1, 2**31 - 1),
    ]
