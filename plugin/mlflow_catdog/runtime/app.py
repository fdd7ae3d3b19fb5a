"""MLflow's scoring server as a worker runs it: it passes a smoke test before it takes requests, and limits their bodies."""

from __future__ import annotations

import json
import traceback
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from . import PING, internals, smoke_test

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

_MIB = 1024**2
_HEALTH = (PING, "/health")


class ScoringApp:
    """An ASGI application that loads the model on startup.

    Attributes:
        draining: Set it, and each response closes its connection: no client sends another request into one that is about
            to end. Health checks get a 503: load balancers send their next requests elsewhere.
    """

    def __init__(self, model: str, max_body_mb: float, ready: Callable[[], None]) -> None:
        """Load nothing yet.

        Args:
            model: Its folder.
            max_body_mb: Larger bodies, in MiB, get a 413.
            ready: Called once the model has passed its smoke test; requests are taken when it returns.
        """
        self.draining = False
        self._model, self._max_body_mb, self._ready = model, max_body_mb, ready
        self._app: App

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Handle one request, or the server's lifespan."""
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
            return

        async def closing_send(message: Message) -> None:
            if self.draining and message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), (b"connection", b"close")]
            await send(message)

        if self.draining and scope["path"] in _HEALTH:
            await _respond(
                closing_send, 503, {"error_code": "TEMPORARILY_UNAVAILABLE", "message": "this server is stopping"}
            )
        else:
            await self._app(scope, receive, closing_send)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()  # lifespan.startup
        try:
            await self._start()
        except BaseException as failure:
            if not isinstance(failure, smoke_test.SmokeTestFailed):
                traceback.print_exc()
            await send({"type": "lifespan.startup.failed", "message": f"{type(failure).__name__}: {failure}"})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()  # lifespan.shutdown
        await send({"type": "lifespan.shutdown.complete"})

    async def _start(self) -> None:
        self._app = await load(self._model, self._max_body_mb, smoke_test.REQUEST.read_bytes())
        self._ready()


async def load(model: str, max_body_mb: float, smoke_request: bytes) -> App:
    """Load a model into MLflow's scoring server, and send it the smoke request; once per process.

    Args:
        model: Its folder.
        max_body_mb: Larger bodies, in MiB, get a 413.
        smoke_request: The JSON body of the smoke test's request.

    Returns:
        An ASGI application that may take requests.

    Raises:
        SmokeTestFailed: The model responded with something no user should get.
    """
    app = limit_body(internals.scoring_app(model), max_body_mb)
    smoke_test.check(*await _post(app, "/invocations", smoke_request))
    return app


def limit_body(app: App, max_body_mb: float) -> App:
    """Wrap an ASGI application: larger bodies, in MiB, get a 413, before anything is read if their length is declared."""
    limit = int(max_body_mb * _MIB)
    refusal = {"error_code": "BAD_REQUEST", "message": f"the request body is larger than {max_body_mb:g} MiB"}

    async def limited(scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # Ray Serve sends it the lifespan
            await app(scope, receive, send)
            return
        size = next((int(value) for name, value in scope["headers"] if name == b"content-length"), 0)
        if size > limit:
            await _respond(send, 413, refusal)
            return
        size = 0

        async def counting_receive() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            return message if size <= limit else {"type": "http.disconnect"}

        async def unless_refused(message: Message) -> None:
            if size <= limit:
                await send(message)

        try:
            await app(scope, counting_receive, unless_refused)
        except Exception:
            if size <= limit:
                raise
        if size > limit:
            await _respond(send, 413, refusal)

    return limited


async def _respond(send: Send, status: int, content: object) -> None:
    body = json.dumps(content).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _post(app: App, path: str, body: bytes) -> tuple[int, bytes]:
    """Send a JSON request to an application without a network; status and body of the response."""
    sent: list[Message] = []
    bodies = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def receive() -> Message:
        return next(bodies, {"type": "http.disconnect"})

    async def send(message: Message) -> None:
        sent.append(message)

    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    scope = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http"}
    scope |= {"path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "", "headers": headers}  # type: ignore[dict-item]
    await app(scope, receive, send)
    response = b"".join(message.get("body", b"") for message in sent)
    return next(message["status"] for message in sent if message["type"] == "http.response.start"), response
