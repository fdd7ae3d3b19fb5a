"""Starts a model container's workers and keeps them running; none takes a request before all have answered a picture."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from . import PORT

STARTUP_FAILURE = 3  # uvicorn's exit code of a worker that can't start
_DOOR_TIMEOUT_S = 60.0  # the engine starts both in any order


class Workers:
    """The processes that answer, each with a model of its own."""

    def __init__(self, number: int, listeners: list[socket.socket]) -> None:
        """Start them."""
        self._listeners = listeners
        self._ready, self._report = os.pipe()
        self._wait, opening = os.pipe()
        self._opening: int | None = opening
        os.set_blocking(self._ready, False)
        self._number, self._reports = number, 0
        self._processes = [self._start() for _ in range(number)]

    def look_after(self) -> bool:
        """Open when all are ready, replace one that died; False if one can't start."""
        with contextlib.suppress(BlockingIOError):
            self._reports += len(os.read(self._ready, 64))
        opened = self._reports >= self._number
        if opened and self._opening is not None:
            os.close(self._opening)  # the workers see the pipe's end
            self._opening = None
            print(f"ready: {self._number} workers have answered a picture each", flush=True)
        for place, process in enumerate(self._processes):
            code = process.poll()
            if code is None:
                continue
            if code == STARTUP_FAILURE or not opened:
                print(f"worker {process.pid} ended with {code} before it could answer", flush=True)
                return False
            print(f"worker {process.pid} ended with {code}: another takes its place", flush=True)
            self._processes[place] = self._start()
        return True

    def stop(self) -> None:
        """Take no new requests, finish those that are there, and wait for it."""
        for listener in self._listeners:
            listener.close()
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.wait()

    def _start(self) -> subprocess.Popen[bytes]:
        given = (*(listener.fileno() for listener in self._listeners), self._report, self._wait)
        return subprocess.Popen([sys.executable, "-m", f"{__package__}.worker", *map(str, given)], pass_fds=given)


def main() -> int:
    """Serve until SIGTERM (exit code 0), until a worker can't start, or until the door has gone (1)."""
    stopping: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda got, _: stopping.append(got))
    door, listeners = _listen(os.environ.get("CATDOG_DOOR"))
    cores = len(os.sched_getaffinity(0))
    workers = Workers(int(os.environ.get("CATDOG_WORKERS", "0")) or cores, listeners)
    try:
        while not stopping:
            if not workers.look_after():
                return 1
            if door and _has_gone(door):
                print("the door has gone: stopping, to be started again beside the next one", flush=True)
                return 1
            time.sleep(0.1)
        return 0
    finally:
        workers.stop()


def _listen(door: str | None) -> tuple[socket.socket | None, list[socket.socket]]:
    """Sockets to take requests from: the door's and one inside for the HEALTHCHECK; without a door, one for all."""
    if not door:
        return None, [socket.create_server(("0.0.0.0", PORT), backlog=1024)]  # noqa: S104  # in the container's own network
    connection = _knock(Path(door))
    _, descriptors, _, _ = socket.recv_fds(connection, 1, 1)
    connection.setblocking(False)
    return connection, [socket.socket(fileno=descriptors[0]), socket.create_server(("127.0.0.1", PORT))]


def _knock(path: Path) -> socket.socket:
    deadline = time.monotonic() + _DOOR_TIMEOUT_S
    while True:
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(str(path))
        except OSError as wrong:
            connection.close()
            if time.monotonic() > deadline:
                raise SystemExit(f"the door {path} didn't open within {_DOOR_TIMEOUT_S:.0f} s: {wrong}") from None
            time.sleep(0.2)
        else:
            return connection


def _has_gone(door: socket.socket) -> bool:
    try:
        return door.recv(1) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


if __name__ == "__main__":
    sys.exit(main())
