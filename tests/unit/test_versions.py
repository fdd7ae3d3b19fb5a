"""Registering a run's model: once, with metrics, tags and links."""

from __future__ import annotations

import getpass
from types import SimpleNamespace

import mlflow
import pytest

from catdog_pyfunc.errors import InvalidSetting, RegistryError
from catdog_pyfunc.pipeline.registry import versions
from tests.unit.fake_registry import MAX_DESCRIPTION, FakeRegistry

NAME = "model"
PAGE = "#/experiments/7/runs/log 0"


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> FakeRegistry:
    """A registered model without versions, and a run that has logged a model."""
    fake = FakeRegistry(NAME, versions=0)
    run = fake.create_run("7", "a run")
    run.info.experiment_id = "7"
    run.outputs = SimpleNamespace(model_outputs=[SimpleNamespace(model_id=id_) for id_ in ("m-oldest", "m-older", "m-1")])

    def register_model(uri: str, name: str) -> SimpleNamespace:
        assert (uri, name) == ("models:/m-1", NAME)
        number = str(len(fake.versions) + 1)
        fake.versions[number] = SimpleNamespace(version=number, run_id=run.info.run_id, tags={}, description="")
        return fake.versions[number]

    monkeypatch.setattr(mlflow, "MlflowClient", lambda: fake)
    monkeypatch.setattr(mlflow, "register_model", register_model)
    return fake


def test_a_version_has_the_runs_metrics_tags_and_links(registry: FakeRegistry):
    data = registry.runs["log 0"].data
    data.params["data.classes"] = "cat, dog"
    data.tags |= {"data.digest": "d1ge57", "author": "ann", "mlflow.user": "container", "other": "stays there"}
    data.metrics |= {"test/accuracy": 0.98765, "test/accuracy_low": 0.97, "test/accuracy_high": 0.99}
    data.metrics |= {"test/log_loss": 0.04321, "test/calibration_error": 0.0101, "test/accepted": 0.9, "test/auroc": 0.999}
    version = versions.register("log 0", NAME)
    assert version.description == (
        "test accuracy **0.9877** (0.9700–0.9900), log loss 0.0432, calibration error 0.0101, accepted 0.9000\n\n"
        f"[training]({PAGE}) · [model card]({PAGE}/artifacts/model_card.md)"
    )
    assert version.tags == {
        "data.digest": "d1ge57",
        "author": "ann",
        "test/accuracy": "0.9877",
        "test/log_loss": "0.0432",
    }
    assert registry.description == "Classifies images as one of: cat, dog."


def test_a_run_without_metrics_or_an_author_is_registered_all_the_same(registry: FakeRegistry):
    version = versions.register("log 0", NAME)
    assert version.description == f"[training]({PAGE}) · [model card]({PAGE}/artifacts/model_card.md)"
    assert version.tags == {"author": getpass.getuser()}
    assert registry.description == ""
    registry.versions.clear()
    registry.runs["log 0"].data.tags["mlflow.user"] = "bob"
    assert versions.register("log 0", NAME).tags == {"author": "bob"}


def test_metrics_without_an_interval_are_described(registry: FakeRegistry):
    registry.runs["log 0"].data.metrics["test/accuracy"] = 0.5
    assert versions.register("log 0", NAME).description.startswith("test accuracy **0.5000** (nan–nan)\n\n[training]")


def test_a_run_is_registered_once(registry: FakeRegistry):
    first = versions.register("log 0", NAME, description="as it was")
    assert versions.register("log 0", NAME, description="another").description == "as it was"
    assert first.version == "1"
    assert len(registry.versions) == 1


def test_a_version_under_another_name_does_not_count(registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(
        registry, "search_model_versions", lambda filter_string: [SimpleNamespace(name="Model", version="9")]
    )
    assert versions.register("log 0", NAME).version == "1"


def test_a_models_description_is_a_persons_if_there_is_one(registry: FakeRegistry):
    registry.description = "ours"
    registry.runs["log 0"].data.params["data.classes"] = "cat, dog"
    versions.register("log 0", NAME)
    assert registry.description == "ours"


def test_what_cannot_be_registered_is_named(registry: FakeRegistry):
    with pytest.raises(
        RegistryError, match=r"^run 'nonsense' is not in .* \(no run nonsense\): give the id of a training run$"
    ):
        versions.register("nonsense", NAME)
    for outputs in (None, SimpleNamespace(model_outputs=[])):
        registry.runs["log 0"].outputs = outputs
        with pytest.raises(RegistryError, match="run 'log 0' has logged no model: give the id of a finished training run"):
            versions.register("log 0", NAME)


def test_a_description_of_ones_own_is_cut_to_what_mlflow_stores(registry: FakeRegistry):
    line = "one line of a long description\n"
    description = versions.register("log 0", NAME, description=line * 1000).description
    assert MAX_DESCRIPTION - len(line) <= len(description) <= MAX_DESCRIPTION
    assert description.endswith("one line of a long description\n\n… the rest is in the run's model_card.md")
    registry.versions.clear()
    longest = "x" * MAX_DESCRIPTION
    assert versions.register("log 0", NAME, description=longest).description == longest


@pytest.mark.parametrize("alias", ["latest", "LATEST", "v7", "V7", "", "a b", "a/b"])
def test_an_alias_that_mlflow_reserves_or_refuses_is_not_allowed(alias: str):
    with pytest.raises(InvalidSetting, match=rf"^alias '{alias}' is not allowed: use letters, digits, _ and -"):
        versions.check_alias(alias)


def test_the_alias_of_what_a_promotion_replaces_cannot_be_given():
    with pytest.raises(InvalidSetting, match=r"^alias 'archived' is set by promotions, on the version they replace"):
        versions.check_alias("archived")


@pytest.mark.parametrize("alias", ["production", "canary-2", "v7a", "latest_"])
def test_other_aliases_are_allowed(alias: str):
    versions.check_alias(alias)


def test_an_author_without_a_login_name_is_unknown(monkeypatch: pytest.MonkeyPatch):
    def nobody() -> str:
        raise KeyError("uid not found")

    monkeypatch.setattr(getpass, "getuser", nobody)
    assert versions.author() == "unknown"
