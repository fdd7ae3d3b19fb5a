"""Ports, signals and ranks of this project's processes."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Iterator
from types import FrameType


def free_port() -> int:
    """Find a TCP port of 127.0.0.1 that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """Raise `KeyboardInterrupt` on SIGTERM as on Ctrl-C, within the block and in the main thread only.

    Every signal raises, so that a second one ends a clean-up that hangs. One exception: a single SIGTERM after a Ctrl-C is
    ignored, because `mlflow run` sends it to an entry point that has had the Ctrl-C from the terminal.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if received != [signal.SIGINT, signal.SIGTERM]:
            raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def rank_and_size() -> tuple[int, int]:
    """The number of this process among those that `torchrun` has started, from 0, and how many there are; else (0, 1)."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:  # set by torchrun only; schedulers set the others, too
        return 0, 1
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
