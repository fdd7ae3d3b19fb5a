"""SIGTERM ends work as Ctrl-C does: what was begun is taken back."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def by_sigterm() -> Iterator[None]:
    """Within the block SIGTERM raises `KeyboardInterrupt`; only in a program's main thread, as no other gets signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
