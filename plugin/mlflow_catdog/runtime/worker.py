"""One worker: a process with one copy of the model, which takes requests from sockets that the supervisor opened."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import time

import uvicorn

from . import MODEL, STARTUP_FAILED, internals
from .app import ServingApp
from .protocol import BoundedProtocol
from .settings import available_cores, read_variable

_DRAIN_S = 2.0  # for clients that keep a connection open and are about to send their next request


class DrainingServer(uvicorn.Server):
    """uvicorn's server, which tells its clients to leave before it closes their connections."""

    def __init__(self, config: uvicorn.Config, drain_delay_s: float) -> None:
        """Start nothing yet.

        Args:
            config: Its application is a `ServingApp`.
            drain_delay_s: How long to go on accepting connections once it drains.
        """
        super().__init__(config)
        self._drain_delay_s = drain_delay_s

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drain: a load balancer notices first; then accept no new connections, end the others after their next response."""
        assert isinstance(self.config.app, ServingApp)
        self.config.app.drain()
        await asyncio.sleep(self._drain_delay_s)
        internals.stop_accepting(self, sockets or [])
        deadline = time.monotonic() + _DRAIN_S
        while internals.open_connections(self) and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        await super().shutdown(sockets)


def main(listeners: list[int], ready: int, go: int) -> int:
    """Load the model, report, and take requests once all workers have reported.

    Args:
        listeners: File descriptors of listening sockets.
        ready: Pipe that gets one byte when the model has passed its smoke test.
        go: Pipe that ends when requests may be taken.

    Returns:
        Exit code: 0 after serving, `STARTUP_FAILED` if the model failed to load or failed its smoke test.
    """

    def report() -> None:
        os.write(ready, b".")
        os.read(go, 1)

    app = ServingApp(MODEL, available_cores(), report)
    drain_delay_s = read_variable(os.environ, "CATDOG_DRAIN_DELAY_S", float, 0.0)
    config = uvicorn.Config(app, http=BoundedProtocol, ws="none", lifespan="on", access_log=False, server_header=False)
    server = DrainingServer(config, drain_delay_s)
    server.run([socket.socket(fileno=listener) for listener in listeners])
    return 0 if server.started else STARTUP_FAILED


if __name__ == "__main__":
    *sockets, ready_pipe, go_pipe = map(int, sys.argv[1:])
    sys.exit(main(sockets, ready_pipe, go_pipe))
