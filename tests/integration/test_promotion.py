"""The gate on models that are good at this and bad at that, each logged, registered and asked in a process of its own."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest

from catdog_pyfunc.errors import InvalidData, PromotionRefused
from catdog_pyfunc.pipeline import tracking
from catdog_pyfunc.pipeline.registry import reconcile
from catdog_pyfunc.pipeline.registry.gate import Thresholds
from catdog_pyfunc.pipeline.registry.promotion import Promotion, promote
from tests.project import MODEL, REPOSITORY, Project, make_project

# A process of its own on a busy machine: what a test of latency wants, it sets itself.
PATIENT = Thresholds(latency_allowed_ms=60_000)
SIDE = "test"


@pytest.fixture(scope="module")
def truth(drawn: Path) -> dict[str, str]:
    """SHA-256 → class of the photos that are asked: 12 cats and 12 dogs."""
    photos = sorted(drawn.glob(f"{SIDE}/*/*.jpg"))
    return {hashlib.sha256(photo.read_bytes()).hexdigest(): photo.parent.name for photo in photos}


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    """A store of its own for each test, in which the next version is 1."""
    project = make_project(tmp_path / "project")
    mlflow.set_tracking_uri(project.tracking_uri)
    mlflow.set_experiment("catdog")
    yield project
    mlflow.set_tracking_uri(None)


@pytest.fixture
def register(project: Project, truth: dict[str, str]) -> Callable[..., str]:
    """Make a version that errs on so many cats and dogs."""

    def make(wrong: tuple[int, int] = (0, 0), **config: Any) -> str:
        left = {"cat": wrong[0], "dog": wrong[1]}
        labels = dict(truth)
        for picture, label in truth.items():
            if left[label]:
                left[label] -= 1
                labels[picture] = "dog" if label == "cat" else "cat"
        with mlflow.start_run():
            info = mlflow.pyfunc.log_model(
                name="model",
                python_model=str(Path(__file__).with_name("scripted_model.py")),
                model_config={"labels": labels, **config},
                pip_requirements=[],
            )
        return str(mlflow.register_model(info.model_uri, MODEL).version)

    return make


@pytest.fixture
def predict(project: Project, drawn: Path) -> Callable[..., list[list[str]]]:
    """Promote; the table's rows."""

    def call(version: str, thresholds: Thresholds = PATIENT, **options: Any) -> list[list[str]]:
        shown: list[list[str]] = []
        with tracking.run():
            promote(Promotion(version, **{"data": str(drawn), **options}), thresholds, show=shown.extend)
        return shown

    return call


def aliases(project: Project) -> dict[str, str]:
    return {alias: str(version) for alias, version in project.client().get_registered_model(MODEL).aliases.items()}


def failed(rows: list[list[str]]) -> list[str]:
    return [row[0] for row in rows if row[-1] == "FAILED"]


def last_run(project: Project) -> mlflow.entities.Run:
    client = project.client()
    return client.search_runs([client.get_experiment_by_name("catdog").experiment_id], max_results=1)[0]


def test_what_is_no_worse_gets_the_alias_and_what_it_replaces_is_archived(
    project: Project, register: Callable[..., str], predict: Callable[..., list[list[str]]], drawn: Path, tmp_path: Path
):
    for wrong in ((1, 1), (1, 0)):
        rows = predict(register(wrong), reason="better food")
    assert not failed(rows)
    assert aliases(project) == {"production": "2", "archived": "1"}
    version = project.client().get_model_version(MODEL, "2")
    assert version.tags["stage"] == "production"
    assert version.tags["moved.why"] == "better food"
    assert "**production** · promoted to production" in version.description
    assert "accuracy 0.9583 (champion 0.9167)" in version.description
    assert "better food" in project.client().get_registered_model(MODEL).description
    run = last_run(project)
    assert run.info.run_name == "v2 → production"
    assert run.data.tags["mlflow.parentRunId"] == version.run_id
    assert run.data.tags["verdict"] == "promoted"
    assert run.data.tags["data.digest"] == reconcile.history(MODEL)[-1].data_digest
    assert {"min_accuracy", "alpha", "log_loss_margin", "recall_margin", "latency_ratio", "reason"} <= set(run.data.params)
    assert run.data.metrics["challenger/accuracy"] > run.data.metrics["champion/accuracy"]
    checks = Path(project.client().download_artifacts(run.info.run_id, "gate/checks.json", str(tmp_path)))
    assert all(check["passed"] for check in json.loads(checks.read_text())["checks"])


@pytest.mark.parametrize(
    ("champion", "challenger", "thresholds", "named"),
    [
        (None, {"wrong": (4, 4)}, {}, ["accuracy"]),
        ({}, {"wrong": (3, 2)}, {"log_loss_margin": 9, "recall_margin": 1, "min_accuracy": 0.5}, ["accuracy vs champion"]),
        ({"wrong": (1, 0)}, {"wrong": (0, 2)}, {"log_loss_margin": 9}, ["recall_dog"]),
        ({"wrong": (1, 0)}, {"wrong": (1, 0), "confidence": 0.999}, {"calibration_margin": 1}, ["log_loss"]),
        ({}, {"confidence": 0.6}, {"log_loss_margin": 9}, ["calibration_error"]),
        ({}, {"delay_s": 0.1}, {"latency_allowed_ms": 1}, ["p99 latency, ms"]),
        (None, {"broken": "raise"}, {}, ["broken pictures"]),
        (None, {"broken": "guess"}, {}, ["broken pictures"]),
        ({"classes": ["cat", "dog", "cow"]}, {}, {"log_loss_margin": 9, "calibration_margin": 1}, ["same classes"]),
    ],
)
def test_what_does_not_pass_is_named_and_leaves_the_alias_alone(
    champion: dict[str, Any] | None,
    challenger: dict[str, Any],
    thresholds: dict[str, float],
    named: list[str],
    project: Project,
    register: Callable[..., str],
    predict: Callable[..., list[list[str]]],
):
    if champion is not None:
        predict(register(**champion))
    before = aliases(project) if champion is not None else {}
    version = register(**challenger)
    with pytest.raises(PromotionRefused, match=f"doesn't get 'production': {', '.join(named)}; "):
        predict(version, replace(PATIENT, **thresholds))
    assert aliases(project) == before
    entry = reconcile.history(MODEL)[-1]
    assert (entry.action, entry.version, list(entry.failed)) == ("refused", version, named)
    run = last_run(project)
    assert (run.info.status, run.data.tags["verdict"]) == ("FAILED", "refused")
    assert run.info.run_name == f"v{version} → production, refused"


def test_a_model_that_fails_is_refused_with_what_it_said(
    project: Project, register: Callable[..., str], predict: Callable[..., list[list[str]]]
):
    version = register(confidence="high")
    with pytest.raises(PromotionRefused, match="answers"):
        predict(version)
    assert not aliases(project)


class Pickled(mlflow.pyfunc.PythonModel):
    """Every picture is a cat."""

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        rows = [{"label": "cat", "confidence": 0.9} for _ in model_input["image"]]
        return pd.DataFrame(rows)


def test_a_model_that_needs_pickle_is_refused_and_can_be_forced(project: Project, predict: Callable[..., list[list[str]]]):
    with mlflow.start_run():
        info = mlflow.pyfunc.log_model(name="model", python_model=Pickled(), pip_requirements=[])
    version = str(mlflow.register_model(info.model_uri, MODEL).version)
    with pytest.raises(PromotionRefused, match="loads without pickle"):
        predict(version)
    rows = predict(version, force=True, reason="it is all we have")
    assert failed(rows)[:1] == ["loads without pickle"]
    entry = reconcile.history(MODEL)[-1]
    assert (entry.action, entry.reason, aliases(project)) == ("forced", "it is all we have", {"production": version})
    assert "loads without pickle" in entry.failed


def test_a_broken_champion_does_not_keep_its_successor_out(
    project: Project, register: Callable[..., str], predict: Callable[..., list[list[str]]]
):
    predict(register(confidence="high"), force=True, reason="a mistake")
    rows = predict(register())
    assert ["nothing: not compared", "ok"] in [row[-2:] for row in rows]
    assert aliases(project)["production"] == "2"


def test_staging_has_a_champion_of_its_own(
    project: Project, register: Callable[..., str], predict: Callable[..., list[list[str]]]
):
    predict(register())
    poor = register((2, 2))
    predict(poor, alias="staging")
    assert aliases(project) == {"production": "1", "staging": "2"}
    with pytest.raises(PromotionRefused, match="models:/CatDogClassifier@production is still version 1"):
        predict(poor)
    assert aliases(project) == {"production": "1", "staging": "2"}


def test_a_version_that_holds_the_alias_already_is_not_asked_again(
    register: Callable[..., str], predict: Callable[..., list[list[str]]]
):
    version = register()
    predict(version)
    assert predict(version) == []
    assert len(reconcile.history(MODEL)) == 1


def test_photos_that_cannot_be_had_are_named(
    project: Project, register: Callable[..., str], predict: Callable[..., list[list[str]]]
):
    version = register()
    with pytest.raises(InvalidData, match="doesn't say what photos it was tested on: give data"):
        predict(version, data="auto")
    with pytest.raises(InvalidData, match="/no/such/folder does not exist"):
        predict(version, data="/no/such/folder")
    assert reconcile.history(MODEL) == []
    assert not aliases(project)


def test_of_two_promotions_at_once_one_wins_and_the_other_says_so(
    project: Project, register: Callable[..., str], predict: Callable[..., list[list[str]]], drawn: Path
):
    predict(register())
    versions = [register(), register()]
    words = ["python", "-m", "scripts.promote", "--data", str(drawn), "--latency-allowed-ms", "60000", "--version"]
    processes = [
        subprocess.Popen(
            [*words, version],
            cwd=REPOSITORY,
            env=dict(project.environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for version in versions
    ]
    said = [process.communicate(timeout=300)[1] for process in processes]
    codes = [process.returncode for process in processes]
    assert sorted(codes) == [0, 1], said
    lost, won = codes.index(1), codes.index(0)
    assert f"moved production to version {won + 2}" in said[lost]
    assert "try again" in said[lost]
    assert aliases(project) == {"production": str(won + 2), "archived": "1"}
    assert [entry.version for entry in reconcile.history(MODEL)] == ["1", str(won + 2)]
