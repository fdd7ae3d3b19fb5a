from __future__ import annotations

from pathlib import Path

import mlflow
import pytest

from catdog_pyfunc.errors import InvalidSetting, RegistryError
from catdog_pyfunc.pipeline.registry import versions


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'mlflow.db'}")
    yield mlflow.MlflowClient()
    mlflow.set_tracking_uri(None)


@pytest.mark.parametrize("alias", ["latest", "v7", "", "a b", "a/b"])
def test_an_alias_that_mlflow_keeps_for_itself_is_refused(alias: str):
    with pytest.raises(InvalidSetting, match="is not allowed"):
        versions.check_alias(alias)


def test_a_run_without_a_model_cannot_be_registered(store: mlflow.MlflowClient):
    run = store.create_run("0")
    with pytest.raises(RegistryError, match="has logged no model"):
        versions.register(run.info.run_id)
    with pytest.raises(RegistryError, match="no versions"):
        versions.latest_version()


def test_a_description_fits_into_the_database():
    short, long = "short", "a line of a long card\n" * 1000
    assert versions.fitting(short) == short
    assert len(versions.fitting(long)) <= 5000
    assert versions.fitting(long).endswith("model_card.md")
