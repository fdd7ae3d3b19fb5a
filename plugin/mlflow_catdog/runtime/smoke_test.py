"""The smoke test: one real image, sent as REST would send it; a model that fails it takes no requests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

REQUEST = Path("smoke_request.json")  # in the image's working folder, written by `deployments.build`
_TEXT_LIMIT = 500  # characters of a response that a message quotes


class SmokeTestFailed(Exception):
    """The model responded, but with something no user should get; the message quotes it."""


def check(status: int, body: bytes) -> Any:
    """Check the response of `/invocations` to the smoke request.

    Args:
        status: HTTP status.
        body: Of the response.

    Returns:
        The prediction.

    Raises:
        SmokeTestFailed: Not exactly one prediction, or one that reports an error.
    """
    text = body.decode("utf-8", "replace")
    if status != 200:
        raise SmokeTestFailed(f"the model responded to an image with HTTP {status}: {_reason(text)}")
    try:
        predictions = json.loads(text)["predictions"]
    except (ValueError, TypeError, KeyError):
        raise SmokeTestFailed(f"the model responded to an image without `predictions`: {text[:_TEXT_LIMIT]}") from None
    rows = predictions if isinstance(predictions, list) else [predictions]
    if len(rows) != 1 or rows[0] is None:
        raise SmokeTestFailed(f"the model returned {len(rows)} predictions for one image: {text[:_TEXT_LIMIT]}")
    if isinstance(rows[0], dict) and rows[0].get("error"):
        raise SmokeTestFailed(f"the model cannot read a valid image: {rows[0]['error']}")
    return rows[0]


def _reason(text: str) -> str:
    """MLflow's message and the last line of its stack trace; else the start of the text."""
    try:
        failure = json.loads(text)
        return " ".join([str(failure["message"]), *failure.get("stack_trace", "").strip().splitlines()[-1:]])
    except (ValueError, TypeError, KeyError, AttributeError):
        return text[:_TEXT_LIMIT]
