"""A request's body, whole and within its limits, and the images in it."""

from __future__ import annotations

import asyncio
import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive

from .errors import Refused
from .settings import Settings

JSON = "application/json"
MULTIPART = "multipart/form-data"
HOLD = "catdog.hold"  # in a request's scope: a function that counts the bytes that the request takes
# What curl says of `--data-binary` is no form: whoever sends a form has fields to name, and gets an error for the image.
_RAW = ("", "application/octet-stream", "binary/octet-stream", "application/x-www-form-urlencoded")
_JSON_VALUES, _VALUE_BYTES = 100_000, 80  # most in one body; memory that each, such as `[]`, takes once it is parsed


def media_type(request: Request) -> str:
    """The body's type, without its parameters; empty if there is none."""
    return request.headers.get("content-type", "").split(";")[0].strip().lower()


def is_raw(kind: str) -> bool:
    """Whether a body of that type is an image file."""
    return kind in _RAW or kind.startswith("image/")


async def read(request: Request, settings: Settings) -> bytes:
    """Read and decompress a body.

    Args:
        request: Its `receive` refuses what is too large (`gateway`).
        settings: Limits.

    Returns:
        The body.

    Raises:
        Refused: 408 if it took too long, 413 if it is too large once decompressed, 415 for an unknown compression, 400 if it
            is damaged.
    """
    try:
        body = await asyncio.wait_for(request.body(), settings.request_timeout_s)
    except (TimeoutError, asyncio.TimeoutError):
        raise Refused(
            408, f"the body did not arrive within {settings.request_timeout_s:g} s", {"Connection": "close"}
        ) from None
    except ClientDisconnect:
        raise Refused(400, "the body ended early") from None
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding == "identity":
        return body
    if encoding not in ("gzip", "deflate"):
        raise Refused(415, f"Content-Encoding {encoding!r} is not supported: use gzip or deflate")
    return await _decompress(body, encoding, settings, request.scope[HOLD])


def too_large(settings: Settings) -> Refused:
    """The refusal of a body that is too large."""
    return Refused(413, f"the request body is larger than {settings.max_body_mb:g} MiB")


async def _decompress(body: bytes, encoding: str, settings: Settings, hold: Callable[[int], None]) -> bytes:
    decompressor = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)  # gzip and zlib, by their headers
    content = bytearray()
    while not decompressor.eof:
        try:
            piece = await asyncio.to_thread(decompressor.decompress, body, settings.max_body // 8 + 1)
        except zlib.error as failure:
            raise Refused(400, f"the body is not {encoding}: {failure}") from None
        if not piece and not decompressor.eof:
            raise Refused(400, f"the body is not {encoding}: it ends early")
        hold(len(piece))
        content += piece
        if len(content) > settings.max_body:
            raise too_large(settings)
        body = decompressor.unconsumed_tail
    if decompressor.unused_data:
        raise Refused(400, f"the body is not {encoding}: something follows its end")
    return bytes(content)


def replay(body: bytes) -> Receive:
    """An ASGI `receive` that gives a body that has been read."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        return messages.pop() if messages else {"type": "http.disconnect"}

    return receive


async def parse_json(request: Request, body: bytes) -> Mapping[str, Any]:
    """Parse a JSON object, beside other requests.

    Raises:
        Refused: 400 if it is none; see also `check_values`.
    """
    check_values(request, body)
    try:
        content = await asyncio.to_thread(json.loads, body)
    except (ValueError, RecursionError) as failure:
        raise Refused(400, f"the body is not JSON: {failure}") from None
    if not isinstance(content, dict):
        raise Refused(400, f"the body is a JSON {type(content).__name__}: send an object")
    return content


def check_values(request: Request, body: bytes, most: int = _JSON_VALUES) -> None:
    """Count the values in JSON, and what they will take, before it is parsed.

    Args:
        request: Whose memory they take.
        body: The JSON.
        most: How many there may be.

    Raises:
        Refused: 413 if there are too many, 429 if other requests need the memory.
    """
    values = sum(map(body.count, (b"[", b"{", b",")))
    if values <= most:
        request.scope[HOLD](_VALUE_BYTES * values)
    else:
        raise Refused(413, f"the JSON has more than {most:,} values: send fewer images")


def as_images(value: Any, where: str) -> list[str]:
    """Check that a JSON value is a list of texts.

    Raises:
        Refused: 422 if it isn't.
    """
    if not isinstance(value, list) or not all(isinstance(image, str) for image in value):
        raise Refused(422, f"{where} is not a list of images in base64")
    return value


async def images(request: Request, body: bytes, settings: Settings) -> Sequence[bytes | str]:
    """Find the images in a body.

    Args:
        request: Tells the body's type.
        body: An image file, a form with one or many of them, or JSON: `{"image": base64}` or `{"images": [base64, …]}`.
        settings: Limits.

    Returns:
        Files, or their base64.

    Raises:
        Refused: 415 for another type, 400 for damaged JSON or a damaged form, 422 for JSON without images.
    """
    kind = media_type(request)
    if is_raw(kind):
        return [body] if body else []
    if kind == MULTIPART:
        return await _form_files(request, body, settings)
    if kind == JSON:
        content = await parse_json(request, body)
        if "image" in content:
            return as_images([content["image"]], "`image`")
        return as_images(content.get("images"), "`images`")
    raise Refused(415, f"Content-Type {kind!r} is not supported: send an image file, {MULTIPART} or {JSON}")


async def _form_files(request: Request, body: bytes, settings: Settings) -> list[bytes]:
    whole = Request(request.scope, replay(body))
    try:
        async with whole.form(max_files=settings.max_files, max_fields=settings.max_files) as form:
            files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
            return [await file.read() for file in files]
    except ValueError as failure:  # a charset that cannot be used
        raise Refused(400, f"the form is damaged: {failure}") from None
