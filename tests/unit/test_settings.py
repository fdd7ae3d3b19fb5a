"""What a server is told by environment variables: read, or refused with the variable and what to write instead."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow_catdog.runtime.settings import Settings, from_environment, listen_address

SERVED = {"name": "cats", "version": "3", "image_column": "image"}
KEY = "a-key-0123456789"


def test_without_variables_the_defaults_hold():
    assert from_environment({}, 2, SERVED) == Settings(threads=2, name="cats", version="3")
    assert from_environment({"CATDOG_MAX_FILES": ""}, 2, SERVED) == Settings(threads=2, name="cats", version="3")


@pytest.mark.parametrize(
    ("variable", "text", "attribute", "value"),
    [
        ("CATDOG_MAX_BODY_MB", "0.5", "max_body", 2**19),
        ("CATDOG_MAX_FILES", "7", "max_files", 7),
        ("CATDOG_MAX_QUEUE", "7", "max_queue", 7),
        ("MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT", "1.5", "request_timeout_s", 1.5),
        ("CATDOG_CORS_ORIGINS", "https://a.x, https://b.x", "cors_origins", ("https://a.x", "https://b.x")),
        ("AIP_PREDICT_ROUTE", "/aip/predict", "predict_route", "/aip/predict"),
        ("AIP_HEALTH_ROUTE", "/aip/health", "health_route", "/aip/health"),
    ],
)
def test_a_variable_sets_what_it_names(variable: str, text: str, attribute: str, value: object):
    assert getattr(from_environment({variable: text}, 1, SERVED), attribute) == value


@pytest.mark.parametrize("variable", ["CATDOG_MAX_BODY_MB", "CATDOG_MAX_FILES", "CATDOG_MAX_QUEUE"])
@pytest.mark.parametrize("text", ["0", "-1", "many", "nan", "inf", "1,5"])
def test_a_limit_that_is_none_is_refused_by_name(variable: str, text: str):
    with pytest.raises(ValueError, match=f"^{variable}='{text}' cannot be used: ."):
        from_environment({variable: text}, 1, SERVED)


@pytest.mark.parametrize(
    ("variable", "text"), [("AIP_HTTP_PORT", "http"), ("CATDOG_LISTEN", "127.0.0.1"), ("CATDOG_LISTEN", ":x")]
)
def test_an_address_that_is_none_is_refused_by_name(variable: str, text: str):
    with pytest.raises(ValueError, match=f"^{variable}='{text}' cannot be used: ."):
        listen_address({variable: text})


@pytest.mark.parametrize("variable", ["AIP_PREDICT_ROUTE", "AIP_HEALTH_ROUTE"])
def test_a_route_that_is_no_path_is_refused_by_name(variable: str):
    with pytest.raises(ValueError, match=f"^{variable}='predict' cannot be used: expected a path that starts with /"):
        from_environment({variable: "predict"}, 1, SERVED)


def test_keys_come_from_a_file_and_are_never_shown(tmp_path: Path):
    file = tmp_path / "keys"
    file.write_text(f"# old, until May\n{KEY}\n\n  {KEY}-new \r\n")
    settings = from_environment({"CATDOG_API_KEYS_FILE": str(file)}, 1, SERVED)
    assert settings.api_keys == (KEY, f"{KEY}-new")
    assert KEY not in repr(settings)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "No such file"),
        (b"", "the file has no key: write one per line"),
        (b"# only a comment\n\n", "the file has no key: write one per line"),
        (b"a-key-012345678", "key 1 is not 16 or more ASCII characters without spaces"),
        (f"{KEY}\nhunter2".encode(), "key 2 is not 16 or more ASCII characters without spaces"),
        ("schlüssel-0123456789".encode(), "key 1 is not 16 or more ASCII characters"),
        (b"a key with spaces in it", "key 1 is not 16 or more ASCII characters without spaces"),
        (b"\xff\xfe\x00", "can't decode"),
    ],
)
def test_an_unusable_key_file_is_named_with_the_remedy_and_without_its_keys(
    content: bytes | None, reason: str, tmp_path: Path
):
    file = tmp_path / "keys"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ValueError, match=f"^CATDOG_API_KEYS_FILE='{file}' cannot be used: .*{reason}") as refused:
        from_environment({"CATDOG_API_KEYS_FILE": str(file)}, 1, SERVED)
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    ("environment", "address"),
    [
        ({}, ("0.0.0.0", 8080)),
        ({"AIP_HTTP_PORT": "7080"}, ("0.0.0.0", 7080)),
        ({"CATDOG_LISTEN": "127.0.0.1:5001"}, ("127.0.0.1", 5001)),
        ({"CATDOG_LISTEN": "127.0.0.1:5001", "AIP_HTTP_PORT": "7080"}, ("127.0.0.1", 5001)),
    ],
)
def test_the_address_is_the_containers_unless_it_is_told(environment: dict[str, str], address: tuple[str, int]):
    assert listen_address(environment) == address
