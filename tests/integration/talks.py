"""Raw HTTP on many connections, as an attacker sends it."""

from __future__ import annotations

import base64
import gzip
import itertools
import json
import resource
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

MAX_BODY = 8 * 2**20  # of the server that is attacked, bytes
TIMEOUT_S = 5  # for a body to arrive there
CLOSED = 0  # the connection ended without a response
V1, V2 = "/v1/models/CatDogClassifier:predict", "/v2/models/CatDogClassifier/infer"
JSON, RAW = "application/json", "application/octet-stream"
IMAGE = base64.b64encode(b"GIF89a").decode()


@dataclass(frozen=True)
class Talk:
    """One connection.

    Attributes:
        pieces: What is sent, one after the other.
        pause_s: Between pieces.
        leaves: Whether the client goes away once it has sent them.
        reads: Whether the client takes the response.
    """

    pieces: Iterable[bytes]
    pause_s: float = 0.0
    leaves: bool = False
    reads: bool = True


@dataclass(frozen=True)
class Attack:
    """Connections that are open at once, and the statuses that each may get."""

    talks: Callable[[], Iterable[Talk]]
    expected: Sequence[int]


def head(line: str = "POST /predict", *headers: str) -> bytes:
    """The start of a request, whose connection ends with the response."""
    return "\r\n".join([f"{line} HTTP/1.1", "Host: x", "Connection: close", *headers, "", ""]).encode("latin-1")


def post(body: bytes, path: str = "/predict", kind: str = RAW, *headers: str) -> bytes:
    """A whole request."""
    return head(f"POST {path}", f"Content-Type: {kind}", f"Content-Length: {len(body)}", *headers) + body


def each(*requests: bytes) -> Callable[[], Iterable[Talk]]:
    return lambda: [Talk([request]) for request in requests]


def many(number: int, *pieces: bytes, pause_s: float = 0.0, leaves: bool = False) -> Callable[[], Iterable[Talk]]:
    return lambda: (Talk(pieces, pause_s, leaves) for _ in range(number))


def drips(number: int, start: bytes, drop: bytes) -> Callable[[], Iterable[Talk]]:
    """A start, and then a little every second for as long as the server listens."""
    return lambda: (Talk(itertools.chain([start], itertools.repeat(drop)), pause_s=1.0) for _ in range(number))


def endless(start: bytes, piece: bytes, number: int = 4) -> Callable[[], Iterable[Talk]]:
    return lambda: (Talk(itertools.chain([start], itertools.repeat(piece))) for _ in range(number))


def form(*parts: bytes, end: bytes = b"\r\n--b--\r\n", kind: str = "multipart/form-data; boundary=b") -> bytes:
    return post(b"\r\n".join(b"--b\r\n" + part for part in parts) + end, "/predict", kind)


def gzipped(content: bytes, end: int | None = None) -> bytes:
    return post(gzip.compress(content, 9)[:end], "/predict", RAW, "Content-Encoding: gzip")


def tensor(binary: bytes, size: object, json_length: int = 0) -> bytes:
    """A V2 request whose lengths may lie."""
    tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": size}}
    content = json.dumps({"inputs": [tensor]}).encode()
    return post(content + binary, V2, RAW, f"Inference-Header-Content-Length: {json_length or len(content)}")


def everywhere(*bodies: str) -> Callable[[], Iterable[Talk]]:
    """Each body, to every route that takes JSON."""
    return lambda: [Talk([post(body.encode(), path, JSON)]) for body in bodies for path in ("/predict", "/", V1, V2)]


def nested(depth: int) -> str:
    """Lists in lists, where texts are expected."""
    value = "[" * depth + "]" * depth
    tensor = f'[{{"name": "image", "datatype": {value}, "shape": [1], "data": ["{IMAGE}"]}}]'
    named = f'"id": {value}, "parameters": {{"top_k": {value}}}, "outputs": [{{"name": {value}}}]'
    return f'{{"inputs": {tensor}, "images": {value}, "instances": {value}, {named}}}'


def infer(**fields: str) -> bytes:
    """A V2 request of one image with further fields, written as JSON."""
    tensor = f'{{"name": "image", "datatype": "BYTES", "shape": [1], "data": ["{IMAGE}"]}}'
    further = "".join(f', "{name}": {value}' for name, value in fields.items())
    return post(f'{{"inputs": [{tensor}]{further}}}'.encode(), V2, JSON)


def connections(wanted: int = 10_000) -> int:
    """As many as this process may open."""
    return min(wanted, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 500)
