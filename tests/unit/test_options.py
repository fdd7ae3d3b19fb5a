"""The `-C` options of the deployment target: read from text or values, refused by name."""

from __future__ import annotations

import json

import pytest
from mlflow.deployments import get_deploy_client
from mlflow.deployments.interface import _target_help
from mlflow.exceptions import MlflowException
from mlflow_catdog.deployments.options import Options


def test_text_and_values_mean_the_same():
    text = Options().changed({"port": "5002", "workers": "2", "cpus": "1.5", "model_config": '{"threads": 1}'}, "create")
    values = Options().changed({"port": 5002, "workers": 2, "cpus": 1.5, "model_config": {"threads": 1}}, "create")
    assert text == values
    assert (text.port, text.workers, text.cpus, json.loads(text.model_config)) == (5002, 2, 1.5, {"threads": 1})


def test_what_a_label_keeps_is_read_again():
    options = Options().changed({"memory": "1g", "host": "0.0.0.0"}, "create")
    assert Options(**json.loads(options.to_json())) == options


@pytest.mark.parametrize(
    ("given", "verb", "message"),
    [
        ({"prot": 1}, "create", "unknown option 'prot': did you mean 'port'?"),
        ({"colour": "red"}, "create", "unknown option 'colour': give one of host, port, workers"),
        ({"port": "http"}, "create", "option port='http' can't be used"),
        ({"port": 0}, "create", "give a whole number from 1 to 65535"),
        ({"workers": True}, "create", "option workers=True can't be used: give a whole number from 0"),
        ({"workers": 1.5}, "create", "option workers=1.5 can't be used"),
        ({"cpus": "nan"}, "create", "option cpus='nan' can't be used: give a number of at least 0"),
        ({"memory": "lots"}, "create", "option memory='lots' can't be used: give bytes or a number with k, m or g"),
        ({"model_config": "[1]"}, "create", "give a JSON object"),
        ({"model_config": "{"}, "create", "option model_config='{' can't be used"),
        ({"port": 5002}, "update", "option 'port' is for create and run-local, not for update"),
        ({"memory": "1g"}, "run-local", "option 'memory' is for create and update, not for run-local"),
    ],
)
def test_what_cannot_be_used_is_named(given: dict[str, object], verb: str, message: str):
    with pytest.raises(MlflowException) as refused:
        Options().changed(given, verb)
    assert message in refused.value.message
    assert refused.value.error_code == "INVALID_PARAMETER_VALUE"


def test_help_tells_of_each_option():
    told = _target_help("catdog")
    assert all(f"  {name} " in told for name in json.loads(Options().to_json()))


@pytest.mark.parametrize("name", ["", "a b", "../x", "-x", "x.new", "x" * 64, "ä"])
def test_names_are_checked_before_anything_else(name: str):
    client = get_deploy_client("catdog")
    assert client is not None
    with pytest.raises(MlflowException, match="a deployment can't be called"):
        client.create_deployment(name, "models:/Nobody/1")


def test_without_an_engine_the_remedy_is_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DOCKER_HOST", "unix:///no/such.sock")
    client = get_deploy_client("catdog")
    assert client is not None
    with pytest.raises(MlflowException, match=r"no Docker engine answers (.|\n)*: start one, or name it by DOCKER_HOST"):
        client.list_deployments()
