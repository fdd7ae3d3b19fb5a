"""Asking a model over REST: `/invocations` of MLflow's scoring server."""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Mapping
from typing import Any

import pandas as pd
import requests

from mlflow_catdog.deployments.errors import DeploymentError, InvalidOption

_CONNECT_TIMEOUT_S = 5.0
_REFUSAL_LENGTH = 500  # MLflow echoes the input when it refuses


def predict(address: str, inputs: Any, *, timeout_s: float, params: dict[str, Any] | None = None) -> dict[str, Any]:
    """Ask a model.

    Args:
        address: As http://127.0.0.1:5001.
        inputs: A DataFrame, or what makes one; cells of bytes are sent as base64.
        timeout_s: For the answer.
        params: Of the model.

    Returns:
        What it answered; has `predictions`.

    Raises:
        InvalidOption: `inputs` can't be made into a table.
        DeploymentError: It can't be reached, or refuses.
    """
    body = {"dataframe_split": _split(inputs), **({"params": params} if params else {})}
    try:
        answer = post(address, body, timeout_s)
    except requests.RequestException as wrong:
        raise DeploymentError(f"{address} doesn't answer: {wrong}; `mlflow deployments get` tells how it is") from None
    if not answer.ok:
        raise DeploymentError(f"{address} answered HTTP {answer.status_code}: {_reason(answer)[:_REFUSAL_LENGTH]}")
    return dict(answer.json())


def post(address: str, body: Mapping[str, Any], timeout_s: float) -> requests.Response:
    """Send a body as it is, and hand back the answer as it is."""
    with requests.Session() as session:
        session.trust_env = False  # no proxy stands before an engine's ports
        return session.post(f"{address}/invocations", json=body, timeout=(_CONNECT_TIMEOUT_S, timeout_s))


def explain(address: str, inputs: Any, *, timeout_s: float) -> pd.DataFrame:
    """Ask a model for answers with heat maps.

    Args:
        address: As for `ask`.
        inputs: Likewise.
        timeout_s: Likewise.

    Returns:
        A row a picture, with `heatmap`.

    Raises:
        DeploymentError: As `ask`; or the model makes no heat maps.
    """
    rows = pd.DataFrame(predict(address, inputs, timeout_s=timeout_s, params={"explain": True})["predictions"])
    if "heatmap" not in rows:
        raise DeploymentError("this model makes no heat maps: it has no parameter `explain` that adds a column `heatmap`")
    return rows


def _split(inputs: Any) -> dict[str, Any]:
    if isinstance(inputs, pd.Series):
        inputs = inputs.to_frame(inputs.name or "image")
    try:
        table = inputs if isinstance(inputs, pd.DataFrame) else pd.DataFrame(inputs)
    except (TypeError, ValueError) as wrong:
        raise InvalidOption(f"inputs of type {type(inputs).__name__} make no table ({wrong}): give a DataFrame") from None
    cells = [[_text(cell) for cell in row] for row in table.itertuples(index=False, name=None)]
    return {"columns": [str(column) for column in table.columns], "data": cells}


def _text(cell: Any) -> Any:
    return base64.b64encode(cell).decode() if isinstance(cell, (bytes, bytearray)) else cell


def _reason(answer: requests.Response) -> str:
    with contextlib.suppress(ValueError, AttributeError):
        return str(answer.json().get("message") or answer.text)
    return answer.text
