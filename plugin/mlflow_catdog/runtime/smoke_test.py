"""The question that a model must answer before it takes requests: a real picture, as REST would bring it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

REQUEST = Path("/opt/catdog/probe.json")  # written when the image was built


class WrongAnswer(Exception):
    """The model answered, but with something that no user should get; the message says with what."""


def check(status: int, answer: bytes) -> Any:
    """Look at what `/invocations` said to the picture.

    Args:
        status: HTTP status.
        answer: The body.

    Returns:
        The one prediction.

    Raises:
        WrongAnswer: It isn't one prediction, or names an error.
    """
    text = answer.decode("utf-8", "replace")
    if status != 200:
        raise WrongAnswer(f"the model answered a picture with HTTP {status}: {_reason(text)}")
    try:
        predictions = json.loads(text)["predictions"]
    except (ValueError, TypeError, KeyError):
        raise WrongAnswer(f"the model answered a picture with no predictions: {text[:500]}") from None
    rows = predictions if isinstance(predictions, list) else [predictions]
    if len(rows) != 1 or rows[0] is None:
        raise WrongAnswer(f"the model answered one picture with {len(rows)} predictions: {text[:500]}")
    if isinstance(rows[0], dict) and rows[0].get("error"):
        raise WrongAnswer(f"the model can't read a good picture: {rows[0]['error']}")
    return rows[0]


def _reason(text: str) -> str:
    try:
        said = json.loads(text)
        return " ".join([str(said["message"]), *said.get("stack_trace", "").strip().splitlines()[-1:]])
    except (ValueError, TypeError, KeyError, AttributeError):
        return text[:500]
