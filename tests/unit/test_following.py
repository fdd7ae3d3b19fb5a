"""What `catdog-follow` believes of a webhook, what it takes from the audit log, and what it tells Prometheus."""

from __future__ import annotations

import base64
import hashlib
import hmac
import time
from collections.abc import Iterator

import pytest
import requests
from mlflow.entities.webhook import WebhookAction, WebhookEntity, WebhookEvent
from mlflow.webhooks.delivery import _generate_hmac_signature
from mlflow_catdog.following.endpoint import is_authentic, listening
from mlflow_catdog.following.outcomes import Followed
from mlflow_catdog.following.status import Statuses

from catdog_pyfunc.pipeline.processes import free_port
from catdog_pyfunc.pipeline.registry.audit_log import DEPLOYED, FOUND, NOT_DEPLOYED, PROMOTED, Entry
from catdog_pyfunc.pipeline.registry.descriptions import audit_table
from catdog_pyfunc.pipeline.registry.state import replay

SECRET, BODY = "of the webhook", b'{"entity": "model_version_alias"}'
LIVE = Followed("live", "model", "production")


def signed(secret: str = SECRET, body: bytes = BODY, at: float | None = None) -> dict[str, str]:
    """The headers that MLflow sends."""
    timestamp = str(int(time.time() if at is None else at))
    signature = _generate_hmac_signature(secret, "id-1", timestamp, body.decode())
    return {"x-mlflow-delivery-id": "id-1", "x-mlflow-timestamp": timestamp, "x-mlflow-signature": signature}


def believed(headers: dict[str, str], body: bytes = BODY) -> bool:
    return is_authentic(headers, body, SECRET.encode(), time.time())


def test_what_mlflow_signed_is_believed():
    assert believed(signed())
    assert believed(signed(at=time.time() - 290))


@pytest.mark.parametrize(
    "headers",
    [
        {"x-mlflow-delivery-id": "id-2"},
        {"x-mlflow-timestamp": "soon"},
        {"x-mlflow-timestamp": "²"},
        {"x-mlflow-signature": ""},
        {"x-mlflow-signature": "v1,"},
        {"x-mlflow-signature": "v1,é"},
        {"x-mlflow-signature": "v1,not base64!"},
    ],
)
def test_a_changed_header_is_not_believed(headers: dict[str, str]):
    assert not believed({**signed(), **headers})


def test_another_secret_an_old_webhook_and_one_of_the_future_are_not_believed():
    assert not believed({})
    assert not believed({**signed(), "x-mlflow-timestamp": str(int(time.time()) + 30)})
    assert not believed(signed(secret="another secret"))
    assert not believed(signed(at=time.time() - 310))
    assert not believed(signed(at=time.time() + 310))


def test_a_changed_body_is_not_believed():
    assert not believed(signed(), BODY + b" ")


def test_the_events_have_the_names_that_the_documentation_gives():
    for action in (WebhookAction.CREATED, WebhookAction.DELETED):
        assert str(WebhookEvent(WebhookEntity.MODEL_VERSION_ALIAS, action)) == f"model_version_alias.{action.value}"


class Endpoint:
    """An endpoint with one deployment that is behind, and how often it was told to look."""

    def __init__(self, secret: bytes) -> None:
        self.looks, self.address = 0, f"http://127.0.0.1:{free_port()}"
        self.statuses = Statuses()
        self.statuses.only({"live"})
        self.statuses.looked("live", behind=True)
        self.context = listening("127.0.0.1", int(self.address.rsplit(":", 1)[1]), self.statuses, self._look, secret)

    def _look(self) -> None:
        self.looks += 1

    def post(self, headers: dict[str, str], body: bytes = BODY, path: str = "/webhook") -> int:
        return requests.post(self.address + path, body, headers=headers, timeout=5).status_code


@pytest.fixture(params=[SECRET.encode()])
def endpoint(request: pytest.FixtureRequest) -> Iterator[Endpoint]:
    endpoint = Endpoint(request.param)
    with endpoint.context:
        yield endpoint


def test_an_authentic_webhook_makes_it_look(endpoint: Endpoint):
    assert (endpoint.post(signed()), endpoint.looks) == (204, 1)
    assert (endpoint.post({}), endpoint.looks) == (401, 1)
    assert (endpoint.post(signed(), path="/"), endpoint.looks) == (404, 1)
    assert (endpoint.post(signed(), body=b" " * 70_000), endpoint.looks) == (413, 1)


@pytest.mark.parametrize("endpoint", [b""], indirect=True)
def test_without_a_secret_no_webhook_is_believed(endpoint: Endpoint):
    unkeyed = base64.b64encode(hmac.digest(b"", b"id-1.%d." % time.time() + BODY, hashlib.sha256)).decode()
    assert endpoint.post({**signed(), "x-mlflow-signature": f"v1,{unkeyed}"}) == 401
    assert endpoint.looks == 0


def test_metrics_tell_which_deployment_is_behind_and_forget_those_that_are_gone(endpoint: Endpoint):
    text = requests.get(f"{endpoint.address}/metrics", timeout=5).text
    assert 'catdog_follow_behind{deployment="live"} 1.0' in text
    assert 'catdog_follow_last_look_timestamp_seconds{deployment="live"}' in text
    endpoint.statuses.only(set())
    assert "live" not in requests.get(f"{endpoint.address}/metrics", timeout=5).text
    assert requests.get(f"{endpoint.address}/health", timeout=5).status_code == 200


def moved(version: str, alias: str = "production") -> Entry:
    return Entry(PROMOTED, alias, version)


def failed(version: str, deployment: str = "live") -> Entry:
    return Entry(NOT_DEPLOYED, "production", version, "1", "cannot be built", deployment=deployment)


@pytest.mark.parametrize(
    ("entries", "has_failed"),
    [
        ([], False),
        ([moved("2")], False),
        ([moved("2"), failed("2")], True),
        ([moved("2"), failed("2"), moved("3", "staging")], True),
        ([moved("2"), failed("2"), failed("2", "other")], True),
        ([moved("2"), failed("2", "other")], False),
        ([moved("3"), failed("3")], False),
        ([moved("2"), failed("2"), moved("1"), moved("2")], False),  # asked for again
        ([moved("2"), failed("2"), Entry(FOUND, "production", "")], False),
    ],
)
def test_a_failed_version_is_not_tried_again_until_its_alias_moves(entries: list[Entry], has_failed: bool):
    assert LIVE.has_failed(entries, "2") is has_failed


def test_the_version_that_was_deployed_last():
    done = [Entry(DEPLOYED, "production", version, deployment="live") for version in ("1", "2")]
    assert LIVE.last_deployed([]) is None
    assert LIVE.last_deployed([*done, failed("3"), Entry(DEPLOYED, "production", "4", deployment="other")]) == "2"


def test_an_outcome_moves_no_alias():
    assert replay([moved("2"), failed("3"), Entry(DEPLOYED, "production", "4", deployment="live")]).aliases == {
        "production": "2"
    }


def test_the_history_names_the_deployment_and_why_it_has_not_changed():
    row = audit_table([failed("2")])[1]
    assert (row[2:6], row[-1]) == (["not deployed", "production", "1", "2"], "deployment live; cannot be built")
