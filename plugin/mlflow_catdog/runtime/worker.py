"""One worker: a process with a model of its own, which takes requests from sockets that it was given."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import time

import uvicorn

from .app import ScoringApp

_LAST_REQUESTS_S = 2.0  # for clients that hold a connection and are about to send their next request
_MIB = 1024**2


class Server(uvicorn.Server):
    """uvicorn's server, which takes leave of its clients before it closes their connections."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no new connections, end the others after their next answer, close what is left."""
        for server in self.servers:
            server.close()
        for listener in sockets or ():
            listener.close()
        application = self.config.app
        assert isinstance(application, ScoringApp)
        application.leaving = True
        deadline = time.monotonic() + _LAST_REQUESTS_S
        while self.server_state.connections and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        await super().shutdown(sockets)


def main(listeners: list[int], ready: int, opened: int) -> None:
    """Load the model, report, and answer requests once all workers have reported.

    Args:
        listeners: File descriptors of listening sockets.
        ready: Of a pipe: a byte goes in when the model has answered a picture.
        opened: Of a pipe: it ends when requests may be taken.
    """

    def report() -> None:
        os.write(ready, b".")
        os.read(opened, 1)

    limit = int(float(os.environ.get("CATDOG_MAX_BODY_MB", "100")) * _MIB)
    config = uvicorn.Config(ScoringApp(limit, report), lifespan="on", access_log=False)
    Server(config).run([socket.socket(fileno=listener) for listener in listeners])


if __name__ == "__main__":
    *given, last, wait = map(int, sys.argv[1:])
    main(given, last, wait)
