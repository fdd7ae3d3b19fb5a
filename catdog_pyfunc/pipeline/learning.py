"""What learns: the head on frozen features, the whole network if asked to, and then calibration on val."""

from __future__ import annotations

import functools
from dataclasses import asdict, dataclass
from pathlib import Path

import mlflow
import numpy as np
import onnxruntime

from catdog_pyfunc import flavor
from catdog_pyfunc.bundle import Description
from catdog_pyfunc.engine import OnnxEngine
from catdog_pyfunc.pipeline import figures
from catdog_pyfunc.pipeline.backbone import Backbone
from catdog_pyfunc.pipeline.broken import find_broken
from catdog_pyfunc.pipeline.cache import cache_dir
from catdog_pyfunc.pipeline.calibrate import fit_rejection, fit_temperature
from catdog_pyfunc.pipeline.data import SIDES, Dataset
from catdog_pyfunc.pipeline.embed import Embeddings, embed
from catdog_pyfunc.pipeline.finetune import Plan, finetune
from catdog_pyfunc.pipeline.head import Head, Scores, fit_head
from catdog_pyfunc.pipeline.progress import say
from catdog_pyfunc.pipeline.settings import Settings
from catdog_pyfunc.preprocess import Floats


@dataclass(frozen=True)
class Learned:
    """What came of learning, besides the network's weights.

    Attributes:
        dataset: The data, less what is broken.
        temperature: Divides the logits.
        reference: (M, D), what embeddings of training pictures are like.
        threshold: The least likeness to it that is accepted.
    """

    dataset: Dataset
    temperature: float
    reference: Floats
    threshold: float


def learn(settings: Settings, dataset: Dataset, backbone: Backbone) -> Learned:
    """Fit the head on a pretrained backbone, train the whole network if asked to, calibrate on val.

    Args:
        settings: How to learn, resolved.
        dataset: What from.
        backbone: Its network is changed in place.

    Returns:
        What was learned besides.
    """
    if backbone.pretrained:
        dataset, known = _learn_head(settings, dataset, backbone)
    else:  # random features know nothing that a head could learn from
        every = [example for side in SIDES for example in dataset.sides[side]]
        dataset = dataset.without(find_broken(every, backbone.preprocess))
    if settings.finetune_epochs:
        _learn_all(settings, dataset, backbone)
        known = {side: _embedded(dataset, backbone, side, Path(":memory:")).values for side in ("train", "val")}
    head = backbone.network.head
    weight, bias = head.weight.detach().numpy(), head.bias.detach().numpy()
    temperature = fit_temperature(known["val"] @ weight.T + bias, [example.label for example in dataset.sides["val"]])
    reference, threshold = fit_rejection(known["train"], known["val"], settings.seed)
    mlflow.log_params({"calibration.temperature": f"{temperature:.4f}", "rejection.threshold": f"{threshold:.4f}"})
    return Learned(dataset, temperature, reference, threshold)


def _embedded(dataset: Dataset, backbone: Backbone, side: str, cache: Path, flip: bool = False) -> Embeddings:
    @functools.cache
    def engine() -> OnnxEngine:  # made only if a picture isn't in the cache
        description = Description(backbone.name, dataset.classes, backbone.preprocess)
        return OnnxEngine(
            flavor.export_graph(backbone.network, description, np.zeros((1, backbone.network.head.in_features), np.float32))
        )

    # What computes an embedding is part of its name: another ONNX Runtime may round otherwise.
    name = f"{backbone.digest}/onnxruntime-{onnxruntime.__version__}"
    return embed(engine, dataset.sides[side], backbone.preprocess, cache=cache, backbone=name, flip=flip)


def _learn_head(settings: Settings, dataset: Dataset, backbone: Backbone) -> tuple[Dataset, dict[str, Floats]]:
    cache = cache_dir() / "embeddings.sqlite"
    # The test side, too: what is broken there must be known before anything is measured or saved.
    found = {side: _embedded(dataset, backbone, side, cache) for side in SIDES}
    broken = {path: reason for side in SIDES for path, reason in found[side].broken.items()}
    rest = dataset.without(broken)
    kept = {side: [k for k, example in enumerate(dataset.sides[side]) if example.path not in broken] for side in SIDES}
    labels = {side: [dataset.sides[side][k].label for k in kept[side]] for side in SIDES}
    values = {side: found[side].values[kept[side]] for side in SIDES}
    x, y = values["train"], labels["train"]
    if settings.flips:
        mirrored = _embedded(dataset, backbone, "train", cache, flip=True).values
        x, y = np.concatenate([x, mirrored[kept["train"]]]), y + y
    head = fit_head(x, y, values["val"], labels["val"], len(dataset.classes))
    head.put_into(backbone.network.head)
    _log_head(head)
    return rest, values


def _learn_all(settings: Settings, dataset: Dataset, backbone: Backbone) -> None:
    epochs, rate = settings.finetune_epochs, settings.learning_rate
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
    mlflow.log_param("finetune.kept_epoch", kept)
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
