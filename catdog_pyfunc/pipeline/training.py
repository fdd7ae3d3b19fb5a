"""The main job: photos → embeddings → head → maybe fine-tuning → logged, measured and registered model."""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import mlflow
from mlflow.data.dataset import Dataset as TrackedDataset

from catdog_pyfunc import flavor
from catdog_pyfunc.bundle import Description
from catdog_pyfunc.pipeline import card, registry, sources, tracking, views
from catdog_pyfunc.pipeline.answers import ask_classifier
from catdog_pyfunc.pipeline.backbone import Backbone, load_backbone
from catdog_pyfunc.pipeline.data import SIDES, Dataset
from catdog_pyfunc.pipeline.evaluation import Evaluation, evaluate, photos_of
from catdog_pyfunc.pipeline.learning import Learned, learn
from catdog_pyfunc.pipeline.measuring import log_evaluation
from catdog_pyfunc.pipeline.progress import say
from catdog_pyfunc.pipeline.settings import Settings

_AGREEMENT_PICTURES = 16  # on which the two engines must agree before anything is saved


@dataclass(frozen=True)
class Result:
    """What came of a training.

    Attributes:
        run_id: The MLflow run.
        model_uri: `runs:/<RUN_ID>/model`.
        evaluation: On the test side, through the logged artifact.
        version: The registered version's number; None if it wasn't registered.
    """

    run_id: str
    model_uri: str
    evaluation: Evaluation
    version: str | None


def train(settings: Settings) -> Result:
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
    tracking.name_run(settings.title())
    tracking.log_params({key: value for key, value in asdict(settings).items() if key != "resume"})
    mlflow.log_params(tracking.system_facts())
    mlflow.set_tag("author", registry.author())
    views.furnish(active.info.experiment_id)
    settings = settings.resolved()
    dataset = sources.open_data(settings.data)
    backbone = _open_backbone(settings, dataset)
    learned = learn(settings, dataset, backbone)
    dataset = learned.dataset
    tracked = _log_data(dataset)
    description = _describe(settings, learned, backbone, active.info.run_id)
    say("saving the model")
    info = flavor.log_model(backbone.network, description, learned.reference, pictures=_pictures(dataset))
    classifier = flavor.load_model(info.model_uri)
    ask = ask_classifier(classifier)
    evaluation = evaluate(ask, photos_of(dataset, "test"), classes=description.classes, seed=settings.seed)
    log_evaluation(evaluation, ask, "test", info.model_id, tracked)
    params = {**asdict(settings), "weights": backbone.weights, "image_size": backbone.preprocess.size}
    text = card.write_card(description, dataset, evaluation, active.info.run_id, classifier.bundle.digest, params)
    _log_card(text, info.model_id)
    version = registry.register(active.info.run_id, settings.register).version if settings.register else None
    return Result(active.info.run_id, f"runs:/{active.info.run_id}/model", evaluation, str(version) if version else None)


def _open_backbone(settings: Settings, dataset: Dataset) -> Backbone:
    size = settings.image_size or None
    backbone = load_backbone(settings.backbone, settings.weights, len(dataset.classes), settings.seed, size)
    mlflow.log_params({"weights.used": backbone.weights, "weights.digest": backbone.digest})
    mlflow.log_params({f"preprocess.{key}": value for key, value in backbone.preprocess.to_dict().items()})
    return backbone


def _log_data(dataset: Dataset) -> TrackedDataset:
    """Log all three sides; the test side is what the figures are of."""
    tracked = {side: tracking.log_dataset(dataset, side) for side in SIDES}
    mlflow.set_tag("data.digest", dataset.digest())
    mlflow.log_params({"data.digest": dataset.digest(), "data.classes": ", ".join(dataset.classes)[:500]})
    if dataset.problems:
        mlflow.log_text("\n".join(dataset.problems) + "\n", "data/left_out.txt")
        say(f"{len(dataset.problems)} problems with the data (data/left_out.txt in the run), such as: {dataset.problems[0]}")
    return tracked["test"]


def _describe(settings: Settings, learned: Learned, backbone: Backbone, run_id: str) -> Description:
    provenance = {
        "run_id": run_id,
        "data_digest": learned.dataset.digest(),
        "weights": backbone.weights,
        "weights_digest": backbone.digest,
        "seed": settings.seed,
    }
    classes, spec = learned.dataset.classes, backbone.preprocess
    return Description(backbone.name, classes, spec, learned.temperature, learned.threshold, provenance)


def _pictures(dataset: Dataset) -> list[bytes]:
    """Training pictures, evenly over all classes."""
    examples = dataset.sides["train"]
    count = min(len(examples), _AGREEMENT_PICTURES)
    return [examples[k * len(examples) // count].path.read_bytes() for k in range(count)]


def _log_card(text: str, model_id: str) -> None:
    mlflow.log_text(text, card.CARD)
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / card.CARD).write_text(text, encoding="utf-8")
        mlflow.MlflowClient().log_model_artifacts(model_id, scratch)
    mlflow.set_tag("mlflow.note.content", text)
