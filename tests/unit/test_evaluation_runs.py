"""Evaluations in MLflow runs: which run, what is logged there, and what a model that cannot be loaded is called."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import numpy as np
import pytest
from mlflow.models import ModelSignature
from mlflow.types.schema import ColSpec, Schema
from PIL import Image

from catdog_pyfunc.classifier import Prediction
from catdog_pyfunc.errors import InvalidData, InvalidSetting, ModelFailed
from catdog_pyfunc.pipeline.evaluation import runs
from catdog_pyfunc.pipeline.evaluation.evaluation import Evaluation, LabelledImage, evaluate
from catdog_pyfunc.pipeline.evaluation.runs import EvaluationConfig, evaluate_model, link_model, log_evaluation
from tests.integration import plain_model

FILES = {
    "plots": ["confidence.png", "confusion_matrix.png", "reliability.png", "roc.png"],
    "images": ["least_confident.png", "worst_mistakes.png"],
    "tables": ["metrics.csv"],
}

PHOTO = ModelSignature(Schema([ColSpec("binary", "photo")]))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[mlflow.MlflowClient]:
    """A tracking store with an experiment for these tests."""
    folder = tmp_path_factory.mktemp("store")
    mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
    client = mlflow.MlflowClient()
    client.create_experiment("catdog", artifact_location=(folder / "artifacts").as_uri())
    mlflow.set_experiment("catdog")
    yield client
    mlflow.set_tracking_uri(None)
    os.environ.pop("MLFLOW_EXPERIMENT_ID", None)  # set_experiment leaves it there


@pytest.fixture(scope="module")
def version(store: mlflow.MlflowClient) -> Any:
    """A registered model that calls bright images cats."""
    with mlflow.start_run():
        info = mlflow.pyfunc.log_model(name="plain", python_model=plain_model.__file__, signature=PHOTO, pip_requirements=[])
    return mlflow.register_model(info.model_uri, "Bright")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of images without splits: cats are bright, but for one."""
    folder = tmp_path_factory.mktemp("data")
    for label, levels in {"cat": (250, 230, 210, 10), "dog": (5, 25, 45, 65)}.items():
        (folder / label).mkdir()
        for level in levels:
            Image.fromarray(np.full((8, 8), level, np.uint8)).save(folder / label / f"{level}.png")
    return folder


def artifacts(client: mlflow.MlflowClient, run_id: str) -> dict[str, list[str]]:
    return {
        entry.path: [Path(file.path).name for file in client.list_artifacts(run_id, entry.path)]
        for entry in client.list_artifacts(run_id)
        if entry.path in FILES
    }


def last_run(client: mlflow.MlflowClient) -> mlflow.entities.Run:
    (run,) = client.search_runs([client.get_experiment_by_name("catdog").experiment_id], max_results=1)
    return client.get_run(run.info.run_id)  # with its inputs


def test_without_an_active_run_an_evaluation_has_a_run_of_its_own(store: mlflow.MlflowClient, version: Any, folder: Path):
    evaluation = evaluate_model(EvaluationConfig("models:/Bright/1", str(folder), "all", seed=3))
    assert mlflow.active_run() is None
    run = last_run(store)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == f"evaluate v1 on {folder.name}"
    given = {"model_uri": "models:/Bright/1", "data": str(folder), "split": "all", "seed": "3"}
    assert run.data.params == {**given, "stress": "False", "stress_images": "200"}
    tags = run.data.tags
    assert (tags["model.uri"], tags["model.name"], tags["model.version"]) == ("models:/Bright/1", "Bright", "1")
    assert tags["mlflow.parentRunId"] == version.run_id
    (dataset,) = run.inputs.dataset_inputs
    assert dataset.dataset.digest == tags["data.digest"]
    assert "bundle.digest" not in tags
    assert evaluation.accuracy.value == 7 / 8
    assert run.data.metrics == pytest.approx(evaluation.metrics("all"))
    assert artifacts(store, run.info.run_id) == FILES
    (model,) = run.inputs.model_inputs
    assert model.model_id == store.get_run(version.run_id).outputs.model_outputs[0].model_id
    seen = {metric.key: metric.dataset_digest for metric in store.get_logged_model(model.model_id).metrics}
    assert seen["all/accuracy"] == tags["data.digest"]
    assert evaluation.seed == 3


def test_a_stress_test_leaves_metrics_a_plot_and_a_table(store: mlflow.MlflowClient, version: Any, folder: Path):
    evaluate_model(EvaluationConfig("models:/Bright/1", str(folder), "all", stress=True, stress_images=4))
    run = last_run(store)
    assert run.data.metrics["stress/accuracy_jpeg_compression"] == 1.0
    assert run.data.metrics["stress/accuracy"] < 1.0  # brightness makes cats of dogs
    left = artifacts(store, run.info.run_id)
    assert "stress.png" in left["plots"]
    assert left["tables"] == ["metrics.csv", "stress.csv"]


def test_an_evaluation_works_in_the_active_run(store: mlflow.MlflowClient, version: Any, folder: Path):
    uri = version.source
    with mlflow.start_run(run_name="mine") as active:
        evaluate_model(EvaluationConfig(uri, str(folder), "all"))
        assert mlflow.active_run().info.run_id == active.info.run_id
    run = store.get_run(active.info.run_id)
    assert run.data.metrics["all/accuracy"] == 7 / 8
    assert "model.version" not in run.data.tags
    assert run.info.run_name == "mine"


def test_a_run_whose_evaluation_fails_is_marked_failed(store: mlflow.MlflowClient, version: Any, tmp_path: Path):
    with pytest.raises(InvalidData, match="does not exist"):
        evaluate_model(EvaluationConfig("models:/Bright/1", str(tmp_path / "nowhere")))
    assert last_run(store).info.status == "FAILED"


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"split": "dev"}, "^split is 'dev'; give one of train, val, test, all$"),
        ({"seed": -1}, "^seed is -1; give 0 or more$"),
        ({"stress_images": 0}, "^stress_images is 0; give 1 or more$"),
    ],
)
def test_a_setting_that_cannot_be_used_is_refused(setting: dict[str, Any], message: str):
    with pytest.raises(InvalidSetting, match=message):
        EvaluationConfig(**setting)


def test_by_default_production_is_evaluated_on_the_test_split_of_the_sample():
    config = EvaluationConfig()
    assert (config.model_uri, config.data, config.split) == ("models:/CatDogClassifier@production", "sample", "test")


def test_a_model_that_cannot_be_loaded_has_failed(store: mlflow.MlflowClient, tmp_path: Path):
    (tmp_path / "MLmodel").write_text("flavors: {python_function: {loader_module: no.such.module}}")
    with pytest.raises(ModelFailed, match=f"^model {tmp_path} cannot be loaded: ModuleNotFoundError: No module named 'no'$"):
        evaluate_model(EvaluationConfig(str(tmp_path)))


def test_the_digest_of_this_projects_bundles_is_a_tag():
    model = SimpleNamespace(metadata=SimpleNamespace(metadata={"bundle_digest": "abc"}))
    assert runs._identity("runs:/1/model", model) == {"model.uri": "runs:/1/model", "bundle.digest": "abc"}  # type: ignore[arg-type]


def test_a_model_of_another_store_is_not_linked(store: mlflow.MlflowClient):
    assert link_model(SimpleNamespace(model_id="m-1")) is None  # type: ignore[arg-type]
    with mlflow.start_run():
        assert link_model(SimpleNamespace(model_id=None)) is None  # type: ignore[arg-type]
        assert link_model(SimpleNamespace(model_id="m-00000000000000000000000000000000")) is None  # type: ignore[arg-type]


def a_cat_and_a_dog(latency: bool = False) -> Evaluation:
    images = [LabelledImage("a", "cat", lambda: b"a"), LabelledImage("b", "dog", lambda: b"b")]
    return evaluate(lambda contents, explain: [Prediction("cat", 0.9)] * len(contents), images, latency=latency)


def test_the_table_has_each_metric_with_its_interval(store: mlflow.MlflowClient, tmp_path: Path):
    evaluation = a_cat_and_a_dog(latency=True)
    with mlflow.start_run() as active:
        log_evaluation(evaluation, lambda contents, explain: [Prediction()] * len(contents), "val")
    lines = Path(store.download_artifacts(active.info.run_id, "tables/metrics.csv", str(tmp_path))).read_text().splitlines()
    assert lines[:2] == ["metric,value,low,high,n", "accuracy,0.500000,0.094531,0.905469,2"]
    rows = {line.split(",")[0]: line.split(",")[1:] for line in lines[1:]}
    assert set(rows) == {*evaluation.estimates, "latency_p50_ms", "latency_p99_ms"}
    assert rows["precision_dog"] == ["", "0.000000", "1.000000", "0"]  # nothing was predicted to be a dog
    assert rows["latency_p99_ms"] == [f"{evaluation.latency_p99_ms:.6f}", "", "", ""]
    assert store.get_run(active.info.run_id).data.metrics["val/accuracy"] == 0.5


def test_the_galleries_show_mistakes_and_doubts(monkeypatch: pytest.MonkeyPatch):
    drawn: list[tuple[list[str], str, str]] = []
    logged: dict[str, object] = {}

    def gallery(results: Any, predict: object, title: str, empty: str) -> str:
        drawn.append(([image.name for image, _ in results], title, empty))
        return title

    monkeypatch.setattr(runs, "gallery", gallery)
    monkeypatch.setattr(runs, "small_png", lambda figure: figure)
    monkeypatch.setattr(mlflow, "log_figure", lambda figure, path, save_kwargs: logged.update({path: figure}))
    monkeypatch.setattr(mlflow, "log_image", lambda image, path: logged.update({path: image}))
    monkeypatch.setattr(mlflow, "log_text", lambda text, path: logged.update({path: text}))
    runs.log_artifacts(a_cat_and_a_dog(), lambda contents, explain: [])
    worst, least = "Worst mistakes, most confident first", "Least confident predictions"
    assert drawn == [(["b"], worst, "No mistakes"), (["a", "b"], least, "No readable images")]
    assert (logged["images/worst_mistakes.png"], logged["images/least_confident.png"]) == (worst, least)
    titles = {path: figure.get_suptitle() for path, figure in logged.items() if path.startswith("plots/")}  # type: ignore[attr-defined]
    assert titles == {
        "plots/confusion_matrix.png": "Confusion matrix",
        "plots/roc.png": "ROC curve, dog vs. cat",
        "plots/reliability.png": "Reliability",
        "plots/confidence.png": "Confidence of correct and wrong predictions",
    }
