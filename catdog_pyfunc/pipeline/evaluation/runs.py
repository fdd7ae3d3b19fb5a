"""Evaluates a model in an MLflow run, and logs what every evaluation leaves there."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import mlflow
import pandas as pd
from mlflow.data.dataset import Dataset as MlflowDataset
from mlflow.entities import LoggedModelInput
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import PyFuncModel

from catdog_pyfunc import flavor, internals
from catdog_pyfunc.errors import InvalidSetting, ModelFailed, first_line
from catdog_pyfunc.pipeline import tracking
from catdog_pyfunc.pipeline.console import log, text_table
from catdog_pyfunc.pipeline.data import catalog
from catdog_pyfunc.pipeline.data.dataset import ALL, SPLITS
from catdog_pyfunc.pipeline.evaluation import plots
from catdog_pyfunc.pipeline.evaluation.evaluation import Evaluation, evaluate, labelled_images
from catdog_pyfunc.pipeline.evaluation.galleries import gallery, small_png
from catdog_pyfunc.pipeline.evaluation.predictors import Predictor, pyfunc_predictor
from catdog_pyfunc.pipeline.evaluation.stress import StressTest, stratified_sample, stress_test

ARTIFACTS = {
    **{name: f"plots/{name}.png" for name in ("confusion_matrix", "roc", "reliability", "confidence")},
    **{name: f"images/{name}.png" for name in ("worst_mistakes", "least_confident")},
    "metrics": "tables/metrics.csv",
}
"""Artifacts of every evaluation: name → path in the run."""


@dataclass(frozen=True)
class EvaluationConfig:
    """A model and the images to evaluate it on.

    Attributes:
        model_uri: Model that returns label and confidence: models:/NAME@ALIAS, models:/NAME/VERSION, runs:/RUN_ID/model or a
            folder.
        data: Folder with one sub-folder per class, "sample" or "oxford-iiit-pet".
        split: Split of the data: "train", "val", "test" or "all".
        seed: Seed of the bootstrap intervals and of the corruptions.
        stress: Whether to evaluate under 12 corruptions at 3 severities, too.
        stress_images: At most how many readable images to corrupt; a larger split is sampled, each class in proportion.
    """

    model_uri: str = "models:/CatDogClassifier@production"
    data: str = catalog.SAMPLE
    split: str = "test"
    seed: int = 0
    stress: bool = False
    stress_images: int = 200

    def __post_init__(self) -> None:
        if self.split not in (*SPLITS, ALL):
            raise InvalidSetting(f"split is {self.split!r}; give one of {', '.join((*SPLITS, ALL))}")
        if self.seed < 0:
            raise InvalidSetting(f"seed is {self.seed}; give 0 or more")
        if self.stress_images < 1:
            raise InvalidSetting(f"stress_images is {self.stress_images}; give 1 or more")


def evaluate_model(config: EvaluationConfig) -> Evaluation:
    """Evaluate a model in the active run, or in a run of its own if none is active, and link the run to the model.

    Args:
        config: The model and the images.

    Returns:
        The evaluation, whose metrics, plots and galleries are in the run.

    Raises:
        RegistryError: There is no such model.
        ModelFailed: The model cannot be loaded, raises, or returns predictions that cannot be used.
        InvalidData: The data cannot be used, or has classes that the model does not know.
        TrackingError: The tracking store cannot be reached or written.
    """
    with tracking.active_or_new_run():
        tracking.log_params(asdict(config))
        with _loaded(config.model_uri) as model:
            return _evaluate(config, model)


def _evaluate(config: EvaluationConfig, model: PyFuncModel) -> Evaluation:
    dataset = catalog.load_dataset(config.data, config.split)
    mlflow_dataset = tracking.log_dataset(dataset, config.split)
    identity = _identity(config.model_uri, model)
    mlflow.set_tags({**identity, "data.digest": dataset.digest(config.split)})
    tracking.set_parent_run(model.metadata.run_id)
    name = f"v{identity['model.version']}" if "model.version" in identity else Path(config.model_uri).name
    tracking.name_run(f"evaluate {name} on {Path(dataset.source).name}")
    model_id = link_model(model)
    predict = pyfunc_predictor(model)
    evaluation = evaluate(predict, labelled_images(dataset, config.split), seed=config.seed)
    log_evaluation(evaluation, predict, config.split, model_id, mlflow_dataset)
    if config.stress:
        test = _stress_test(config, predict, evaluation)
        mlflow.log_metrics(
            {f"stress/{name}": value for name, value in test.means().items()}, model_id=model_id, dataset=mlflow_dataset
        )
        _log_stress_test(test)
    return evaluation


def _stress_test(config: EvaluationConfig, predict: Predictor, evaluation: Evaluation) -> StressTest:
    readable = [image for image, p in zip(evaluation.images, evaluation.predictions, strict=True) if p.label is not None]
    images = stratified_sample(readable, config.stress_images, config.seed)
    log(f"stress test on {len(images)} of {len(readable)} readable images")
    return stress_test(predict, images, evaluation.classes, config.seed)


def _log_stress_test(test: StressTest) -> None:
    table = test.table()
    mlflow.log_figure(plots.stress(test), "plots/stress.png", save_kwargs={"dpi": 120})
    mlflow.log_text(table.to_csv(index=False, float_format="%.6f", lineterminator="\n"), "tables/stress.csv")
    shown = table[["corruption", "severity", *test.metrics]].round(4).astype(str)
    log(text_table([list(shown.columns), *shown.to_numpy().tolist()]))
    log(f"accuracy under corruptions: {test.accuracy}; without: {test.baseline.accuracy}")


def link_model(model: PyFuncModel) -> str | None:
    """Make a model an input of the active run.

    Args:
        model: A model that `mlflow.pyfunc.load_model` returned.

    Returns:
        The id of the logged model; None if it is unknown to this tracking store and cannot be linked.
    """
    active = mlflow.active_run()
    if active is None or model.model_id is None:
        return None
    client = mlflow.MlflowClient()
    try:
        client.get_logged_model(model.model_id)
        client.log_inputs(active.info.run_id, models=[LoggedModelInput(model.model_id)])
    except MlflowException:  # logged to another store, and brought here as a folder
        return None
    return str(model.model_id)


def log_evaluation(
    evaluation: Evaluation,
    predict: Predictor,
    prefix: str,
    model_id: str | None = None,
    dataset: MlflowDataset | None = None,
) -> None:
    """Log metrics, plots, galleries and a table of all metrics with their intervals to the active run.

    Args:
        evaluation: The evaluation.
        predict: The model, for the heat maps of the galleries.
        prefix: First part of each metric's name: "train", "val", "test" or "all".
        model_id: Id of the logged model, which shows the metrics, too.
        dataset: The dataset that these metrics belong to.
    """
    mlflow.log_metrics(evaluation.metrics(prefix), model_id=model_id, dataset=dataset)
    log_artifacts(evaluation, predict)


def log_artifacts(evaluation: Evaluation, predict: Predictor) -> None:
    """Log plots, galleries and the table of metrics (`ARTIFACTS`) to the active run.

    Args:
        evaluation: The evaluation.
        predict: The model, for the heat maps of the galleries.
    """
    for plot in (plots.confusion_matrix, plots.roc, plots.reliability, plots.confidence):
        mlflow.log_figure(plot(evaluation), ARTIFACTS[plot.__name__], save_kwargs={"dpi": 120})
    worst = gallery(evaluation.mistakes, predict, "Worst mistakes, most confident first", "No mistakes")
    doubtful = gallery(evaluation.least_confident, predict, "Least confident predictions", "No readable images")
    mlflow.log_image(small_png(worst), ARTIFACTS["worst_mistakes"])
    mlflow.log_image(small_png(doubtful), ARTIFACTS["least_confident"])
    mlflow.log_text(_metrics_table(evaluation), ARTIFACTS["metrics"])


@contextlib.contextmanager
def _loaded(model_uri: str) -> Iterator[PyFuncModel]:
    with flavor.downloaded_model(model_uri) as folder:  # kept while in use: a model may read its files at any time
        try:
            model = mlflow.pyfunc.load_model(str(folder))
        except Exception as failure:  # a third-party model may raise anything
            raise ModelFailed(
                f"model {model_uri} cannot be loaded: {type(failure).__name__}: {first_line(failure)}"
            ) from failure
        yield model


def _identity(model_uri: str, model: PyFuncModel) -> dict[str, str]:
    tags = {"model.uri": model_uri}
    if model_uri.startswith("models:/") and not model_uri.startswith("models:/m-"):
        with contextlib.suppress(MlflowException):  # the model has been found before; tags are not worth a failure
            name, version = internals.registered_version(mlflow.MlflowClient(), model_uri)
            tags |= {"model.name": name, "model.version": version}
    digest = (model.metadata.metadata or {}).get("bundle_digest")
    return {**tags, "bundle.digest": digest} if digest else tags


def _metrics_table(evaluation: Evaluation) -> str:
    rows = [{"metric": name, **asdict(estimate)} for name, estimate in evaluation.estimates.items()]
    latencies = {name: getattr(evaluation, name) for name in ("latency_p50_ms", "latency_p99_ms")}
    rows += [{"metric": name, "value": value} for name, value in latencies.items() if value is not None]
    frame = pd.DataFrame(rows, columns=["metric", "value", "low", "high", "n"]).astype({"n": "Int64"})
    return str(frame.to_csv(index=False, float_format="%.6f", lineterminator="\n"))
