"""The plugin's evaluator: which data it takes, and what it says about data and settings that it cannot use."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow_catdog.evaluator import CatDogEvaluator

from catdog_pyfunc.errors import InvalidData, InvalidSetting, ModelFailed
from catdog_pyfunc.pipeline.evaluation import runs

IMAGES = pd.DataFrame({"image": [b"a", b"b"]})


def dataset(features: pd.DataFrame, labels: list[object] | None) -> Any:
    """MLflow's evaluation dataset, as far as the evaluator reads it."""
    return SimpleNamespace(
        features_data=features, feature_names=list(features.columns), labels_data=labels, has_targets=labels is not None
    )


def model(rows: Any) -> Any:
    return SimpleNamespace(predict=lambda frame: rows(frame) if callable(rows) else rows)


def all_cats(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return [{"label": "cat", "confidence": 0.75} for _ in frame.itertuples()]


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What would be logged to the run."""
    logged: dict[str, Any] = {"metrics": []}
    monkeypatch.setattr(mlflow, "log_metrics", lambda metrics, **where: logged["metrics"].append((metrics, where)))
    monkeypatch.setattr(mlflow, "get_artifact_uri", lambda path: f"run/{path}")
    monkeypatch.setattr(runs, "log_artifacts", lambda evaluation, predict: logged.update(evaluation=evaluation))
    return logged


def evaluate(
    features: pd.DataFrame, labels: list[object] | None, predict: Any = None, config: Any = None, **kwargs: Any
) -> Any:
    options = {"model_type": "classifier", "run_id": "a run", "evaluator_config": config, **kwargs}
    return CatDogEvaluator().evaluate(dataset=dataset(features, labels), model=predict or model(all_cats), **options)


def test_classifiers_are_evaluated_and_nothing_else():
    assert CatDogEvaluator.can_evaluate(model_type="classifier", evaluator_config={})
    assert not CatDogEvaluator.can_evaluate(model_type="regressor", evaluator_config={})


def test_metrics_have_their_bare_names_and_artifacts_their_places(logged: dict[str, Any]):
    result = evaluate(IMAGES, ["cat", "dog"])
    assert result.metrics["accuracy"] == 0.5
    ((metrics, where),) = logged["metrics"]
    assert metrics == result.metrics
    assert (where["run_id"], where["model_id"]) == ("a run", None)
    assert {name: artifact.uri for name, artifact in result.artifacts.items()} == {
        name: f"run/{path}" for name, path in runs.ARTIFACTS.items()
    }
    assert logged["evaluation"].labels == ("cat", "dog")
    assert [image.name for image in logged["evaluation"].images] == ["row 0", "row 1"]


def test_metrics_of_a_model_that_mlflow_knows_are_logged_by_mlflow(logged: dict[str, Any]):
    assert "accuracy" in evaluate(IMAGES, ["cat", "dog"], model_id="m-1").metrics
    assert logged["metrics"] == []


def test_prefix_and_seed_are_heeded(logged: dict[str, Any]):
    config = {"metric_prefix": "val_", "seed": 3, "col_mapping": {}}
    assert "val_accuracy" in evaluate(IMAGES, ["cat", "dog"], config=config).metrics
    assert logged["evaluation"].seed == 3
    evaluate(IMAGES, ["cat", "dog"])
    assert logged["evaluation"].seed == 0


@pytest.mark.parametrize(
    ("features", "config", "column"),
    [
        (IMAGES, None, "image"),
        (IMAGES.assign(other=1), None, "image"),
        (IMAGES.rename(columns={"image": "photo"}), None, "photo"),
        (IMAGES.assign(photo=[b"c", b"d"]), {"image_column": "photo"}, "photo"),
        (pd.DataFrame({"image": ["base64", "too"]}), None, "image"),
    ],
)
def test_the_column_of_the_images_is_found_or_given(
    features: pd.DataFrame, config: Any, column: str, logged: dict[str, Any]
):
    seen: list[list[Any]] = []

    def predict(frame: pd.DataFrame) -> list[dict[str, Any]]:
        assert list(frame.columns) == [column]
        seen.append(frame[column].tolist())
        return all_cats(frame)

    evaluate(features, ["cat", "dog"], model(predict), config)
    assert seen[0] == features[column].tolist()


def test_an_array_is_read_with_the_names_of_its_features(logged: dict[str, Any]):
    images = dataset(IMAGES, ["cat", "dog"])
    images.features_data = np.array([[b"a"], [b"b"]], object)
    options = {"model_type": "classifier", "run_id": "a run", "model": model(all_cats)}
    assert CatDogEvaluator().evaluate(dataset=images, **options).metrics["accuracy"] == 0.5


@pytest.mark.parametrize("features", [pd.DataFrame({"a": [0.0], "b": [1.0]}), pd.DataFrame({"a": ["text"]})])
def test_data_without_images_is_skipped(features: pd.DataFrame, caplog: pytest.LogCaptureFixture):
    assert evaluate(features, ["cat"]) is None
    assert f"skips this data: none of the columns {list(features.columns)} has images" in caplog.text


@pytest.mark.parametrize(
    ("features", "labels", "config", "message"),
    [
        (IMAGES.iloc[:0].astype(object), [], None, "there are no images to evaluate on"),
        (IMAGES[["image"]].iloc[:0].rename(columns={"image": "a"}), [], None, "there are no images to evaluate on"),
        (IMAGES, ["cat", None], None, "1 of 2 rows have no label: give each image its class, or leave these rows out"),
        (IMAGES, None, None, "the data has no labels: name their column, as in targets='label'"),
        (IMAGES, ["cow", "cow"], None, "classes cow that the model does not know; it predicts cat"),
        (IMAGES, ["cat", "dog"], {"image_column": "photo"}, "image_column is 'photo', but the data has image: name one"),
        (
            pd.DataFrame({"a": [1.0], "b": [b"a"]}),
            ["cat"],
            None,
            r"several columns \(a, b\) and none is called 'image': give evaluator_config={'image_column': 'b'}",
        ),
    ],
)
def test_data_that_cannot_be_used_is_named(features: pd.DataFrame, labels: list[object] | None, config: Any, message: str):
    with pytest.raises(InvalidData, match=message):
        evaluate(features, labels, config=config)


def test_a_model_is_needed():
    with pytest.raises(InvalidData, match=r"give mlflow\.models\.evaluate a model"):
        CatDogEvaluator().evaluate(model_type="classifier", dataset=dataset(IMAGES, ["cat", "dog"]), run_id="")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"seeds": 3, "b": 1}, "unknown keys b, seeds; it may contain image_column, metric_prefix, seed$"),
        ({"seed": "one"}, "seed='one'; give a whole number of at least 0"),
        ({"seed": True}, "seed=True"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_a_setting_that_cannot_be_used_is_named(config: dict[str, object], message: str):
    with pytest.raises(InvalidSetting, match=message):
        evaluate(IMAGES, ["cat", "dog"], config=config)


@pytest.mark.parametrize("rows", [[{"class": "cat"}] * 2, [{"label": "cat", "confidence": 97}] * 2, [], None])
def test_what_a_model_does_wrong_is_its_failure(rows: Any):
    with pytest.raises(ModelFailed, match=r"the model returned|row 0 has confidence 97"):
        evaluate(IMAGES, ["cat", "dog"], SimpleNamespace(predict=lambda frame: rows))
