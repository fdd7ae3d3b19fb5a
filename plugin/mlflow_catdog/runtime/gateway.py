"""What every request passes before its route: key, limits on its body, request id, metrics, one log line."""

from __future__ import annotations

import asyncio
import hmac
import json
import re
import sys
import time
import traceback
import uuid
from datetime import datetime, timezone

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from . import tracing
from .bodies import HOLD, too_large
from .errors import Refused, too_busy
from .metrics import Metrics
from .settings import Settings

# Open to GET without a key: probes, the page and what it needs. What they tell is no secret.
_OPEN = ("/", "/ping", "/health", "/v2/health/live", "/v2/health/ready", "/docs", "/openapi.json")
_PROBES = (*_OPEN[1:5], "/metrics")  # not in the log while all is well
_BODIES_HELD = 4  # times the largest body, of all requests of a worker together
_REQUEST_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)


class _Body:
    """What one request holds in memory, in bytes, and what it waits for while more of it arrives."""

    size = 0
    is_evicted = False
    arriving: asyncio.Task[object] | None = None


class Gateway:
    """An ASGI application around another one.

    Attributes:
        draining: Set it, and each response closes its connection: no client sends another request into a server that is
            about to end.
    """

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics) -> None:
        """Wrap an application; a `Refused` that it raises becomes its response."""
        self.draining = False
        self._app, self._settings, self._metrics = app, settings, metrics
        self._keys = [key.encode() for key in settings.api_keys]
        self._open = {*_OPEN, settings.health_route} - {""}
        self._tracer = tracing.tracer()
        self._bodies: set[_Body] = set()
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request; anything else, such as the server's lifespan, is passed on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.monotonic()
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        given = headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        status = 0

        async def send_marked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                added = [(b"x-request-id", request_id.encode())]
                if self.draining:
                    added.append((b"connection", b"close"))
                message["headers"] = [*message.get("headers", ()), *added]
            try:
                await send(message)
            except RuntimeError as failure:
                if "closed" not in str(failure):  # uvloop's, of a connection that the client has left
                    raise
                raise ClientDisconnect from None

        with self._metrics.active.track_inprogress(), tracing.request_span(self._tracer, scope["method"], headers) as span:
            received = await self._handle(scope, headers, receive, send_marked)
            seconds, route = time.monotonic() - started, _route(scope)
            tracing.describe(span, scope["method"], route, status)
            self._metrics.duration.labels(scope["method"], route, str(status)).observe(seconds)
        if status >= 400 or scope["path"] not in _PROBES:
            _log(scope, request_id, status, seconds, received)

    async def _handle(self, scope: Scope, headers: dict[str, str], receive: Receive, send: Send) -> int:
        """Answer, whatever happens; the number of bytes that were received."""
        received, answered, body = 0, False, _Body()
        self._bodies.add(body)
        scope[HOLD] = lambda size: self._hold(body, size)

        async def receive_within_limits() -> Message:
            nonlocal received
            message = await self._receive(body, receive)
            size = len(message.get("body", b""))
            received += size
            if received > self._settings.max_body:
                raise too_large(self._settings)
            self._hold(body, size)
            return message

        async def send_noting(message: Message) -> None:
            nonlocal answered
            answered = True
            await send(message)

        try:
            self._check(scope, headers)
            await self._app(scope, receive_within_limits, send_noting)
        except Refused as refused:
            if not answered:
                await respond(send_noting, refused)
        except (ClientDisconnect, ConnectionError):
            pass  # there is nobody to answer
        except Exception:
            traceback.print_exc()  # into the container's log, never to the client
            if not answered:
                await respond(send_noting, Refused(500, "this server failed: its log has the reason"))
        finally:
            self._held -= body.size
            self._bodies.remove(body)
        return received

    async def _receive(self, body: _Body, receive: Receive) -> Message:
        """The next message, unless the body is evicted meanwhile."""
        body.arriving = task = asyncio.current_task()
        try:
            return await receive()
        except asyncio.CancelledError:
            if not body.is_evicted:
                raise
            if task and hasattr(task, "uncancel"):  # Python 3.11: or its timeouts would take this for theirs
                task.uncancel()
            raise _no_memory() from None
        finally:
            body.arriving = None

    def _hold(self, body: _Body, size: int) -> None:
        """Count what a request holds. Too much of all requests evicts those that still arrive, the largest first.

        So a few clients that send almost all of a large body and then stall do not shut out the others.
        """
        body.size, self._held = body.size + size, self._held + size
        while self._held > _BODIES_HELD * self._settings.max_body:
            largest = max(self._bodies, key=lambda other: other.size if other.arriving else 0)
            if not largest.arriving or largest.size <= body.size:
                raise _no_memory()
            self._held -= largest.size
            largest.size, largest.is_evicted = 0, True
            largest.arriving.cancel()

    def _check(self, scope: Scope, headers: dict[str, str]) -> None:
        path = scope["path"]
        is_open = scope["method"] in ("GET", "HEAD") and (path in self._open or path.startswith("/docs/"))
        if self._keys and not is_open:
            bearer = headers.get("authorization", "")
            given = bearer[7:] if bearer[:7].lower() == "bearer " else headers.get("x-api-key", "")
            # Every key is compared, so that the time tells nothing about any of them.
            if not any([hmac.compare_digest(given.encode(), key) for key in self._keys]):  # noqa: C419
                remedy = "send a valid key as `Authorization: Bearer KEY` or `X-API-Key: KEY`"
                raise Refused(401, f"this server wants an API key: {remedy}", {"WWW-Authenticate": "Bearer"})
        if int(headers.get("content-length", 0)) > self._settings.max_body:
            raise too_large(self._settings)


def _no_memory() -> Refused:
    return too_busy("the bodies of other requests take all the memory that this server has for them")


async def respond(send: Send, refused: Refused) -> None:
    """Send a refusal as JSON; KServe's client compares the type with `application/json` exactly."""
    body = json.dumps({"error": str(refused)}).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body)), **refused.headers}
    encoded = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": refused.status, "headers": encoded})
    await send({"type": "http.response.body", "body": body})


def _route(scope: Scope) -> str:
    """The route's path with its parameters' names: paths that don't exist must not become labels."""
    return str(getattr(scope.get("route"), "path", None) or "none")


def _log(scope: Scope, request_id: str, status: int, seconds: float, received: int) -> None:
    line = {
        "time": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
        "request_id": request_id,
        "method": scope["method"],
        "path": scope["path"],  # without the query: it may hold anything
        "status": status,
        "ms": round(1000 * seconds, 1),
        "bytes": received,
    }
    sys.stdout.write(json.dumps(line) + "\n")  # in one piece: unbuffered, `print` would let another worker's line in between
    sys.stdout.flush()
