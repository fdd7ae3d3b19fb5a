"""Starts a model container's workers and keeps them running; none takes a request before all have passed the smoke test."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from . import PORT, STARTUP_FAILED, metrics
from .settings import available_cores, listen_address, read_variable

_LISTENER_TIMEOUT_S = 60.0  # Docker starts both containers in any order
# glibc gives memory of large bodies back when they are done with; without, a worker keeps what it once took.
_MALLOC = {"MALLOC_ARENA_MAX": "2", "MALLOC_MMAP_THRESHOLD_": "1048576", "MALLOC_TRIM_THRESHOLD_": "1048576"}


class Workers:
    """The processes that serve, each with its own copy of the model."""

    def __init__(self, number: int, listeners: list[socket.socket]) -> None:
        """Start them."""
        self._listeners = listeners
        self._ready, self._report = os.pipe()
        self._wait, go = os.pipe()
        self._go: int | None = go
        os.set_blocking(self._ready, False)
        self._number, self._reports = number, 0
        self._processes = [self._start() for _ in range(number)]

    def supervise(self) -> bool:
        """Let the workers take requests once all are ready, and replace one that died; False if one cannot start."""
        with contextlib.suppress(BlockingIOError):
            self._reports += len(os.read(self._ready, 64))
        serving = self._reports >= self._number
        if serving and self._go is not None:
            os.close(self._go)  # the workers see the pipe's end
            self._go = None
            print(f"ready: {self._number} workers passed the smoke test", flush=True)
        for index, process in enumerate(self._processes):
            code = process.poll()
            if code is None:
                continue
            if code == STARTUP_FAILED or not serving:
                print(f"worker {process.pid} exited with code {code} before it was ready", flush=True)
                return False
            print(f"worker {process.pid} exited with code {code}: replacing it", flush=True)
            metrics.forget_worker(process.pid)
            self._processes[index] = self._start()
        return True

    def stop(self) -> None:
        """Take no new requests, finish those in flight, and wait for that."""
        for listener in self._listeners:
            listener.close()
        for process in self._processes:
            if self._go is None:
                process.terminate()
            else:  # it has taken no request yet, and may be waiting for the others
                process.kill()
        for process in self._processes:
            process.wait()

    def _start(self) -> subprocess.Popen[bytes]:
        inherited = (*(listener.fileno() for listener in self._listeners), self._report, self._wait)
        words = [sys.executable, "-m", f"{__package__}.worker", *map(str, inherited)]
        return subprocess.Popen(words, pass_fds=inherited, env={**_MALLOC, **os.environ})


def main() -> int:
    """Serve until SIGTERM (exit code 0), until a worker cannot start, or until the listener is gone (1)."""
    signals: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, _: signals.append(received))
    listener, sockets = _open_sockets(os.environ.get("CATDOG_LISTENER"))
    with metrics.shared_between_workers():
        workers = Workers(read_variable(os.environ, "CATDOG_WORKERS", int, 0) or available_cores(), sockets)
        try:
            while not signals:
                if not workers.supervise():
                    return 1
                if listener and _has_disconnected(listener):
                    print("the listener is gone: exiting, to be restarted and connect to its successor", flush=True)
                    return 1
                time.sleep(0.1)
            return 0
        finally:
            workers.stop()


def _open_sockets(listener: str | None) -> tuple[socket.socket | None, list[socket.socket]]:
    """The listener's socket and a local one for the HEALTHCHECK; without a listener, one socket for everything."""
    if not listener:
        return None, [_bound_socket(*listen_address(os.environ))]
    connection = _connect(Path(listener))
    _, descriptors, _, _ = socket.recv_fds(connection, 1, 1)
    connection.setblocking(False)
    return connection, [socket.socket(fileno=descriptors[0]), _bound_socket("127.0.0.1", PORT)]


def _bound_socket(host: str, port: int) -> socket.socket:
    """A socket on which the workers listen once they are ready; until then connections are refused, not kept waiting."""
    bound = socket.socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind((host, port))
    return bound


def _connect(path: Path) -> socket.socket:
    deadline = time.monotonic() + _LISTENER_TIMEOUT_S
    while True:
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(str(path))
        except OSError as failure:
            connection.close()
            if time.monotonic() > deadline:
                raise SystemExit(f"no listener at {path} within {_LISTENER_TIMEOUT_S:.0f} s: {failure}") from None
            time.sleep(0.2)
        else:
            return connection


def _has_disconnected(listener: socket.socket) -> bool:
    try:
        return listener.recv(1) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


if __name__ == "__main__":
    sys.exit(main())
