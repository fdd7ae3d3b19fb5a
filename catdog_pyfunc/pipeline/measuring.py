"""Measuring a model in a run of its own, and what every measurement leaves in its run."""

from __future__ import annotations

import mlflow

from catdog_pyfunc import flavor
from catdog_pyfunc.errors import InvalidData
from catdog_pyfunc.pipeline import figures, sources, tracking
from catdog_pyfunc.pipeline.data import SIDES
from catdog_pyfunc.pipeline.evaluation import Evaluation, evaluate


def measure(model_uri: str, data: str, side: str = "test") -> Evaluation:
    """Evaluate a model in the active run (see `tracking.run`).

    Args:
        model_uri: Of a model that this project logged.
        data: A folder, "sample" or "oxford-iiit-pet".
        side: "train", "val" or "test".

    Returns:
        The evaluation.

    Raises:
        RegistryError: No such model.
        InvalidData: The data can't be used, or has classes that the model doesn't know.
    """
    if side not in SIDES:
        raise InvalidData(f"side {side!r} is not known: give one of {', '.join(SIDES)}")
    tracking.log_params({"model_uri": model_uri, "data": data, "side": side})
    classifier = flavor.load_model(model_uri)
    dataset = sources.open_data(data)
    tracking.log_dataset(dataset, side)
    mlflow.set_tags({"data.digest": dataset.digest(side), "bundle.digest": classifier.bundle.digest})
    evaluation = evaluate(classifier, dataset.sides[side], dataset.classes)
    log_evaluation(evaluation, side)
    return evaluation


def log_evaluation(evaluation: Evaluation, side: str, model_id: str | None = None) -> None:
    """Log metrics, confusion matrix and the worst mistakes to the active run.

    Args:
        evaluation: What was measured.
        side: "train", "val" or "test": the first part of every metric's name.
        model_id: Of the logged model that was measured, for the Models tab.
    """
    mlflow.log_metrics(evaluation.metrics(side), model_id=model_id)
    mlflow.log_figure(figures.confusion_matrix(evaluation), "plots/confusion_matrix.png")
    mlflow.log_figure(figures.reliability_diagram(evaluation.calibration), "plots/reliability.png")
    mlflow.log_figure(figures.mistakes_gallery(evaluation.mistakes), "pictures/worst_mistakes.png")
