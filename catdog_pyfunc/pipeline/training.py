"""The main job: photos → embeddings → head → maybe fine-tuning → logged, measured and registered model."""

from __future__ import annotations

import functools
import tempfile
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

import mlflow
import numpy as np
import onnxruntime

from catdog_pyfunc import flavor
from catdog_pyfunc.bundle import Description
from catdog_pyfunc.engine import OnnxEngine
from catdog_pyfunc.errors import InvalidSetting
from catdog_pyfunc.pipeline import card, figures, registry, sources, tracking
from catdog_pyfunc.pipeline.backbone import IMAGENET, NONE, Backbone, load_backbone
from catdog_pyfunc.pipeline.cache import cache_dir
from catdog_pyfunc.pipeline.data import SIDES, Dataset
from catdog_pyfunc.pipeline.embed import Embeddings, embed
from catdog_pyfunc.pipeline.evaluation import Evaluation, evaluate
from catdog_pyfunc.pipeline.finetune import Plan, find_broken, finetune
from catdog_pyfunc.pipeline.head import Head, Scores, fit_head
from catdog_pyfunc.pipeline.measuring import log_evaluation
from catdog_pyfunc.pipeline.progress import say

AUTO = "auto"
_AGREEMENT_PICTURES = 32  # on which the two engines must agree before anything is saved
_SAMPLE_SIZE = 96  # drawn pictures show all they have at this size, and train five times as fast as at 224
_SCRATCH_EPOCHS = 8
_SCRATCH_RATE, _PRETRAINED_RATE = 3e-3, 3e-4


@dataclass(frozen=True)
class Settings:
    """What the training is called with; every one makes the result.

    Attributes:
        data: A folder, "sample" or "oxford-iiit-pet".
        weights: "imagenet", a path, "none", or "auto": imagenet for photos, none for the sample.
        backbone: In `torchvision.models`.
        image_size: Side of the square that the network sees, pixels; 0 for the backbone's own (96 for the sample).
        flips: Whether the head also learns from mirrored pictures.
        finetune_epochs: How long the whole network is trained; -1 for 0 with pretrained weights and 8 without.
        learning_rate: Of fine-tuning; 0 for 3e-4 with pretrained weights and 3e-3 without.
        batch_size: Of fine-tuning.
        seed: Of all that is random.
        resume: Go on with the fine-tuning that was interrupted.
        register: The registered model that gets the new version; "" for none.
    """

    data: str = sources.SAMPLE
    weights: str = AUTO
    backbone: str = "mobilenet_v2"
    image_size: int = 0
    flips: bool = False
    finetune_epochs: int = -1
    learning_rate: float = 0.0
    batch_size: int = 16
    seed: int = 0
    resume: bool = False
    register: str = registry.NAME

    def __post_init__(self) -> None:
        least = {"image_size": 0, "finetune_epochs": -1, "learning_rate": 0.0, "batch_size": 2, "seed": 0}
        for name, limit in least.items():
            if getattr(self, name) < limit:
                raise InvalidSetting(f"{name} is {getattr(self, name)}; give at least {limit}")
        if 0 < self.image_size < 32:
            raise InvalidSetting(f"image_size is {self.image_size}; give 0 (the backbone's own) or at least 32")


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
    tracking.log_params({key: value for key, value in asdict(settings).items() if key != "resume"})
    mlflow.log_params(tracking.system_facts())
    mlflow.set_tag("author", registry.author())
    dataset = sources.open_data(settings.data)
    backbone = _open_backbone(settings, dataset)
    dataset = _learn(settings, dataset, backbone)
    _log_data(dataset)
    description = _describe(settings, dataset, backbone, active.info.run_id)
    say("saving the model")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Failed to infer|Add type hints", module="mlflow")
        info = flavor.log_model(backbone.network, description, pictures=_agreement_pictures(dataset), name="model")
    classifier = flavor.load_model(info.model_uri)
    evaluation = evaluate(classifier, dataset.sides["test"], dataset.classes)
    log_evaluation(evaluation, "test", info.model_id)
    params = {**asdict(settings), "weights": backbone.weights, "image_size": backbone.preprocess.size}
    text = card.write_card(description, dataset, evaluation, active.info.run_id, classifier.bundle.digest, params)
    _log_card(text, card.summary(evaluation, dataset), info.model_id)
    version = registry.register(active.info.run_id, settings.register).version if settings.register else None
    return Result(active.info.run_id, f"runs:/{active.info.run_id}/model", evaluation, str(version) if version else None)


def _open_backbone(settings: Settings, dataset: Dataset) -> Backbone:
    sample = settings.data == sources.SAMPLE
    weights = settings.weights
    if weights == AUTO:
        weights = NONE if sample else IMAGENET
    size = settings.image_size or (_SAMPLE_SIZE if sample else None)
    backbone = load_backbone(settings.backbone, weights, len(dataset.classes), settings.seed, size)
    mlflow.log_params({"weights.used": backbone.weights, "weights.digest": backbone.digest})
    mlflow.log_params({f"preprocess.{key}": value for key, value in backbone.preprocess.to_dict().items()})
    return backbone


def _learn(settings: Settings, dataset: Dataset, backbone: Backbone) -> Dataset:
    """Fit the head on a pretrained backbone, then train all if asked to; return the data less what is broken."""
    if backbone.pretrained:
        dataset = _learn_head(settings, dataset, backbone)
    else:  # random features know nothing that a head could learn from
        every = [example for side in SIDES for example in dataset.sides[side]]
        dataset = dataset.without(find_broken(every, backbone.preprocess))
    epochs = settings.finetune_epochs
    if epochs < 0:
        epochs = 0 if backbone.pretrained else _SCRATCH_EPOCHS
    if epochs:
        _learn_all(settings, dataset, backbone, epochs)
    return dataset


def _learn_head(settings: Settings, dataset: Dataset, backbone: Backbone) -> Dataset:
    cache = cache_dir() / "embeddings.sqlite"

    @functools.cache
    def engine() -> OnnxEngine:  # made only if a picture isn't in the cache
        description = Description(backbone.name, dataset.classes, backbone.preprocess)
        return OnnxEngine(flavor.export_graph(backbone.network, description))

    # What computes an embedding is part of its name: another ONNX Runtime may round otherwise.
    name = f"{backbone.digest}/onnxruntime-{onnxruntime.__version__}"

    def embedded(side: str, flip: bool = False) -> Embeddings:
        return embed(engine, dataset.sides[side], backbone.preprocess, cache=cache, backbone=name, flip=flip)

    # The test side, too: what is broken there must be known before anything is measured or saved.
    found = {side: embedded(side) for side in SIDES}
    broken = {path: reason for side in SIDES for path, reason in found[side].broken.items()}
    rest = dataset.without(broken)
    kept = {side: [k for k, example in enumerate(dataset.sides[side]) if example.path not in broken] for side in SIDES}
    labels = {side: [dataset.sides[side][k].label for k in kept[side]] for side in SIDES}
    x, y = found["train"].values[kept["train"]], labels["train"]
    if settings.flips:
        x, y = np.concatenate([x, embedded("train", flip=True).values[kept["train"]]]), y + y
    head = fit_head(x, y, found["val"].values[kept["val"]], labels["val"], len(dataset.classes))
    head.put_into(backbone.network.head)
    _log_head(head)
    return rest


def _learn_all(settings: Settings, dataset: Dataset, backbone: Backbone, epochs: int) -> None:
    rate = settings.learning_rate or (_PRETRAINED_RATE if backbone.pretrained else _SCRATCH_RATE)
    plan = Plan(epochs, rate, settings.batch_size, settings.seed)
    mlflow.log_params(
        {"finetune.epochs": epochs, "finetune.learning_rate": rate, "finetune.weight_decay": plan.weight_decay}
    )
    history: list[Scores] = []

    def on_epoch(epoch: int, scores: Scores) -> None:
        history.append(scores)
        mlflow.log_metrics({f"finetune/{name}": value for name, value in asdict(scores).items()}, step=epoch)
        say(f"epoch {epoch}/{epochs}: val loss {scores.val_loss:.4f}, val accuracy {scores.val_accuracy:.4f}")

    checkpoint = cache_dir() / f"finetune-{backbone.name}-{backbone.digest}-{dataset.digest('train', 'val')}.pt"
    sides = dataset.sides["train"], dataset.sides["val"]
    kept = finetune(
        backbone.network, *sides, backbone.preprocess, plan, checkpoint=checkpoint, resume=settings.resume, on_epoch=on_epoch
    )
    mlflow.log_metric("finetune/kept_epoch", kept)
    if history:
        figure = figures.curves(history, f"Fine-tuning {backbone.name}", "epoch", kept if len(history) == epochs else None)
        mlflow.log_figure(figure, "plots/curves_finetune.png")


def _log_head(head: Head) -> None:
    client, active = mlflow.MlflowClient(), mlflow.active_run()
    assert active is not None
    now = int(active.info.start_time)
    metrics = [
        mlflow.entities.Metric(f"head/{name}", value, now, step)
        for step, scores in enumerate(head.steps, start=1)
        for name, value in asdict(scores).items()
    ]
    client.log_batch(active.info.run_id, metrics=metrics)  # at once: 200 single calls take seconds
    mlflow.log_params({"head.weight_decay": head.weight_decay})
    title = f"The head on frozen features, weight decay falling from {max(head.candidates):g} to {head.weight_decay:g}"
    mlflow.log_figure(figures.curves(head.steps, title, "L-BFGS step"), "plots/curves_head.png")
    mlflow.log_figure(figures.regularisation(head.candidates, head.weight_decay), "plots/regularisation.png")


def _log_data(dataset: Dataset) -> None:
    for side in SIDES:
        tracking.log_dataset(dataset, side)
    mlflow.set_tag("data.digest", dataset.digest())
    mlflow.log_params({"data.digest": dataset.digest(), "data.classes": ", ".join(dataset.classes)[:500]})
    if dataset.problems:
        mlflow.log_text("\n".join(dataset.problems) + "\n", "data/left_out.txt")
        say(f"{len(dataset.problems)} problems with the data (data/left_out.txt in the run), such as: {dataset.problems[0]}")


def _describe(settings: Settings, dataset: Dataset, backbone: Backbone, run_id: str) -> Description:
    provenance = {
        "run_id": run_id,
        "data_digest": dataset.digest(),
        "weights": backbone.weights,
        "weights_digest": backbone.digest,
        "seed": settings.seed,
    }
    return Description(backbone.name, dataset.classes, backbone.preprocess, provenance=provenance)


def _agreement_pictures(dataset: Dataset) -> list[bytes]:
    """Training pictures, evenly over all classes."""
    examples = dataset.sides["train"]
    step = max(1, len(examples) // _AGREEMENT_PICTURES)
    return [example.path.read_bytes() for example in examples[::step][:_AGREEMENT_PICTURES]]


def _log_card(text: str, summary: str, model_id: str) -> None:
    mlflow.log_text(text, card.CARD)
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / card.CARD).write_text(text, encoding="utf-8")
        mlflow.MlflowClient().log_model_artifacts(model_id, scratch)
    mlflow.set_tag("mlflow.note.content", f"{summary}\n\n{text}")
