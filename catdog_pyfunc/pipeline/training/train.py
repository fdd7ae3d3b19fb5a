"""The main job: photos → embeddings → head → maybe fine-tuning → logged, measured and registered model."""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import mlflow
from mlflow.data.dataset import Dataset as TrackedDataset

from catdog_pyfunc import flavor, internals
from catdog_pyfunc.bundle import Description
from catdog_pyfunc.pipeline import tracking
from catdog_pyfunc.pipeline.console import log
from catdog_pyfunc.pipeline.data import catalog
from catdog_pyfunc.pipeline.data.dataset import SPLITS, Dataset
from catdog_pyfunc.pipeline.evaluation.evaluation import Evaluation, evaluate, labelled_images
from catdog_pyfunc.pipeline.evaluation.predictors import classifier_predictor
from catdog_pyfunc.pipeline.evaluation.runs import log_evaluation
from catdog_pyfunc.pipeline.registry import versions
from catdog_pyfunc.pipeline.tracking import ui
from catdog_pyfunc.pipeline.training import model_card
from catdog_pyfunc.pipeline.training.backbones import Backbone, load_backbone
from catdog_pyfunc.pipeline.training.config import TrainingConfig
from catdog_pyfunc.pipeline.training.fit import FitResult, fit

_AGREEMENT_PICTURES = 16  # on which the two engines must agree before anything is saved


@dataclass(frozen=True)
class TrainingResult:
    """What came of a training.

    Attributes:
        run_id: The MLflow run.
        model_uri: `runs:/<RUN_ID>/model`.
        evaluation: On the test split, through the logged artifact.
        version: The registered version's number; None if it wasn't registered.
    """

    run_id: str
    model_uri: str
    evaluation: Evaluation
    version: str | None


def train(config: TrainingConfig) -> TrainingResult:
    """Do the whole job in the active run (see `tracking.run`).

    Args:
        settings: What to do.

    Returns:
        What came of it.

    Raises:
        InvalidSetting: A setting, or the backbone, can't be used.
        InvalidData: The data can't be trained on.
        InvalidWeights: The weights can't be had or don't fit.
        EnginesDisagree: The trained network can't be served; nothing was saved.
    """
    active = mlflow.active_run()
    assert active is not None
    tracking.name_run(config.title())
    tracking.log_params({key: value for key, value in asdict(config).items() if key != "resume"})
    mlflow.log_params(tracking.environment_params())
    mlflow.set_tag("author", versions.author())
    ui.set_up_experiment_page(active.info.experiment_id)
    config = config.resolved()
    dataset = catalog.load_dataset(config.data)
    backbone = _open_backbone(config, dataset)
    fitted = fit(config, dataset, backbone)
    dataset = fitted.dataset
    tracked = _log_data(dataset)
    description = _describe(config, fitted, backbone, active.info.run_id)
    log("saving the model")
    info = flavor.log_model(backbone.network, description, fitted.reference, images=_pictures(dataset))
    classifier = flavor.load_model(info.model_uri)
    predict = classifier_predictor(classifier)
    evaluation = evaluate(predict, labelled_images(dataset, "test"), classes=description.classes, seed=config.seed)
    log_evaluation(evaluation, predict, "test", info.model_id, tracked)
    params = {**asdict(config), "weights": backbone.weights, "image_size": backbone.preprocess.size}
    text = model_card.write_card(description, dataset, evaluation, active.info.run_id, classifier.digest, params)
    _log_card(text, info.model_id)
    version = versions.register(active.info.run_id, config.registered_model).version if config.registered_model else None
    return TrainingResult(
        active.info.run_id, f"runs:/{active.info.run_id}/model", evaluation, str(version) if version else None
    )


def _open_backbone(config: TrainingConfig, dataset: Dataset) -> Backbone:
    size = config.image_size or None
    backbone = load_backbone(config.backbone, config.weights, len(dataset.classes), config.seed, size)
    mlflow.log_params({"weights.used": backbone.weights, "weights.digest": backbone.digest})
    mlflow.log_params({f"preprocess.{key}": value for key, value in backbone.preprocess.to_dict().items()})
    return backbone


def _log_data(dataset: Dataset) -> TrackedDataset:
    """Log all three splits; the test split is what the figures are of."""
    tracked = {split: tracking.log_dataset(dataset, split) for split in SPLITS}
    mlflow.set_tag("data.digest", dataset.digest())
    mlflow.log_params({"data.digest": dataset.digest(), "data.classes": ", ".join(dataset.classes)[:500]})
    if dataset.problems:
        mlflow.log_text("\n".join(dataset.problems) + "\n", "data/left_out.txt")
        log(f"{len(dataset.problems)} problems with the data (data/left_out.txt in the run), such as: {dataset.problems[0]}")
    return tracked["test"]


def _describe(config: TrainingConfig, fitted: FitResult, backbone: Backbone, run_id: str) -> Description:
    provenance = {
        "run_id": run_id,
        "data_digest": fitted.dataset.digest(),
        "weights": backbone.weights,
        "weights_digest": backbone.digest,
        "seed": config.seed,
    }
    classes, spec = fitted.dataset.classes, backbone.preprocess
    return Description(backbone.name, classes, spec, fitted.temperature, fitted.threshold, provenance)


def _pictures(dataset: Dataset) -> list[bytes]:
    """Training pictures, evenly over all classes."""
    examples = dataset.splits["train"]
    count = min(len(examples), _AGREEMENT_PICTURES)
    return [examples[k * len(examples) // count].path.read_bytes() for k in range(count)]


def _log_card(text: str, model_id: str) -> None:
    mlflow.log_text(text, model_card.CARD)
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / model_card.CARD).write_text(text, encoding="utf-8")
        mlflow.MlflowClient().log_model_artifacts(model_id, scratch)
    mlflow.set_tag(internals.NOTE_TAG, text)
