"""Requests to a model over REST: `/invocations` of MLflow's scoring server."""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Mapping
from typing import Any

import pandas as pd
import requests

from catdog_pyfunc.images import IMAGE_COLUMN
from mlflow_catdog.deployments.errors import DeploymentError, InvalidOption

_CONNECT_TIMEOUT_S = 5.0
_REASON_LIMIT = 500  # characters; MLflow echoes the whole input when it refuses it


def predict(
    address: str, inputs: Any, *, timeout_s: float, api_key: str = "", params: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Get predictions.

    Args:
        address: Such as http://127.0.0.1:5001.
        inputs: A DataFrame, or anything pandas makes one from; cells of bytes are sent as base64.
        timeout_s: For the response.
        api_key: If the deployment asks for one.
        params: Parameters of the model.

    Returns:
        The response's JSON; it has `predictions`.

    Raises:
        InvalidOption: `inputs` does not make a table.
        DeploymentError: The address cannot be reached, or refuses.
    """
    body = {"dataframe_split": _split(inputs), **({"params": params} if params else {})}
    try:
        response = post(address, body, timeout_s, api_key)
    except requests.RequestException as failure:
        raise DeploymentError(f"no response from {address}: {failure}; `mlflow deployments get` shows its status") from None
    if not response.ok:
        raise DeploymentError(f"{address} responded with HTTP {response.status_code}: {_reason(response)[:_REASON_LIMIT]}")
    return dict(response.json())


def explain(address: str, inputs: Any, *, timeout_s: float, api_key: str = "") -> pd.DataFrame:
    """Get predictions with heatmaps.

    Args:
        address: As for `predict`.
        inputs: As for `predict`.
        timeout_s: As for `predict`.
        api_key: As for `predict`.

    Returns:
        One row per image, with a column `heatmap`.

    Raises:
        DeploymentError: As for `predict`; also if the model makes no heatmaps.
    """
    rows = pd.DataFrame(
        predict(address, inputs, timeout_s=timeout_s, api_key=api_key, params={"explain": True})["predictions"]
    )
    if "heatmap" not in rows:
        raise DeploymentError("this model makes no heatmaps: it has no parameter `explain` that adds a column `heatmap`")
    return rows


def post(address: str, body: Mapping[str, Any], timeout_s: float, api_key: str = "") -> requests.Response:
    """Send a JSON body to `/invocations`, without any proxy of the environment."""
    headers = {"X-API-Key": api_key} if api_key else {}
    timeouts = (min(_CONNECT_TIMEOUT_S, timeout_s), timeout_s)
    with requests.Session() as session:
        session.trust_env = False
        return session.post(f"{address}/invocations", json=body, headers=headers, timeout=timeouts)


def _split(inputs: Any) -> dict[str, Any]:
    if isinstance(inputs, pd.Series):
        inputs = inputs.to_frame(inputs.name or IMAGE_COLUMN)
    try:
        table = inputs if isinstance(inputs, pd.DataFrame) else pd.DataFrame(inputs)
    except (TypeError, ValueError) as failure:
        raise InvalidOption(
            f"inputs of type {type(inputs).__name__} do not make a table ({failure}): pass a DataFrame"
        ) from None
    cells = [[_encoded(cell) for cell in row] for row in table.itertuples(index=False, name=None)]
    return {"columns": [str(column) for column in table.columns], "data": cells}


def _encoded(cell: Any) -> Any:
    return base64.b64encode(cell).decode() if isinstance(cell, (bytes, bytearray)) else cell


def _reason(response: requests.Response) -> str:
    with contextlib.suppress(ValueError, AttributeError):
        content = response.json()
        return str(content.get("error") or content.get("message") or response.text)
    return response.text
