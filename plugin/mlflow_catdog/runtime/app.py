"""MLflow's scoring server as a worker runs it: it answers a picture before it takes requests, and bodies have a limit."""

from __future__ import annotations

import traceback
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from . import smoke_test

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]


class ScoringApp:
    """An ASGI application that loads the model when it starts, and tells clients to go when it is `leaving`.

    Attributes:
        leaving: Each answer closes its connection, so that no client sends a request into one that is about to end.
    """

    def __init__(self, max_body_bytes: int, ready: Callable[[], None]) -> None:
        """Nothing is loaded yet.

        Args:
            max_body_bytes: Larger bodies are answered with 413.
            ready: Called once the model has answered a picture; requests are taken when it returns.
        """
        self.leaving = False
        self._max_body_bytes, self._ready = max_body_bytes, ready
        self._app: App

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        else:
            await self._app(scope, receive, self._last(send) if self.leaving else send)

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()  # lifespan.startup
        try:
            await self._start()
        except BaseException as failure:
            if not isinstance(failure, smoke_test.WrongAnswer):
                traceback.print_exc()
            await send({"type": "lifespan.startup.failed", "message": f"{type(failure).__name__}: {failure}"})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()  # lifespan.shutdown
        await send({"type": "lifespan.shutdown.complete"})

    async def _start(self) -> None:
        from mlflow.pyfunc.scoring_server.app import app  # this loads the model
        from starlette.middleware.body_limit import RequestBodyLimitMiddleware

        self._app = RequestBodyLimitMiddleware(app, self._max_body_bytes)
        smoke_test.check(*await _post(self._app, "/invocations", smoke_test.REQUEST.read_bytes()))
        self._ready()

    def _last(self, send: Send) -> Send:
        async def closing(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), (b"connection", b"close")]
            await send(message)

        return closing


async def _post(app: App, path: str, body: bytes) -> tuple[int, bytes]:
    """A JSON request, put to an application without a network: status and body of the answer."""
    told: list[Message] = []
    bodies = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def receive() -> Message:
        return next(bodies, {"type": "http.disconnect"})

    async def send(message: Message) -> None:
        told.append(message)

    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    scope = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http"}
    scope |= {"path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "", "headers": headers}  # type: ignore[dict-item]
    await app(scope, receive, send)
    answer = b"".join(message.get("body", b"") for message in told)
    return next(message["status"] for message in told if message["type"] == "http.response.start"), answer
