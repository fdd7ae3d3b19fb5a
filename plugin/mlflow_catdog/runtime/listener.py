"""The door: holds a deployment's port, and hands the listening socket to every model container that asks for it.

A published port belongs to one container and goes with it, so that replacing the container would refuse requests for
seconds. Here it belongs to the door, which no update touches: old and new container take requests from the same queue of the
kernel, none is lost in between, and nothing stands in their way. Nor does a model container need a network of its own.

Run as `python -c <this file> PORT SOCKET`: standard library only.
"""

from __future__ import annotations

import contextlib
import selectors
import signal
import socket
import sys
from pathlib import Path

_QUEUE = 1024  # requests that wait while no model container is there


def main(port: int, meeting: Path) -> None:
    """Listen, hand out, until SIGTERM.

    Args:
        port: To take requests from.
        meeting: The socket at which model containers ask for it.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # process 1 of a container has no default for it
    listener = socket.create_server(("0.0.0.0", port), backlog=_QUEUE)  # noqa: S104  # in the container's own network
    meeting.unlink(missing_ok=True)
    counter = socket.socket(socket.AF_UNIX)
    counter.bind(str(meeting))
    counter.listen()
    hand_out(listener, counter)


def hand_out(listener: socket.socket, counter: socket.socket) -> None:
    """Give `listener` to whoever connects to `counter`; a connection that ends tells the guest that the door has gone."""
    with selectors.DefaultSelector() as selector:
        selector.register(counter, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is counter:
                    guest, _ = counter.accept()
                    selector.register(guest, selectors.EVENT_READ)
                    with contextlib.suppress(OSError):  # it has gone already
                        socket.send_fds(guest, [b"x"], [listener.fileno()])
                else:  # a guest never says anything: it has gone
                    selector.unregister(key.fileobj)
                    key.fileobj.close()  # type: ignore[union-attr]


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
