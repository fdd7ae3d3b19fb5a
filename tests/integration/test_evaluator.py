"""The plugin in MLflow's own calls: `mlflow.models.evaluate(…, evaluators="catdog")` and `mlflow.data.get_source`."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException
from mlflow.models import EvaluationResult

from catdog_pyfunc.errors import InvalidData, InvalidSetting
from catdog_pyfunc.pipeline.data.mlflow_source import ImageFolderSource, source_of
from tests.project import MODEL, Project

pytestmark = pytest.mark.skipif(
    not importlib.metadata.entry_points(group="mlflow.model_evaluator", name="catdog"),
    reason="the plugin is not installed: pip install -e ./plugin",
)
PRODUCTION = f"models:/{MODEL}@production"
FILES = {
    *(f"plots/{name}.png" for name in ("confusion_matrix", "roc", "reliability", "confidence")),
    *("images/worst_mistakes.png", "images/least_confident.png", "tables/metrics.csv"),
}


@pytest.fixture
def tracking(project: Project, monkeypatch: pytest.MonkeyPatch) -> Iterator[mlflow.MlflowClient]:
    mlflow.set_tracking_uri(project.tracking_uri)
    client = project.client()
    experiment = client.get_experiment_by_name("evaluator")
    location = (project.folder / "evaluator").as_uri()
    mlflow.set_experiment(
        experiment_id=experiment.experiment_id if experiment else client.create_experiment("evaluator", location)
    )
    yield client
    mlflow.set_tracking_uri(None)


@pytest.fixture(scope="module")
def table(drawn: Path) -> pd.DataFrame:
    files = sorted(drawn.glob("test/*/*.jpg"))
    return pd.DataFrame({"image": [file.read_bytes() for file in files], "label": [file.parent.name for file in files]})


@pytest.fixture
def evaluate(tracking: mlflow.MlflowClient) -> Callable[..., EvaluationResult]:
    def call(model: Any, data: pd.DataFrame, **options: Any) -> EvaluationResult:
        given = {"targets": "label", "model_type": "classifier", "evaluators": "catdog", **options}
        with mlflow.start_run():
            return mlflow.models.evaluate(model, data, **given)

    return call


@pytest.fixture
def plain(tracking: mlflow.MlflowClient) -> str:
    with mlflow.start_run():
        code = str(Path(__file__).with_name("plain_model.py"))
        return str(mlflow.pyfunc.log_model(name="plain", python_model=code, pip_requirements=[]).model_uri)


def files(client: mlflow.MlflowClient, run_id: str) -> set[str]:
    return {entry.path for folder in ("plots", "images", "tables") for entry in client.list_artifacts(run_id, folder)}


def test_this_projects_model_gets_all_metrics_plots_and_galleries(
    evaluate: Callable[..., EvaluationResult], tracking: mlflow.MlflowClient, table: pd.DataFrame, project: Project
):
    result = evaluate(PRODUCTION, table)
    trained = tracking.get_run(tracking.get_model_version_by_alias(MODEL, "production").run_id)
    for name in ("accuracy", "accuracy_low", "recall_cat", "log_loss", "calibration_error", "accepted", "auroc", "f1_dog"):
        assert result.metrics[name] == pytest.approx(trained.data.metrics[f"test/{name}"], abs=1e-6), name
    assert result.metrics["latency_p99_ms"] >= result.metrics["latency_p50_ms"] > 0
    assert files(tracking, result.run_id) == FILES
    assert set(result.artifacts) == {Path(file).stem for file in FILES}
    assert result.artifacts["roc"].content.size[0] > 300
    assert result.artifacts["metrics"].content["metric"][0] == "accuracy"
    run = tracking.get_run(result.run_id)
    assert run.data.metrics == pytest.approx(result.metrics)
    (model,) = run.inputs.model_inputs
    seen = {metric.run_id for metric in tracking.get_logged_model(model.model_id).metrics}
    assert result.run_id in seen
    assert len(tracking.get_metric_history(result.run_id, "accuracy")) == 1


def test_a_third_party_pyfunc_is_evaluated(
    evaluate: Callable[..., EvaluationResult], tracking: mlflow.MlflowClient, table: pd.DataFrame, plain: str
):
    result = evaluate(plain, table.rename(columns={"image": "photo"}))
    assert {"accuracy", "auroc", "log_loss", "f1_cat"} <= set(result.metrics)
    assert "accepted" not in result.metrics
    assert files(tracking, result.run_id) == FILES
    assert len(tracking.get_metric_history(result.run_id, "accuracy")) == 1


def test_a_function_is_evaluated(evaluate: Callable[..., EvaluationResult], table: pd.DataFrame):
    result = evaluate(lambda frame: [{"label": "cat", "confidence": 0.6}] * len(frame), table)
    assert result.metrics["accuracy"] == 0.5
    assert result.metrics["recall_cat"] == 1.0


def test_swapped_labels_turn_the_metrics_round(evaluate: Callable[..., EvaluationResult], table: pd.DataFrame):
    swapped = table.assign(label=table["label"].map({"cat": "dog", "dog": "cat"}))
    correct, wrong = evaluate(PRODUCTION, table), evaluate(PRODUCTION, swapped)
    assert wrong.metrics["accuracy"] == pytest.approx(1 - correct.metrics["accuracy"])
    assert wrong.metrics["auroc"] == pytest.approx(1 - correct.metrics["auroc"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.iloc[:0].astype(object), "there are no images to evaluate on"),
        (lambda table: table.assign(label="horse"), "classes horse that the model does not know; it knows cat, dog"),
        (lambda table: table.assign(label=table["label"].str.upper()), "'CAT' differs from 'cat' in case or spaces only"),
        (lambda table: table.assign(label=[None, *table["label"][1:]]), "1 of 24 rows have no label"),
    ],
    ids=["empty", "unknown", "case", "missing"],
)
def test_data_that_cannot_be_used_is_named(
    change: Callable[[pd.DataFrame], pd.DataFrame],
    message: str,
    evaluate: Callable[..., EvaluationResult],
    table: pd.DataFrame,
):
    with pytest.raises(InvalidData, match=message):
        evaluate(PRODUCTION, change(table))


def test_a_model_is_needed(evaluate: Callable[..., EvaluationResult], table: pd.DataFrame):
    with pytest.raises(InvalidData, match=r"give mlflow\.models\.evaluate a model"):
        evaluate(None, table)


def test_without_targets_mlflow_itself_demands_them(evaluate: Callable[..., EvaluationResult], table: pd.DataFrame):
    with pytest.raises(MlflowException, match="targets argument must be specified"):
        evaluate(PRODUCTION, table, targets=None)


def test_the_settings_are_heeded(evaluate: Callable[..., EvaluationResult], table: pd.DataFrame):
    renamed = table.rename(columns={"image": "a"}).assign(b=1.0)
    config = {"image_column": "a", "metric_prefix": "val_", "seed": 3}
    assert "val_accuracy" in evaluate(PRODUCTION, renamed, evaluator_config=config).metrics
    with pytest.raises(InvalidSetting, match="unknown keys seeds; it may contain image_column, metric_prefix, seed"):
        evaluate(PRODUCTION, table, evaluator_config={"seeds": 3})


def test_tables_without_images_are_left_to_other_evaluators(evaluate: Callable[..., EvaluationResult]):
    """If no evaluator is named, MLflow calls all that are installed."""
    numbers = pd.DataFrame({"a": [0.0, 1.0, 0.0, 1.0], "b": [1.0, 1.0, 0.0, 0.0], "label": [0, 1, 0, 1]})
    result = evaluate(lambda frame: frame["a"].astype(int), numbers, evaluators=None)
    assert result.metrics["accuracy_score"] == 1.0
    assert "calibration_error" not in result.metrics


def test_a_run_leads_to_its_images(project: Project, drawn: Path):
    client = project.client()
    run = client.get_run(client.get_model_version_by_alias(MODEL, "production").run_id)
    splits = {"training": "train", "validation": "val", "testing": "test"}
    assert len(run.inputs.dataset_inputs) == 3
    for given in run.inputs.dataset_inputs:
        source = mlflow.data.get_source(given)
        assert isinstance(source, ImageFolderSource)
        assert source.data == str(drawn)
        assert source.split == splits[given.tags[0].value]
        assert source.digest == given.dataset.digest
        assert source.load().digest(source.split) == source.digest
    assert source_of(run) == ImageFolderSource(str(drawn), "test", source_of(run).digest)  # type: ignore[union-attr]
    assert source_of(run, "evaluation") is None
