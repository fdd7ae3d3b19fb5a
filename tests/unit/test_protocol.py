"""Bounds on a request's headers, over real connections: time and size; bodies have bounds of their own."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import uvicorn
from mlflow_catdog.runtime import protocol
from mlflow_catdog.runtime.protocol import BoundedProtocol

from tests.unit.test_gateway import echo_size

HEAD = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
TOO_LARGE = b'\r\n\r\n{"error": "The headers are too large."}'
Scenario = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def connected(scenario: Scenario) -> None:
    """Run a scenario with a connection to a server that responds with the size of each body."""

    async def main() -> None:
        application: Any = echo_size
        server = uvicorn.Server(uvicorn.Config(application, http=BoundedProtocol, lifespan="off", log_level="critical"))
        with socket.create_server(("127.0.0.1", 0)) as listening:
            serving = asyncio.create_task(server.serve([listening]))
            while not server.started:
                await asyncio.sleep(0.02)
            reader, writer = await asyncio.open_connection(*listening.getsockname())
            try:
                await scenario(reader, writer)
            finally:
                writer.close()
                server.should_exit = True
                await serving

    asyncio.run(asyncio.wait_for(main(), 60))


async def response(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """Status line and body of a chunked response."""
    head, body = await reader.readuntil(b"\r\n\r\n"), await reader.readuntil(b"0\r\n\r\n")
    return head.splitlines()[0], body.splitlines()[1]


async def drip(writer: asyncio.StreamWriter, first: bytes) -> None:
    """Send the start of a request, and then a byte at a time, until the server has had enough."""
    writer.write(first)
    with contextlib.suppress(ConnectionError):
        while not writer.is_closing():
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("first", [b"", b"GET / HT", b"POST / HTTP/1.1\r\nHost: x\r\nX-Slow: "])
@pytest.mark.parametrize("earlier", [0, 1])
def test_headers_that_do_not_arrive_in_time_end_the_connection(first: bytes, earlier: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(protocol, "_HEADERS_S", 0.3)

    async def scenario(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(earlier):
            writer.write(HEAD % 3 + b"abc")
            assert await response(reader) == (b"HTTP/1.1 200 OK", b"3")
        dripping = asyncio.create_task(drip(writer, first))
        with contextlib.suppress(ConnectionError):
            assert not (await reader.read()).startswith(b"HTTP/1.1 200")
        dripping.cancel()

    connected(scenario)


def test_a_body_may_take_longer_than_headers(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(protocol, "_HEADERS_S", 0.2)

    async def scenario(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD % 3 + b"a")
        await asyncio.sleep(0.5)
        writer.write(b"bc")
        assert await response(reader) == (b"HTTP/1.1 200 OK", b"3")

    connected(scenario)


@pytest.mark.parametrize("headers", [b"X-Large: %s\r\n" % (b"x" * 70_000), b"X-Many: 1\r\n" * 7_000], ids=["large", "many"])
@pytest.mark.parametrize("earlier", [0, 1])
def test_headers_that_are_too_large_are_refused(headers: bytes, earlier: int):
    async def scenario(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(earlier):
            writer.write(HEAD % 3 + b"abc")
            assert await response(reader) == (b"HTTP/1.1 200 OK", b"3")
        writer.write(b"GET / HTTP/1.1\r\n" + headers)
        refusal = await reader.read()
        assert refusal.startswith(b"HTTP/1.1 400 ")
        assert refusal.endswith(TOO_LARGE)

    connected(scenario)


@pytest.mark.parametrize("trailers", [b"X-Large: " + b"x" * 70_000, b"X-Many: 1\r\n" * 7_000], ids=["large", "many"])
def test_trailers_that_are_too_large_are_refused(trailers: bytes):
    async def scenario(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n")
        await writer.drain()
        writer.write(trailers)
        assert (await asyncio.wait_for(reader.read(), 5)).endswith(TOO_LARGE)

    connected(scenario)


def test_a_large_body_that_comes_with_its_headers_is_no_header():
    async def scenario(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for size in (2**20, 2**19):
            writer.write(HEAD % size + bytes(size))
            assert await response(reader) == (b"HTTP/1.1 200 OK", str(size).encode())

    connected(scenario)
