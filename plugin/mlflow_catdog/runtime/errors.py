"""The one way to answer a request with anything but a prediction."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from typing import Any


class Refused(Exception):
    """A request that gets no prediction.

    Attributes:
        status: HTTP status.
        headers: Of the response, besides its type and length.
    """

    def __init__(self, status: int, reason: str, headers: Mapping[str, str] | None = None) -> None:
        """Refuse.

        Args:
            status: HTTP status.
            reason: What was wrong, and what to do instead; the client reads it under `error`.
            headers: Of the response.
        """
        super().__init__(reason)
        self.status, self.headers = status, dict(headers or {})


def too_busy(reason: str) -> Refused:
    """A 429 that asks the client to come back."""
    return Refused(429, f"{reason}: try again later", {"Retry-After": "1"})


def brief(value: Any) -> str:
    """A client's value for a message, shortened: whole, it may be as large as the request, or too deeply nested to print."""
    return reprlib.repr(value)
