"""The `-C` options of the deployment target: read from text or values, stored on a label, refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from mlflow.deployments import get_deploy_client
from mlflow.deployments.interface import _target_help
from mlflow.exceptions import MlflowException
from mlflow_catdog.deployments.options import Options
from mlflow_catdog.runtime.settings import from_environment

from catdog_pyfunc.pipeline.processes import free_port


def test_text_and_values_mean_the_same():
    text = Options().updated({"port": "5002", "workers": "2", "cpus": "1.5", "model_config": '{"threads": 1}'}, "create")
    values = Options().updated({"port": 5002, "workers": 2, "cpus": 1.5, "model_config": {"threads": 1}}, "create")
    assert text == values
    assert (text.port, text.workers, text.cpus, json.loads(text.model_config)) == (5002, 2, 1.5, {"threads": 1})


def test_stored_options_are_read_back():
    options = Options().updated(
        {"memory": "1g", "host": "0.0.0.0", "insecure": True, "model_config": {"threads": 1}}, "create"
    )
    assert Options.from_json(options.to_json()) == (options, [])


def test_stored_options_of_another_version_are_dropped_by_name():
    stored = json.dumps({"port": 5002, "processes": 4, "memory": "plenty"})
    assert Options.from_json(stored) == (Options(port=5002), ["processes", "memory"])


@pytest.mark.parametrize(
    ("given", "verb", "message"),
    [
        ({"prot": 1}, "create", "unknown option 'prot': did you mean 'port'?"),
        ({"colour": "red"}, "create", "unknown option 'colour': choose from host, port, workers"),
        ({"port": "http"}, "create", "option port='http' cannot be used"),
        ({"port": 0}, "create", "expected an integer from 1 to 65535"),
        ({"workers": True}, "create", "option workers=True cannot be used: expected an integer from 0"),
        ({"workers": 1.5}, "create", "option workers=1.5 cannot be used"),
        ({"cpus": "nan"}, "create", "option cpus='nan' cannot be used: expected a number of at least 0"),
        ({"memory": "lots"}, "create", "option memory='lots' cannot be used: expected bytes, or a number with k, m or g"),
        ({"model_config": "[1]"}, "create", "expected a JSON object"),
        ({"model_config": "{"}, "create", "option model_config='{' cannot be used"),
        ({"max_files": 0}, "create", "option max_files=0 cannot be used: expected an integer from 1"),
        ({"insecure": "yes"}, "create", "option insecure='yes' cannot be used: expected true or false"),
        ({"port": 5002}, "update", "option 'port' is for create and run-local, not for update"),
        ({"memory": "1g"}, "run-local", "option 'memory' is for create and update, not for run-local"),
    ],
)
def test_an_unusable_option_is_named(given: dict[str, object], verb: str, message: str):
    with pytest.raises(MlflowException) as refused:
        Options().updated(given, verb)
    assert message in refused.value.message
    assert refused.value.error_code == "INVALID_PARAMETER_VALUE"


KEY = "a-key-0123456789"


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "::", "server.example"])
def test_other_machines_are_let_in_with_a_key_or_by_an_explicit_decision_only(host: str, tmp_path: Path):
    with pytest.raises(MlflowException, match=f"host {host} lets other machines connect, and no key is asked for: give -C"):
        Options().updated({"host": host}, "create")
    (tmp_path / "keys").write_text(KEY)
    assert Options().updated({"host": host, "api_keys_file": str(tmp_path / "keys")}, "create").api_key() == KEY
    assert Options().updated({"host": host, "insecure": "true"}, "run-local").api_key() == ""
    with pytest.raises(MlflowException, match="no key is asked for"):
        Options(host=host, insecure=True).updated({"insecure": "false"}, "update")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "localhost", "::1"])
def test_this_machine_needs_no_key(host: str):
    assert Options().updated({"host": host}, "create").host == host


@pytest.mark.parametrize(("content", "reason"), [(None, "No such file"), ("", "has no key"), ("short", "key 1 is not 16")])
def test_an_unusable_key_file_is_named(content: str | None, reason: str, tmp_path: Path):
    if content is not None:
        (tmp_path / "keys").write_text(content)
    with pytest.raises(MlflowException, match=f"option api_keys_file='{tmp_path / 'keys'}' cannot be used: .*{reason}"):
        Options().updated({"api_keys_file": str(tmp_path / "keys")}, "create")


def test_a_key_files_path_is_absolute_wherever_the_command_was_given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    (tmp_path / "keys").write_text(KEY)
    monkeypatch.chdir(tmp_path)
    assert Options().updated({"api_keys_file": "keys"}, "create").api_keys_file == str(tmp_path / "keys")


def test_a_lock_files_path_is_absolute_and_a_missing_one_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    (tmp_path / "catdog.lock").touch()
    monkeypatch.chdir(tmp_path)
    options = Options().updated({"lock_file": "catdog.lock"}, "create")
    assert options.lock_file == str(tmp_path / "catdog.lock")
    assert options.updated({"lock_file": ""}, "update").lock_file == ""
    (tmp_path / "catdog.lock").unlink()
    with pytest.raises(MlflowException, match=f"option lock_file='{tmp_path / 'catdog.lock'}' cannot be used: there is no"):
        options.updated({}, "update")


def test_the_server_is_told_its_options_by_variables_and_its_keys_by_none(tmp_path: Path):
    (tmp_path / "keys").write_text(KEY)
    given = {
        "workers": 2,
        "max_body_mb": 0.5,
        "max_files": 7,
        "max_queue": 8,
        "request_timeout_s": 9,
        "cors_origins": "https://shop.example",
        "otlp_endpoint": "http://collector:4318",
        "model_config": {"threads": 1},
        "api_keys_file": str(tmp_path / "keys"),
    }
    environment = Options().updated(given, "create").environment()
    read = from_environment(environment, 1, {"name": "cats", "version": "3"})
    assert (read.max_body_mb, read.max_files, read.max_queue, read.request_timeout_s) == (0.5, 7, 8, 9)
    assert read.cors_origins == ("https://shop.example",)
    assert environment["CATDOG_WORKERS"] == "2"
    assert environment["OTEL_EXPORTER_OTLP_ENDPOINT"] == "http://collector:4318"
    assert environment["SERVING_MODEL_CONFIG"] == '{"threads": 1}'
    assert KEY not in str(environment)
    assert "OTEL_EXPORTER_OTLP_ENDPOINT" not in Options().environment()


def test_help_describes_each_option():
    text = _target_help("catdog")
    assert all(f"  {name} " in text for name in json.loads(Options().to_json()))
    assert "port on this machine [create and run-local]" in text


@pytest.mark.parametrize("name", ["", "a b", "../x", "-x", "x.new", "x" * 64, "ä"])
def test_names_are_checked_before_anything_else(name: str):
    client = get_deploy_client("catdog")
    assert client is not None
    with pytest.raises(MlflowException, match="invalid deployment name"):
        client.create_deployment(name, "models:/Nobody/1")


def test_without_docker_the_error_names_the_remedy(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DOCKER_HOST", f"tcp://127.0.0.1:{free_port()}")
    client = get_deploy_client("catdog")
    assert client is not None
    with pytest.raises(MlflowException, match=r"no Docker daemon is reachable (.|\n)*: start one, or set DOCKER_HOST"):
        client.list_deployments()
