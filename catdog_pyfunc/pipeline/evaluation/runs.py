"""Measuring a model in a run of its own, and what every measurement leaves in its run."""

from __future__ import annotations

import contextlib
import csv
import io
import math
from collections.abc import Iterator
from pathlib import Path

import mlflow
from mlflow.data.dataset import Dataset as TrackedDataset
from mlflow.entities import LoggedModelInput
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import PyFuncModel

from catdog_pyfunc import flavor, internals
from catdog_pyfunc.errors import CatDogError, InvalidData, ModelFailed
from catdog_pyfunc.pipeline import tracking
from catdog_pyfunc.pipeline.data import catalog
from catdog_pyfunc.pipeline.data.dataset import ALL, SPLITS
from catdog_pyfunc.pipeline.evaluation import plots
from catdog_pyfunc.pipeline.evaluation.evaluation import Evaluation, evaluate, labelled_images
from catdog_pyfunc.pipeline.evaluation.galleries import gallery, small_png
from catdog_pyfunc.pipeline.evaluation.predictors import Predictor, pyfunc_predictor

ARTIFACTS = {
    **{name: f"plots/{name}.png" for name in ("confusion_matrix", "roc", "reliability", "confidence")},
    **{name: f"pictures/{name}.png" for name in ("worst_mistakes", "least_sure")},
    "metrics": "tables/metrics.csv",
}
"""What every evaluation leaves in its run: name → path."""


def measure(model_uri: str, data: str, split: str = "test") -> Evaluation:
    """Evaluate a model in the active run (see `tracking.run`), and link the run to the model.

    Args:
        model_uri: Of any pyfunc that answers pictures with `label` and `confidence`.
        data: A folder, "sample" or "oxford-iiit-pet"; a folder needs pictures only in `split`.
        split: "train", "val", "test", or "all" for every picture there is.

    Returns:
        The evaluation.

    Raises:
        RegistryError: No such model.
        ModelFailed: The model can't be loaded, or fails.
        InvalidData: The data can't be used, or has classes that the model doesn't know.
    """
    if split not in (*SPLITS, ALL):
        raise InvalidData(f"split {split!r} is not known: give one of {', '.join((*SPLITS, ALL))}")
    tracking.log_params({"model_uri": model_uri, "data": data, "split": split})
    with _loaded(model_uri) as model:
        dataset = catalog.load_dataset(data, split)
        tracked = tracking.log_dataset(dataset, split)
        identity = _identity(model_uri, model)
        mlflow.set_tags({**identity, "data.digest": dataset.digest(split)})
        tracking.set_parent_run(model.metadata.run_id)
        called = f"v{identity['model.version']}" if "model.version" in identity else Path(model_uri).name
        tracking.name_run(f"evaluate {called} on {Path(dataset.source).name}")
        model_id = link(model)
        predict = pyfunc_predictor(model)
        evaluation = evaluate(predict, labelled_images(dataset, split))
        log_evaluation(evaluation, predict, split, model_id, tracked)
        return evaluation


def link(model: PyFuncModel) -> str | None:
    """Make a model an input of the active run.

    Args:
        model: As `mlflow.pyfunc.load_model` gives it.

    Returns:
        The logged model's id; None if this tracking store has no such model, so that nothing can be linked.
    """
    active = mlflow.active_run()
    if active is None or model.model_id is None:
        return None
    client = mlflow.MlflowClient()
    try:
        client.get_logged_model(model.model_id)
        client.log_inputs(active.info.run_id, models=[LoggedModelInput(model.model_id)])
    except MlflowException:  # logged elsewhere: its folder may have come by any way
        return None
    return str(model.model_id)


def log_evaluation(
    evaluation: Evaluation,
    predict: Predictor,
    prefix: str,
    model_id: str | None = None,
    dataset: TrackedDataset | None = None,
) -> None:
    """Log metrics, plots, galleries and a table of all figures with their intervals to the active run.

    Args:
        evaluation: What was measured.
        ask: The model, for the heat maps of the pictures that are shown.
        prefix: "train", "val", "test" or "all": the first part of every metric's name.
        model_id: Of the logged model that was measured, for its page.
        dataset: What it was measured on, for the same.
    """
    mlflow.log_metrics(evaluation.metrics(prefix), model_id=model_id, dataset=dataset)
    log_artifacts(evaluation, predict)


def log_artifacts(evaluation: Evaluation, predict: Predictor) -> None:
    """Log plots, galleries and the table to the active run.

    Args:
        evaluation: What was measured.
        ask: The model, for the heat maps of the pictures that are shown.
    """
    drawn = {
        "confusion_matrix": plots.confusion_matrix,
        "roc": plots.roc,
        "reliability": plots.reliability,
        "confidence": plots.confidence,
    }
    for name, chart in drawn.items():
        mlflow.log_figure(chart(evaluation), ARTIFACTS[name], save_kwargs={"dpi": 120})
    worst = gallery(evaluation.mistakes, predict, "The worst mistakes, the most confident first", "There are no mistakes")
    doubtful = gallery(
        evaluation.least_sure, predict, "The answers that the model is least sure of", "No picture could be read"
    )
    mlflow.log_image(small_png(worst), ARTIFACTS["worst_mistakes"])
    mlflow.log_image(small_png(doubtful), ARTIFACTS["least_sure"])
    mlflow.log_text(_table(evaluation), ARTIFACTS["metrics"])


@contextlib.contextmanager
def _loaded(model_uri: str) -> Iterator[PyFuncModel]:
    with flavor.downloaded_model(model_uri) as folder:  # kept while in use: a model may read its files at any time
        try:
            model: PyFuncModel = mlflow.pyfunc.load_model(str(folder))
        except CatDogError:
            raise
        except Exception as failure:  # whatever third-party code raises
            reason = next(iter(str(failure).splitlines()), "")
            raise ModelFailed(f"model {model_uri} cannot be loaded: {type(failure).__name__}: {reason}") from failure
        yield model


def _identity(model_uri: str, model: PyFuncModel) -> dict[str, str]:
    tags = {"model.uri": model_uri}
    if model_uri.startswith("models:/") and not model_uri.startswith("models:/m-"):
        with contextlib.suppress(MlflowException):  # the model was there a moment ago; tags aren't worth a failure
            name, version = internals.registered_version(mlflow.MlflowClient(), model_uri)
            tags |= {"model.name": name, "model.version": version}
    digest = (model.metadata.metadata or {}).get("bundle_digest")
    return {**tags, "bundle.digest": digest} if digest else tags


def _table(evaluation: Evaluation) -> str:
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow(["metric", "value", "low", "high", "n"])
    for name, estimate in evaluation.estimates.items():
        figures = (estimate.value, estimate.low, estimate.high)
        writer.writerow([name, *("" if math.isnan(figure) else f"{figure:.6f}" for figure in figures), estimate.n])
    for name in ("latency_p50_ms", "latency_p99_ms"):
        if getattr(evaluation, name) is not None:
            writer.writerow([name, f"{getattr(evaluation, name):.3f}", "", "", ""])
    return lines.getvalue()
