"""The follower's port: MLflow's webhook, which means "look now", and metrics."""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import hmac
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.registry import Collector

_MAX_AGE_S = 300.0
_MAX_BODY = 64 * 1024  # bytes; MLflow sends a few hundred
_TIMEOUT_S = 10.0


def is_authentic(headers: Mapping[str, str], body: bytes, secret: bytes, now: float) -> bool:
    """Whether MLflow sent a webhook, and did so less than five minutes ago.

    Args:
        headers: Of the request, by names in lower case.
        body: Of the request.
        secret: The webhook's.
        now: Seconds since 1970.
    """
    delivery, timestamp, signature = (
        headers.get(f"x-mlflow-{name}", "") for name in ("delivery-id", "timestamp", "signature")
    )
    if not (timestamp.isascii() and timestamp.isdecimal()) or abs(now - int(timestamp)) > _MAX_AGE_S:
        return False
    content = f"{delivery}.{timestamp}.".encode() + body
    try:
        given = base64.b64decode(signature.removeprefix("v1,"), validate=True)
    except (binascii.Error, ValueError):
        return False
    return hmac.compare_digest(given, hmac.digest(secret, content, hashlib.sha256))


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], metrics: CollectorRegistry, look_now: Callable[[], None], secret: bytes):
        self.metrics, self.look_now, self.secret = metrics, look_now, secret
        super().__init__(address, _Handler)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = _TIMEOUT_S

    def do_GET(self) -> None:
        if self.path == "/metrics":
            self._respond(HTTPStatus.OK, generate_latest(self.server.metrics), CONTENT_TYPE_PLAIN_0_0_4)
        else:
            self._respond(HTTPStatus.OK if self.path == "/health" else HTTPStatus.NOT_FOUND)

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if self.path != "/webhook":
            self._respond(HTTPStatus.NOT_FOUND)
        elif not (length.isascii() and length.isdecimal() and int(length) <= _MAX_BODY):
            self._respond(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        elif self._is_authentic(self.rfile.read(int(length))):
            self.server.look_now()
            self._respond(HTTPStatus.NO_CONTENT)
        else:
            self._respond(HTTPStatus.UNAUTHORIZED)

    def _is_authentic(self, body: bytes) -> bool:
        headers = {name.lower(): value for name, value in self.headers.items()}
        return bool(self.server.secret) and is_authentic(headers, body, self.server.secret, time.time())

    def _respond(self, status: HTTPStatus, body: bytes = b"", content_type: str = "text/plain") -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing: the follower logs what a look finds."""


@contextlib.contextmanager
def listening(host: str, port: int, statuses: Collector, look_now: Callable[[], None], secret: bytes) -> Iterator[None]:
    """Respond to `POST /webhook`, `GET /metrics` and `GET /health` while the block runs.

    Args:
        host: Address to listen on.
        port: Port.
        statuses: Of the deployments.
        look_now: Called for each authentic webhook.
        secret: The webhook's; empty: all webhooks are refused.

    Raises:
        OSError: The port is taken.
    """
    metrics = CollectorRegistry()
    metrics.register(statuses)
    with _Server((host, port), metrics, look_now, secret) as server:
        threading.Thread(target=server.serve_forever, name="endpoint", daemon=True).start()
        try:
            yield
        finally:
            server.shutdown()
