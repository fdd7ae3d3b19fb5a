"""What a tracking server's refusals mean, told from what MLflow raises for them."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import mlflow
import pytest
import requests
from mlflow.exceptions import MlflowException, RestException

from catdog_pyfunc import access, internals
from catdog_pyfunc.errors import AccessDenied, RegistryError, TrackingError
from catdog_pyfunc.pipeline.registry import versions
from tests.unit.fake_registry import FakeRegistry

SERVER = "https://mlflow.example"
UNTRUSTED = (
    f"API request to {SERVER}/api/2.0/mlflow/users/current failed with exception HTTPSConnectionPool(host='mlflow.example', "
    "port=443): Max retries exceeded (Caused by SSLError(SSLCertVerificationError(1, 'certificate verify failed')))"
)


def called(status: int, body: str = "Permission denied") -> MlflowException:
    """As MLflow's client raises it."""
    return MlflowException(
        f"API request to endpoint /api/2.0/mlflow/registered-models/alias failed with error code {status} != 200. "
        f"Response body: '{body}'"
    )


def uploaded(status: int, host: str = "mlflow.example") -> requests.HTTPError:
    url = f"https://{host}/api/2.0/mlflow-artifacts/artifacts/1/models/m-1/artifacts/MLmodel"
    return requests.HTTPError(f"{status} Client Error: FORBIDDEN for url: {url}")


@pytest.fixture(autouse=True)
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A server to which ann is signed in."""
    access._signed_in_user.cache_clear()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", SERVER)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ann")
    monkeypatch.setattr(internals, "current_user", lambda uri, max_retries=None: "ann")
    yield
    access._signed_in_user.cache_clear()


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            called(403),
            r"'ann', who is signed in to https://mlflow.example, .* \(registered-models/alias\)",
        ),
        (uploaded(403), r"'ann', .* has no permission for this \(mlflow-artifacts\)"),
        (RestException({"error_code": "PERMISSION_DENIED", "message": "no"}), "'ann', .* has no permission for this: ask"),
        (called(401), "knows no 'ann' with this password: check MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"),
        (MlflowException(UNTRUSTED), "is not trusted here: set MLFLOW_TRACKING_SERVER_CERT_PATH"),
    ],
)
def test_a_refusal_says_who_and_what_is_missing(error: Exception, message: str):
    with pytest.raises(AccessDenied, match=message):
        access.check(error)


def test_without_a_name_the_variables_are_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("MLFLOW_TRACKING_USERNAME")
    with pytest.raises(AccessDenied, match=r"sign in to .*: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"):
        access.check(called(401))


@pytest.mark.parametrize(
    "error",
    [
        called(500, "database is gone"),
        RestException({"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no model"}),
        uploaded(401, "huggingface.example"),
        ValueError("no image"),
    ],
)
def test_any_other_error_is_left_alone(error: Exception):
    access.check(error)
    with pytest.raises(type(error)), access.explained():
        raise error


def test_a_store_on_this_machine_asks_nobody(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    access.check(called(401))
    assert access.signed_in_user() is None


def test_an_untrusted_certificate_is_not_tried_again(monkeypatch: pytest.MonkeyPatch):
    tried: list[int | None] = []

    def current_user(uri: str, max_retries: int | None = None) -> str:
        tried.append(max_retries)
        raise MlflowException(UNTRUSTED)

    monkeypatch.setattr(internals, "current_user", current_user)
    with pytest.raises(AccessDenied, match="not trusted"):
        versions.find_model("model")
    assert tried == [0]


def test_a_server_that_was_gone_for_a_moment_is_asked_again(monkeypatch: pytest.MonkeyPatch):
    def current_user(uri: str, max_retries: int | None = None) -> str:
        if max_retries == 0:
            raise MlflowException("connection refused")
        return "ann"

    monkeypatch.setattr(internals, "current_user", current_user)
    assert versions.author() == "ann"


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (called(401), AccessDenied),
        (called(403), AccessDenied),
        (MlflowException("API request failed: connection refused"), TrackingError),
        (RestException({"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no model"}), RegistryError),
    ],
)
def test_only_what_does_not_exist_is_said_not_to_exist(
    failure: Exception, expected: type[Exception], monkeypatch: pytest.MonkeyPatch
):
    def fail(*_: Any) -> None:
        raise failure

    monkeypatch.setattr(mlflow, "MlflowClient", lambda: SimpleNamespace(get_registered_model=fail, get_model_version=fail))
    for look in (lambda: versions.find_model("model"), lambda: versions.find_version("model", "1")):
        with pytest.raises(expected) as raised:
            look()
        assert type(raised.value) is expected


def test_a_reader_sees_the_audit_log_of_a_move_that_is_not_finished(monkeypatch: pytest.MonkeyPatch):
    from catdog_pyfunc.pipeline.registry.audit_log import PROMOTED, Entry, open_audit_log
    from catdog_pyfunc.pipeline.registry.reconcile import history

    registry = FakeRegistry()
    monkeypatch.setattr(mlflow, "MlflowClient", lambda: registry)
    open_audit_log("model").append(Entry(PROMOTED, "production", "1"), 0)

    def refuse(*_: Any) -> None:
        raise called(403)

    monkeypatch.setattr(registry, "set_registered_model_alias", refuse)
    assert [(entry.author, entry.version) for entry in history("model")] == [("ann", "1")]
