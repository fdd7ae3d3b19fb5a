"""One cell of a request → an image file's bytes: raw, base64 (standard or URL-safe) or a data URI; never a path or a URL."""

from __future__ import annotations

import binascii
import re

import pybase64

from catdog_pyfunc.errors import InvalidImage

IMAGE_COLUMN = "image"  # the name in every request, DataFrame and signature of this project
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG", b"RIFF", b"GIF8", b"BM", b"II*\x00", b"MM\x00*")
_REMEDY = "send the bytes of a JPEG, PNG, WebP, GIF, BMP or TIFF, raw or as base64"
_WHITESPACE = b" \t\r\n\v\f"
_DATA_URI = re.compile(rb"\s*data:[^,]{0,1000},", re.IGNORECASE)
_URL_SAFE_TO_STANDARD = bytes.maketrans(b"-_", b"+/")


def decode_payload(cell: object) -> bytes:
    """Extract the image file from one cell of a request.

    Args:
        cell: The file's bytes, their base64 (as `str` or `bytes`, standard or URL-safe alphabet, with or without padding
            and line breaks), or a `data:` URI that holds base64.

    Returns:
        The file's bytes, not yet decoded as an image.

    Raises:
        InvalidImage: The cell holds none of these.
    """
    if isinstance(cell, str):
        try:  # the usual case, without a copy
            return pybase64.b64decode(cell, validate=True) if cell else _from_text(b"")
        except ValueError:
            return _from_text(cell.encode("utf-8", "replace"))
    if not isinstance(cell, (bytes, bytearray, memoryview)):
        raise InvalidImage(f"is {_describe(cell)}, not an image; {_REMEDY}")
    content = bytes(cell)
    # Under `inputs` and `instances` MLflow passes base64 on as bytes, undecoded, so only the content tells it from a file.
    if content.startswith(_SIGNATURES) or not content.isascii():
        return content
    return _from_text(content)


def _from_text(text: bytes) -> bytes:
    uri = _DATA_URI.match(text)
    payload = text[uri.end() if uri else 0 :].translate(_URL_SAFE_TO_STANDARD, delete=_WHITESPACE).rstrip(b"=")
    if not payload:
        raise InvalidImage(f"is empty; {_REMEDY}")
    try:
        return pybase64.b64decode(payload + b"=" * (-len(payload) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise InvalidImage(f"is neither an image nor base64: starts with {text[:12]!r}; {_REMEDY}") from None


def _describe(cell: object) -> str:
    return "null" if cell is None or cell != cell else f"a value of type {type(cell).__name__}"  # NaN is pandas' null
