"""Holds a deployment's port, and hands the listening socket to each model container that connects.

A published port belongs to one container: replacing that container would refuse requests for seconds. So the port belongs to
the listener, which no update touches. The old and the new model container accept connections from the same kernel queue: no
request is lost between them, and there is no proxy hop. A model container needs no network of its own either.

Run as `python -c <this file> PORT SOCKET`: standard library only.
"""

from __future__ import annotations

import contextlib
import selectors
import signal
import socket
import sys
from pathlib import Path

_BACKLOG = 1024  # connections that wait while no model container runs


def main(port: int, path: Path) -> None:
    """Listen until SIGTERM.

    Args:
        port: TCP port of the deployment.
        path: Unix socket that model containers connect to.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # process 1 of a container has no default handler
    listening = socket.create_server(("0.0.0.0", port), backlog=_BACKLOG)  # noqa: S104  # the container's own network
    path.unlink(missing_ok=True)
    control = socket.socket(socket.AF_UNIX)
    control.bind(str(path))
    control.listen()
    hand_over(listening, control)


def hand_over(listening: socket.socket, control: socket.socket) -> None:
    """Send `listening` to every client of `control`. Each connection stays open: its end tells the client we are gone."""
    with selectors.DefaultSelector() as selector:
        selector.register(control, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is control:
                    client, _ = control.accept()
                    selector.register(client, selectors.EVENT_READ)
                    with contextlib.suppress(OSError):  # the client is gone already
                        socket.send_fds(client, [b"x"], [listening.fileno()])
                else:  # clients send nothing: this one disconnected
                    selector.unregister(key.fileobj)
                    key.fileobj.close()  # type: ignore[union-attr]


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
