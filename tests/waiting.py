"""Waiting for a condition, never longer than a deadline."""

from __future__ import annotations

import time
from collections.abc import Callable


def await_condition(condition: Callable[[], object], timeout_s: float = 60) -> None:
    """Return once `condition()` is true; fail after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{condition} was not true within {timeout_s:.0f} s"
        time.sleep(0.02)
