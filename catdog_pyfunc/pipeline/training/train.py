"""Trains a classifier: images → embeddings → head → maybe fine-tuning → a logged, evaluated and registered model."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import mlflow
from mlflow.data.dataset import Dataset as MlflowDataset

from catdog_pyfunc import flavor, internals
from catdog_pyfunc.bundle import Description
from catdog_pyfunc.errors import InvalidSetting
from catdog_pyfunc.pipeline import interrupted, tracking
from catdog_pyfunc.pipeline.console import log
from catdog_pyfunc.pipeline.data import catalog
from catdog_pyfunc.pipeline.data.corrections import file_digest, read_corrections
from catdog_pyfunc.pipeline.data.dataset import SPLITS, Dataset
from catdog_pyfunc.pipeline.evaluation.evaluation import Evaluation, evaluate, labelled_images
from catdog_pyfunc.pipeline.evaluation.predictors import classifier_predictor
from catdog_pyfunc.pipeline.evaluation.reference import write_reference
from catdog_pyfunc.pipeline.evaluation.runs import log_evaluation
from catdog_pyfunc.pipeline.processes import rank_and_size
from catdog_pyfunc.pipeline.registry import versions
from catdog_pyfunc.pipeline.tracking import ui
from catdog_pyfunc.pipeline.training import model_card
from catdog_pyfunc.pipeline.training.backbones import Backbone, load_backbone
from catdog_pyfunc.pipeline.training.config import TrainingConfig
from catdog_pyfunc.pipeline.training.fit import FitResult, fit
from catdog_pyfunc.pipeline.training.near_duplicates import Leaks
from catdog_pyfunc.pipeline.training.quantization import quantized_graph

_VERIFICATION_IMAGES = 16  # on which PyTorch and ONNX Runtime must agree before anything is saved


@dataclass(frozen=True)
class TrainingResult:
    """The outcome of a training run.

    Attributes:
        run_id: Id of the MLflow run.
        model_uri: `runs:/<run_id>/model`.
        evaluation: Evaluation on the test split, through the logged model.
        version: Number of the registered version; None without registration.
    """

    run_id: str
    model_uri: str
    evaluation: Evaluation
    version: str | None


def train(config: TrainingConfig) -> TrainingResult:
    """Train, log, evaluate and register a classifier.

    Works in the active MLflow run. Without one it starts a run, and ends it as FINISHED, FAILED, or KILLED on Ctrl-C and
    SIGTERM. The run is named after the parameters unless it has a name of its own. Under torchrun this is for rank 0, while
    the other ranks call `finetuning.assist`.

    Args:
        config: Parameters of the training run.

    Returns:
        The run, the model and how good it is.

    Raises:
        InvalidSetting: The backbone is unknown or has no globally pooled features, or torchrun's processes cannot share the
            fine-tuning.
        InvalidData: The dataset cannot be trained on.
        InvalidWeights: The weights are not available or belong to another network.
        EnginesDisagree: The trained network cannot be served; nothing was saved.
        TrackingError: The tracking store cannot be reached or written.

    Example:
        >>> from catdog_pyfunc.pipeline.training.config import TrainingConfig
        >>> from catdog_pyfunc.pipeline.training.train import train
        >>> result = train(TrainingConfig(data="photos", weights="weights.pth"))
        >>> result.evaluation.classes
        ('cat', 'dog')
        >>> print(f"models:/CatDogClassifier/{result.version}")
        models:/CatDogClassifier/1
    """
    rank, size = rank_and_size()
    if rank > 0:
        raise InvalidSetting(f"train was called in rank {rank} of torchrun; call it in rank 0, and assist in the others")
    config.check_processes(size)
    with tracking.active_or_new_run() as active, contextlib.ExitStack() as stack:
        if size > 1:  # torchrun kills a rank that waits for one that is lost, and the run would stay RUNNING
            stack.enter_context(interrupted.marked_if_process_dies(active.info.run_id))
        _log_start(config, active, size)
        return _train(config.resolved(), active.info.run_id)


def _train(config: TrainingConfig, run_id: str) -> TrainingResult:
    dataset = _load_dataset(config, run_id)
    backbone = _load_backbone(config, dataset)
    fitted = fit(config, dataset, backbone)
    dataset = fitted.dataset
    logged_dataset = _log_data(dataset)
    _log_leaks(fitted.leaks)
    description = _describe(config, fitted, backbone, run_id)
    reference = fitted.reference_embeddings
    graph = quantized_graph(backbone.network, description, reference, dataset, config.seed) if config.quantize else None
    description = replace(description, quantized=graph is not None)
    log("saving the model")
    images = _verification_images(dataset)
    info = flavor.log_model(backbone.network, description, reference, images=images, graph=graph)
    classifier = flavor.load_model(info.model_uri)
    predict = classifier_predictor(classifier)
    evaluation = evaluate(predict, labelled_images(dataset, "test"), classes=description.classes, seed=config.seed)
    log_evaluation(evaluation, predict, "test", info.model_id, logged_dataset)
    params = {**asdict(config), "weights": backbone.weights, "image_size": backbone.preprocess.size}
    card = model_card.write_card(description, dataset, evaluation, run_id, classifier.digest, params, fitted.leaks)
    _log_with_model(card, dataset, evaluation, classifier.digest, info.model_id)
    version = str(versions.register(run_id, config.registered_model).version) if config.registered_model else None
    return TrainingResult(run_id, f"runs:/{run_id}/model", evaluation, version)


def _log_start(config: TrainingConfig, active: mlflow.ActiveRun, processes: int) -> None:
    tracking.name_run(config.title())
    tracking.log_params({key: value for key, value in asdict(config).items() if key != "resume"})
    mlflow.log_params({**tracking.environment_params(), "system.processes": processes})
    mlflow.set_tag("author", versions.author())
    ui.set_up_experiment_page(active.info.experiment_id)


def _load_dataset(config: TrainingConfig, run_id: str) -> Dataset:
    given = {"exclude": config.exclude, "relabel": config.relabel}
    files = {name: Path(file).expanduser() for name, file in given.items() if file}
    corrections = read_corrections(files)
    dataset = catalog.load_dataset(config.data, corrections=corrections)
    if not files:
        return dataset
    corrected_by = {name: _log_corrections(name, file, run_id) for name, file in files.items()}
    relabelled, excluded = len(corrections.labels), len(corrections.excluded)
    mlflow.log_params({"data.relabelled": relabelled, "data.excluded": excluded})
    log(
        f"{relabelled} images relabelled and {excluded} left out, in test, too: the gate will decide on the corrected labels"
    )
    return replace(dataset, corrected_by=corrected_by)


def _log_corrections(name: str, file: Path, run_id: str) -> str:
    """Log a file of corrections and its digest; the artifact's URI."""
    mlflow.log_param(f"{name}.digest", file_digest(file))
    known = f"{name}{file.suffix if file.suffix in ('.json', '.parquet') else '.csv'}"
    with tempfile.TemporaryDirectory() as scratch:  # MLflow could not download a name with "#" or "%"
        mlflow.log_artifact(shutil.copy(str(file), str(Path(scratch, known))), "data")
    return f"runs:/{run_id}/data/{known}"


def _load_backbone(config: TrainingConfig, dataset: Dataset) -> Backbone:
    size = config.image_size or None
    backbone = load_backbone(config.backbone, config.weights, len(dataset.classes), config.seed, size)
    mlflow.log_params({"weights.used": backbone.weights, "weights.digest": backbone.digest})
    mlflow.log_params({f"preprocess.{key}": value for key, value in backbone.preprocess.to_dict().items()})
    return backbone


def _log_data(dataset: Dataset) -> MlflowDataset:
    """Log all three splits; returns the test split, which the metrics are about."""
    logged = {split: tracking.log_dataset(dataset, split) for split in SPLITS}
    mlflow.set_tag("data.digest", dataset.digest())
    mlflow.log_params({"data.digest": dataset.digest(), "data.classes": ", ".join(dataset.classes)[:500]})
    if dataset.problems:
        mlflow.log_text("\n".join(dataset.problems) + "\n", "data/problems.txt")
        log(f"{len(dataset.problems)} problems with the data (data/problems.txt in the run), such as: {dataset.problems[0]}")
    return logged["test"]


def _log_leaks(leaks: Leaks | None) -> None:
    if leaks is None:
        return
    mlflow.log_metric("data/near_duplicates", leaks.count)
    if leaks.pairs:
        example, other = leaks.pairs[0]
        log(f"{leaks.summary()}, such as {example.path} and {other.path}: see `catdog audit`")


def _describe(config: TrainingConfig, fitted: FitResult, backbone: Backbone, run_id: str) -> Description:
    provenance = {
        "run_id": run_id,
        "data_digest": fitted.dataset.digest(),
        "weights": backbone.weights,
        "weights_digest": backbone.digest,
        "seed": config.seed,
    }
    classes, spec = fitted.dataset.classes, backbone.preprocess
    return Description(backbone.name, classes, spec, fitted.temperature, fitted.ood_threshold, provenance=provenance)


def _verification_images(dataset: Dataset) -> list[bytes]:
    """Training images, evenly over all classes."""
    examples = dataset.splits["train"]
    count = min(len(examples), _VERIFICATION_IMAGES)
    return [examples[k * len(examples) // count].path.read_bytes() for k in range(count)]


def _log_with_model(card: str, dataset: Dataset, evaluation: Evaluation, digest: str, model_id: str) -> None:
    """Add to the model what only its evaluation could tell."""
    mlflow.log_text(card, model_card.FILE_NAME)
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / model_card.FILE_NAME).write_text(card, encoding="utf-8")
        sizes = [example.path.stat().st_size for example in dataset.splits["test"]]
        write_reference(Path(scratch), evaluation.predictions, sizes, digest)
        mlflow.MlflowClient().log_model_artifacts(model_id, scratch)
    mlflow.set_tag(internals.NOTE_TAG, card)
