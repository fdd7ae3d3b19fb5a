"""`mlflow.models.evaluate(…, evaluators="catdog")`: metrics with intervals, plots and galleries of an image classifier."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import mlflow
import pandas as pd
from mlflow.models.evaluation.artifacts import CsvEvaluationArtifact, ImageEvaluationArtifact
from mlflow.models.evaluation.base import EvaluationArtifact, EvaluationResult, ModelEvaluator
from mlflow.pyfunc import PyFuncModel

from catdog_pyfunc.errors import InvalidData, InvalidSetting
from catdog_pyfunc.images import IMAGE_COLUMN

if TYPE_CHECKING:
    from catdog_pyfunc.pipeline.evaluation.evaluation import LabelledImage
    from catdog_pyfunc.pipeline.evaluation.predictors import Predictor

_KEYS = ("image_column", "metric_prefix", "seed")
_MLFLOW_KEYS = ("col_mapping",)  # read by MLflow itself
_logger = logging.getLogger(__name__)


class CatDogEvaluator(ModelEvaluator):
    """Evaluates a model that returns `label` and `confidence` for images.

    `evaluator_config` may contain `image_column` (by default the only column besides the targets, otherwise `image`),
    `metric_prefix` (put before each metric's name) and `seed` (of the bootstrap intervals, by default 0).
    """

    @classmethod
    def can_evaluate(cls, *, model_type: str, evaluator_config: Mapping[str, Any], **kwargs: Any) -> bool:
        """Whether the model is a classifier; only `evaluate` sees whether the data has images."""
        return model_type == "classifier"

    def evaluate(  # type: ignore[no-untyped-def]
        self,
        *,
        model_type: str,
        dataset,
        run_id: str,
        evaluator_config: Mapping[str, Any] | None = None,
        model=None,
        **kwargs,
    ) -> EvaluationResult | None:
        """Evaluate a model, and log metrics, plots, galleries and a table of the intervals to the active run.

        Args:
            model_type: "classifier".
            dataset: MLflow's evaluation dataset: a column of images (bytes, or text if the model takes it) and targets.
            run_id: Id of the active run.
            evaluator_config: See the class.
            model: A pyfunc, or MLflow's wrapper of a function.
            **kwargs: `model_id` if MLflow logs the metrics itself; extra metrics and custom artifacts are left to MLflow's
                default evaluator.

        Returns:
            Metrics by their bare names, and the artifacts. None for data without images: MLflow calls every installed
            evaluator if none is named.

        Raises:
            InvalidSetting: `evaluator_config` has an unknown key or an invalid value.
            InvalidData: There is no model, there are no images or labels, or the model does not know a class.
            ModelFailed: The model raised, or returned predictions that cannot be used.
        """
        features = _data_frame(dataset.features_data, dataset.feature_names)
        config = dict(evaluator_config or {})
        column = _image_column(features, config.get("image_column"))
        if column is None:
            _logger.warning(
                "the catdog evaluator skips this data: none of the columns %s has images", list(features.columns)
            )
            return None
        _check(config)
        if model is None:
            raise InvalidData("the catdog evaluator needs predictions with confidences: give mlflow.models.evaluate a model")
        # These import matplotlib, and MLflow loads this file whenever anything is evaluated.
        from catdog_pyfunc.pipeline.evaluation import runs
        from catdog_pyfunc.pipeline.evaluation.evaluation import evaluate

        predict = _predictor(model, column)
        evaluation = evaluate(predict, _labelled_images(features[column], dataset), seed=config.get("seed", 0))
        prefix = config.get("metric_prefix") or ""
        metrics = {f"{prefix}{name}": value for name, value in evaluation.metrics().items()}
        if not kwargs.get("model_id"):
            model_id = runs.link_model(model) if isinstance(model, PyFuncModel) else None
            mlflow.log_metrics(metrics, run_id=run_id, model_id=model_id, dataset=dataset)
        runs.log_artifacts(evaluation, predict)
        return EvaluationResult(metrics, _artifacts(runs.ARTIFACTS), run_id)  # type: ignore[no-untyped-call]


def _data_frame(features: Any, names: list[str]) -> pd.DataFrame:
    return features if isinstance(features, pd.DataFrame) else pd.DataFrame(features, columns=names)


def _image_column(features: pd.DataFrame, given: str | None) -> str | None:
    """The column of the images; None if there is none."""
    columns = [str(name) for name in features.columns]
    if given is not None:
        if given not in columns:
            raise InvalidData(f"image_column is {given!r}, but the data has {', '.join(columns)}: name one of those")
        return given
    if IMAGE_COLUMN in columns:
        return IMAGE_COLUMN
    binary = [name for name in columns if any(isinstance(cell, bytes) for cell in features[name].iloc[:1])]
    if len(columns) == 1:
        return columns[0] if binary or features.empty else None
    if binary:
        raise InvalidData(
            f"the data has several columns ({', '.join(columns)}) and none is called {IMAGE_COLUMN!r}: "
            f"give evaluator_config={{'image_column': {binary[0]!r}}}"
        )
    return None


def _check(config: Mapping[str, Any]) -> None:
    unknown = sorted(set(config) - {*_KEYS, *_MLFLOW_KEYS})
    if unknown:
        raise InvalidSetting(f"evaluator_config has unknown keys {', '.join(unknown)}; it may contain {', '.join(_KEYS)}")
    seed = config.get("seed", 0)
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise InvalidSetting(f"evaluator_config has seed={seed!r}; give a whole number of at least 0")


def _labelled_images(images: pd.Series[Any], dataset: Any) -> list[LabelledImage]:
    from catdog_pyfunc.pipeline.evaluation.evaluation import LabelledImage

    if not dataset.has_targets:
        raise InvalidData("the data has no labels: name their column, as in targets='label'")
    labels = pd.Series(dataset.labels_data)
    missing = int(labels.isna().sum())
    if missing:
        raise InvalidData(
            f"{missing} of {len(labels)} rows have no label: give each image its class, or leave these rows out"
        )

    def labelled(index: object, cell: Any, label: object) -> LabelledImage:
        return LabelledImage(f"row {index}", str(label), lambda: cell)

    return [labelled(*row) for row in zip(images.index, images, labels, strict=True)]


def _predictor(model: Any, column: str) -> Predictor:
    from catdog_pyfunc.pipeline.evaluation.predictors import function_predictor, pyfunc_predictor

    return pyfunc_predictor(model, column) if isinstance(model, PyFuncModel) else function_predictor(model.predict, column)


def _artifacts(paths: Mapping[str, str]) -> dict[str, EvaluationArtifact]:
    kinds = {".png": ImageEvaluationArtifact, ".csv": CsvEvaluationArtifact}
    return {name: kinds[path[-4:]](mlflow.get_artifact_uri(path)) for name, path in paths.items()}  # type: ignore[no-untyped-call]
