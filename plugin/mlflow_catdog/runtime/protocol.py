"""Bounds what uvicorn leaves unbounded: what a connection may take besides bodies, in time and in bytes."""

from __future__ import annotations

import asyncio
import json
import socket

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_HEADERS_S = 10.0  # from the connection, or from a further request's first byte
_UNWANTED_BODY_S = 10.0  # for the rest of a body whose request has its response
_UNREAD_S = 30  # for a client to take some more of a response
_HEADER_BYTES = 2**16  # of a request's headers, or of trailers and what surrounds chunks
_PIPELINED = 16  # requests that a client may send ahead of their responses


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's protocol; a client that exceeds a bound loses its connection."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for headers from now on."""
        super().connection_made(transport)
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # only Linux has it
            connection = transport.get_extra_info("socket")
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000 * _UNREAD_S)
        self._header_bytes, self._between_requests = 0, False
        self._close_after(_HEADERS_S)

    def connection_lost(self, failure: Exception | None) -> None:
        """Stop waiting."""
        self._deadline.cancel()
        super().connection_lost(failure)

    def data_received(self, data: bytes) -> None:
        """Count the bytes that are no body, and end the connection if they are too many."""
        self._await_headers()  # even line breaks, which may precede a request, come from a client that starts one
        self._header_bytes += len(data)
        super().data_received(data)
        if self._header_bytes > _HEADER_BYTES and not self.transport.is_closing():
            self.send_400_response("The headers are too large.")

    def on_message_begin(self) -> None:
        """Wait for headers again."""
        super().on_message_begin()
        self._await_headers()

    def on_headers_complete(self) -> None:
        """Wait no more."""
        self._deadline.cancel()
        super().on_headers_complete()
        if len(self.pipeline) > _PIPELINED:
            raise ValueError("too many pipelined requests")  # to uvicorn, an invalid request

    def on_body(self, body: bytes) -> None:
        """Allow a chunk as many bytes around it as it has itself; trailers may follow."""
        self._header_bytes = max(self._header_bytes - 2 * len(body), -_HEADER_BYTES)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Count the next request's headers from here on."""
        self._deadline.cancel()
        self._header_bytes, self._between_requests = 0, True
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Take in the rest of an unwanted body: most clients read a response only when they have sent theirs."""
        super().on_response_complete()
        if self.cycle.response_complete and not self._between_requests and not self.transport.is_closing():
            self._deadline.cancel()
            self._close_after(_UNWANTED_BODY_S)

    def send_400_response(self, msg: str) -> None:
        """Refuse, in JSON as everywhere."""
        responding = self.cycle is not None and self.cycle.response_started and not self.cycle.response_complete
        if not responding and not self.pipeline:  # else it would end up within another response
            body = json.dumps({"error": msg}).encode()
            head = "HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: "
            self.transport.write(f"{head}{len(body)}\r\n\r\n".encode() + body)
        self.transport.close()

    def _await_headers(self) -> None:
        if self._between_requests:
            self._between_requests = False
            self._close_after(_HEADERS_S)

    def _close_after(self, seconds: float) -> None:
        self._deadline = self.loop.call_later(seconds, self.transport.close)
