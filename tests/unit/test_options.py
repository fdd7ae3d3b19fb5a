"""The `-C` options of the deployment target: read from text or values, stored on a label, refused by name."""

from __future__ import annotations

import json

import pytest
from mlflow.deployments import get_deploy_client
from mlflow.deployments.interface import _target_help
from mlflow.exceptions import MlflowException
from mlflow_catdog.deployments.options import Options

from catdog_pyfunc.pipeline.processes import free_port


def test_text_and_values_mean_the_same():
    text = Options().updated({"port": "5002", "workers": "2", "cpus": "1.5", "model_config": '{"threads": 1}'}, "create")
    values = Options().updated({"port": 5002, "workers": 2, "cpus": 1.5, "model_config": {"threads": 1}}, "create")
    assert text == values
    assert (text.port, text.workers, text.cpus, json.loads(text.model_config)) == (5002, 2, 1.5, {"threads": 1})


def test_stored_options_are_read_back():
    options = Options().updated({"memory": "1g", "host": "0.0.0.0", "model_config": {"threads": 1}}, "create")
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
        ({"port": 5002}, "update", "option 'port' is for create and run-local, not for update"),
        ({"memory": "1g"}, "run-local", "option 'memory' is for create and update, not for run-local"),
    ],
)
def test_an_unusable_option_is_named(given: dict[str, object], verb: str, message: str):
    with pytest.raises(MlflowException) as refused:
        Options().updated(given, verb)
    assert message in refused.value.message
    assert refused.value.error_code == "INVALID_PARAMETER_VALUE"


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
