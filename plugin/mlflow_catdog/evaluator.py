"""`mlflow.models.evaluate(…, evaluators="catdog")`: metrics with intervals, plots and galleries of a picture classifier."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import mlflow
import pandas as pd
from mlflow.models.evaluation.artifacts import CsvEvaluationArtifact, ImageEvaluationArtifact
from mlflow.models.evaluation.base import EvaluationArtifact, EvaluationResult, ModelEvaluator
from mlflow.pyfunc import PyFuncModel

from catdog_pyfunc.errors import InvalidData, InvalidSetting

if TYPE_CHECKING:
    from catdog_pyfunc.pipeline.evaluation.evaluation import LabelledImage
    from catdog_pyfunc.pipeline.evaluation.predictors import Predictor

_COLUMN = "image"
_SETTINGS = ("image_column", "metric_prefix", "seed")
_OF_MLFLOW = ("col_mapping",)  # read by MLflow itself
_logger = logging.getLogger(__name__)


class CatDogEvaluator(ModelEvaluator):
    """Measures a model that answers pictures with `label` and `confidence`.

    `evaluator_config` may hold `image_column` (default: the only column besides the targets, or else `image`),
    `metric_prefix` (put before each metric's name) and `seed` (of the bootstrap's intervals, default 0).
    """

    @classmethod
    def can_evaluate(cls, *, model_type: str, evaluator_config: Mapping[str, Any], **kwargs: Any) -> bool:
        """Only classifiers; whether the data holds pictures is seen later."""
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
        """Measure a model in the run that is active, and log metrics, plots, galleries and a table of the intervals there.

        Args:
            model_type: "classifier".
            dataset: MLflow's evaluation data set: a column of pictures (bytes, or text as the model takes it) and targets.
            run_id: Of the active run.
            evaluator_config: See the class.
            model: A pyfunc, or what MLflow makes of a function.
            **kwargs: `model_id`, if MLflow knows it and will log the metrics itself; extra metrics and custom artifacts are
                the default evaluator's.

        Returns:
            Metrics by their bare names, and the artifacts. None for data without pictures: when no evaluator is named,
            MLflow asks each one that is installed.

        Raises:
            InvalidSetting: `evaluator_config` has an unknown key, or a seed that is no whole number.
            InvalidData: No model, no pictures, labels missing, or classes that the model doesn't know.
        """
        features = _frame(dataset.features_data, dataset.feature_names)
        config = dict(evaluator_config or {})
        column = _image_column(features, config.get("image_column"))
        if column is None:
            _logger.warning("catdog left this data alone: no column of %s holds pictures", list(features.columns))
            return None
        _check(config)
        if model is None:
            raise InvalidData("catdog measures what a model answers: give mlflow.models.evaluate a model")
        # matplotlib comes with these: MLflow loads this file whenever anything is evaluated
        from catdog_pyfunc.pipeline.evaluation import runs
        from catdog_pyfunc.pipeline.evaluation.evaluation import evaluate

        predict = _asking(model, column)
        evaluation = evaluate(predict, _photos(features[column], dataset), seed=config.get("seed", 0))
        prefix = config.get("metric_prefix") or ""
        metrics = {f"{prefix}{name}": value for name, value in evaluation.metrics().items()}
        if not kwargs.get("model_id"):
            model_id = runs.link(model) if isinstance(model, PyFuncModel) else None
            mlflow.log_metrics(metrics, run_id=run_id, model_id=model_id, dataset=dataset)
        runs.log_artifacts(evaluation, predict)
        return EvaluationResult(metrics, _artifacts(runs.ARTIFACTS), run_id)  # type: ignore[no-untyped-call]


def _frame(features: Any, names: list[str]) -> pd.DataFrame:
    return features if isinstance(features, pd.DataFrame) else pd.DataFrame(features, columns=names)


def _image_column(features: pd.DataFrame, wanted: str | None) -> str | None:
    """Which column holds the pictures; None if nothing here looks like one."""
    columns = [str(name) for name in features.columns]
    if wanted is not None:
        if wanted not in columns:
            raise InvalidData(f"image_column is {wanted!r}, but the data has {', '.join(columns)}: name one of those")
        return wanted
    if _COLUMN in columns:
        return _COLUMN
    pictures = [name for name in columns if any(isinstance(cell, bytes) for cell in features[name].iloc[:1])]
    if len(columns) == 1:
        return columns[0] if pictures or features.empty else None
    if pictures:
        raise InvalidData(
            f"the data has several columns ({', '.join(columns)}) and none is called {_COLUMN!r}: "
            f"give evaluator_config={{'image_column': {pictures[0]!r}}}"
        )
    return None


def _check(config: Mapping[str, Any]) -> None:
    unknown = sorted(set(config) - {*_SETTINGS, *_OF_MLFLOW})
    if unknown:
        raise InvalidSetting(f"evaluator_config has unknown {', '.join(unknown)}; it may hold {', '.join(_SETTINGS)}")
    seed = config.get("seed", 0)
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise InvalidSetting(f"evaluator_config has seed={seed!r}; give a whole number of at least 0")


def _photos(pictures: pd.Series[Any], dataset: Any) -> list[LabelledImage]:
    from catdog_pyfunc.pipeline.evaluation.evaluation import LabelledImage

    if not dataset.has_targets:
        raise InvalidData("the data has no labels: name their column, as in targets='label'")
    labels = pd.Series(dataset.labels_data)
    missing = int(labels.isna().sum())
    if missing:
        raise InvalidData(f"{missing} of {len(labels)} rows have no label: give each picture its class, or leave them out")
    rows = zip(pictures.index, pictures, labels, strict=True)
    return [LabelledImage(f"row {index}", str(label), partial(_same, cell)) for index, cell, label in rows]


def _same(cell: Any) -> Any:
    return cell


def _asking(model: Any, column: str) -> Predictor:
    from catdog_pyfunc.pipeline.evaluation.predictors import function_predictor, pyfunc_predictor

    return pyfunc_predictor(model, column) if isinstance(model, PyFuncModel) else function_predictor(model.predict, column)


def _artifacts(paths: Mapping[str, str]) -> dict[str, EvaluationArtifact]:
    kinds = {".png": ImageEvaluationArtifact, ".csv": CsvEvaluationArtifact}
    return {name: kinds[path[-4:]](mlflow.get_artifact_uri(path)) for name, path in paths.items()}  # type: ignore[no-untyped-call]
