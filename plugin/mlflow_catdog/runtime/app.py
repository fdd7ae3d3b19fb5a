"""One worker's application: it loads the model, and the model passes a smoke test, before it takes requests."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from pathlib import Path

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from . import bodies, internals, server, settings, smoke_test
from .gateway import Gateway

SERVED = Path("served.json")  # beside the model's folder, written by `deployments.build`


class ServingApp:
    """An ASGI application that loads the model on startup."""

    def __init__(self, model: str, threads: int, ready: Callable[[], None]) -> None:
        """Load nothing yet.

        Args:
            model: Its folder.
            threads: Requests in work at once.
            ready: Called once the model has passed its smoke test; requests are taken when it returns.
        """
        self._model, self._threads, self._ready = model, threads, ready
        self._app: ASGIApp
        self._gateway: Gateway

    def drain(self) -> None:
        """Close each connection with its response, and fail health checks: load balancers go elsewhere."""
        self._gateway.draining = True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request, or the server's lifespan."""
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        else:
            await self._app(scope, receive, send)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()  # lifespan.startup
        try:
            served = settings.read_served(SERVED)
            read = settings.from_environment(os.environ, self._threads, served)
            request = smoke_test.REQUEST.read_bytes()
            self._app, self._gateway = await load(self._model, served["image_column"], read, request)
            self._ready()
        except BaseException as failure:
            if not isinstance(failure, smoke_test.SmokeTestFailed):
                traceback.print_exc()
            await send({"type": "lifespan.startup.failed", "message": f"{type(failure).__name__}: {failure}"})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()  # lifespan.shutdown
        await send({"type": "lifespan.shutdown.complete"})


async def load(model: str, image_column: str, read: settings.Settings, smoke_request: bytes) -> tuple[ASGIApp, Gateway]:
    """Load a model into a server, and send its MLflow part the smoke request; once per process.

    Args:
        model: Its folder.
        image_column: The model's column that takes images.
        read: Limits and names.
        smoke_request: The JSON body of the smoke test's request.

    Returns:
        An ASGI application that may take requests, and the gateway in it.

    Raises:
        SmokeTestFailed: The model responded with something no user should get.
    """
    loaded = internals.load_model(model)
    scoring_app = internals.scoring_app(loaded)
    smoke_test.check(*await _post(scoring_app, "/invocations", smoke_request))
    return server.build(loaded, scoring_app, image_column, read)


async def _post(app: ASGIApp, path: str, body: bytes) -> tuple[int, bytes]:
    """Send a JSON request to an application without a network; status and body of the response."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": headers,
    }
    await app(scope, bodies.replay(body), send)
    response = b"".join(message.get("body", b"") for message in sent)
    return next(message["status"] for message in sent if message["type"] == "http.response.start"), response
