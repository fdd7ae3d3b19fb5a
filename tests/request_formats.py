"""Every request format that the documentation names, and how to send one."""

from __future__ import annotations

import base64
import io
import json

import pandas as pd
import requests


def post(
    address: str, body: object = None, content: bytes | str | None = None, kind: str = "application/json"
) -> list[dict]:
    data = json.dumps(body) if content is None else content
    response = requests.post(f"{address}/invocations", data=data, headers={"Content-Type": kind}, timeout=60)
    assert response.status_code == 200, response.text[:500]
    assert "Traceback" not in response.text
    return list(response.json()["predictions"])


def bodies(photo: bytes) -> dict[str, object]:
    standard = base64.b64encode(photo).decode()
    cells = {
        "standard": standard,
        "url-safe": base64.urlsafe_b64encode(photo).decode(),
        "without padding": standard.rstrip("="),
        "line breaks": base64.encodebytes(photo).decode(),
        "data URI": f"data:image/jpeg;base64,{standard}",
    }
    formats: dict[str, object] = {}
    for name, cell in cells.items():
        formats[f"dataframe_split, {name}"] = {"dataframe_split": {"columns": ["image"], "data": [[cell]]}}
        formats[f"dataframe_records, {name}"] = {"dataframe_records": [{"image": cell}]}
        formats[f"inputs list, {name}"] = {"inputs": [cell]}
        formats[f"inputs dict, {name}"] = {"inputs": {"image": [cell]}}
        formats[f"inputs records, {name}"] = {"inputs": [{"image": cell}]}
        formats[f"instances, {name}"] = {"instances": [cell]}
        formats[f"instances records, {name}"] = {"instances": [{"image": cell}]}
    return formats


def csv(photo: bytes) -> str:
    return pd.DataFrame({"image": [base64.b64encode(photo).decode()]}).to_csv(index=False)


def parquet(photo: bytes) -> bytes:
    buffer = io.BytesIO()
    pd.DataFrame({"image": [photo]}).to_parquet(buffer)
    return buffer.getvalue()
