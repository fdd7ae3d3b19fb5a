"""Requests to a deployment: what is sent, and what a refusal or Docker's errors become."""

from __future__ import annotations

import base64
import json
from typing import Any

import pandas as pd
import pytest
import requests
from docker.errors import APIError
from mlflow.exceptions import MlflowException
from mlflow_catdog.deployments import docker_client, rest


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Bodies that were sent; the response to each holds one prediction."""
    bodies: list[Any] = []

    def post(address: str, body: Any, timeout_s: float, api_key: str) -> requests.Response:
        bodies.append(body)
        return response(200, json.dumps({"predictions": [{"label": "cat"}]}))

    monkeypatch.setattr(rest, "post", post)
    return bodies


def response(status: int, text: str) -> requests.Response:
    made = requests.Response()
    made.status_code, made._content = status, text.encode()
    return made


@pytest.mark.parametrize(
    "inputs",
    [
        pd.DataFrame({"image": [b"\xff\xd8"]}),
        pd.Series([b"\xff\xd8"]),
        [{"image": b"\xff\xd8"}],
        {"image": [bytearray(b"\xff\xd8")]},
    ],
)
def test_whatever_makes_a_table_is_sent_as_base64(inputs: Any, sent: list[Any]):
    assert rest.predict("http://x", inputs, timeout_s=1) == {"predictions": [{"label": "cat"}]}
    cell = base64.b64encode(b"\xff\xd8").decode()
    assert sent == [{"dataframe_split": {"columns": ["image"], "data": [[cell]]}}]


def test_inputs_that_make_no_table_are_refused(sent: list[Any]):
    with pytest.raises(MlflowException, match="inputs of type object do not make a table"):
        rest.predict("http://x", object(), timeout_s=1)
    assert not sent


def test_a_model_without_heatmaps_is_named(sent: list[Any]):
    with pytest.raises(MlflowException, match="this model makes no heatmaps"):
        rest.explain("http://x", [{"image": "text"}], timeout_s=1)
    assert sent[0]["params"] == {"explain": True}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"message": "no column image"}', "no column image"),
        ('{"error": "this server wants an API key"}', "this server wants an API key"),
        ("<html>", "<html>"),
        ("x" * 600, "x" * 500),
    ],
)
def test_a_refusal_is_quoted(text: str, reason: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(rest, "post", lambda *_: response(400, text))
    with pytest.raises(MlflowException) as refusal:
        rest.predict("http://x", [{"image": "text"}], timeout_s=1)
    assert refusal.value.message == f"http://x responded with HTTP 400: {reason}"


@pytest.mark.parametrize(("api_key", "headers"), [("", {}), ("a-key-0123456789", {"X-API-Key": "a-key-0123456789"})])
def test_a_key_is_sent_to_a_deployment_that_asks_for_one(
    api_key: str, headers: dict[str, str], monkeypatch: pytest.MonkeyPatch
):
    given: list[Any] = []

    def post(session: requests.Session, address: str, **options: Any) -> requests.Response:
        given.append((address, options["headers"]))
        return response(200, '{"predictions": [{"heatmap": "cG5n"}]}')

    monkeypatch.setattr(requests.Session, "post", post)
    rest.predict("http://x", [{"image": "text"}], timeout_s=1, api_key=api_key)
    rest.explain("http://x", [{"image": "text"}], timeout_s=1, api_key=api_key)
    assert given == [("http://x/invocations", headers)] * 2


def test_an_unreachable_deployment_names_the_remedy(monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: Any) -> None:
        raise requests.ConnectionError("connection refused")

    monkeypatch.setattr(rest, "post", refuse)
    with pytest.raises(MlflowException, match="no response from http://x: connection refused; `mlflow deployments get`"):
        rest.predict("http://x", [{"image": "text"}], timeout_s=1)


@pytest.mark.parametrize(
    ("status", "reason", "message"),
    [
        (409, 'container name "/catdog-x.new" is already in use', "another command is changing this deployment"),
        (500, "Bind for 127.0.0.1:5001 failed: port is already allocated", "choose another with -C port="),
        (500, "no space left on device", "Docker refused: no space left on device"),
    ],
)
def test_dockers_errors_say_what_to_do(status: int, reason: str, message: str):
    reply = requests.Response()
    reply.status_code = status
    assert message in docker_client._translated(APIError("refused", reply, reason)).message
