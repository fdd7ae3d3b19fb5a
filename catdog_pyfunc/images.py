"""One request cell → the picture's bytes: raw, base64 (standard or url-safe) or a data URI. Never a path or URL."""

from __future__ import annotations

import binascii
import re

import pybase64

from catdog_pyfunc.errors import InvalidImage

IMAGE_COLUMN = "image"  # of every request, DataFrame and signature of this project
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG", b"RIFF", b"GIF8", b"BM", b"II*\x00", b"MM\x00*")
_SEND = "send the bytes of a JPEG, PNG, WebP, GIF, BMP or TIFF, raw or as base64"
_SPACE = b" \t\r\n\v\f"
_DATA_URI = re.compile(rb"\s*data:[^,]{0,1000},", re.IGNORECASE)
_URL_SAFE = bytes.maketrans(b"-_", b"+/")


def decode_payload(cell: object) -> bytes:
    """Find the picture in one cell of a request.

    Args:
        cell: The file's bytes, their base64 (as `str` or `bytes`, standard or url-safe alphabet, with or without padding
            and line breaks), or a `data:` URI holding base64.

    Returns:
        The file's bytes, not yet decoded as a picture.

    Raises:
        InvalidImage: The cell holds none of these.
    """
    if isinstance(cell, str):
        try:  # as most clients send it: without a copy
            return pybase64.b64decode(cell, validate=True) if cell else _from_text(b"")
        except ValueError:
            return _from_text(cell.encode("utf-8", "replace"))
    if not isinstance(cell, (bytes, bytearray, memoryview)):
        raise InvalidImage(f"is {_kind(cell)}, not a picture; {_SEND}")
    content = bytes(cell)
    # MLflow hands base64 over undecoded under `inputs` and `instances`, as bytes: what it is can only be told by looking.
    if content.startswith(_SIGNATURES) or not content.isascii():
        return content
    return _from_text(content)


def _from_text(text: bytes) -> bytes:
    uri = _DATA_URI.match(text)
    payload = text[uri.end() if uri else 0 :].translate(_URL_SAFE, delete=_SPACE).rstrip(b"=")
    if not payload:
        raise InvalidImage(f"is empty; {_SEND}")
    try:
        return pybase64.b64decode(payload + b"=" * (-len(payload) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise InvalidImage(f"is neither a picture nor base64: starts with {text[:12]!r}; {_SEND}") from None


def _kind(cell: object) -> str:
    return "null" if cell is None or cell != cell else f"a value of type {type(cell).__name__}"  # NaN is pandas' null
