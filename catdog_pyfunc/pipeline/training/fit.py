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
from catdog_pyfunc.pipeline.cache import cache_dir
from catdog_pyfunc.pipeline.console import log
from catdog_pyfunc.pipeline.data.corrupt import find_corrupt
from catdog_pyfunc.pipeline.data.dataset import SPLITS, Dataset
from catdog_pyfunc.pipeline.training import learning_curves
from catdog_pyfunc.pipeline.training.backbones import Backbone
from catdog_pyfunc.pipeline.training.calibration import fit_ood_threshold, fit_temperature
from catdog_pyfunc.pipeline.training.config import TrainingConfig
from catdog_pyfunc.pipeline.training.embeddings import Embeddings, embed
from catdog_pyfunc.pipeline.training.finetuning import FinetuneConfig, finetune
from catdog_pyfunc.pipeline.training.linear_head import EpochMetrics, Head, fit_head
from catdog_pyfunc.preprocessing import Floats


@dataclass(frozen=True)
class FitResult:
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


def fit(config: TrainingConfig, dataset: Dataset, backbone: Backbone) -> FitResult:
    """Fit the head on a pretrained backbone, train the whole network if asked to, calibrate on val.

    Args:
        settings: How to learn, resolved.
        dataset: What from.
        backbone: Its network is changed in place.

    Returns:
        What was learned besides.
    """
    if backbone.pretrained:
        dataset, known = _learn_head(config, dataset, backbone)
    else:  # random features know nothing that a head could learn from
        every = [example for split in SPLITS for example in dataset.splits[split]]
        dataset = dataset.drop(find_corrupt(every, backbone.preprocess))
    if config.finetune_epochs:
        _learn_all(config, dataset, backbone)
        known = {split: _embedded(dataset, backbone, split, Path(":memory:")).values for split in ("train", "val")}
    head = backbone.network.head
    weight, bias = head.weight.detach().numpy(), head.bias.detach().numpy()
    temperature = fit_temperature(known["val"] @ weight.T + bias, [example.label for example in dataset.splits["val"]])
    reference, threshold = fit_ood_threshold(known["train"], known["val"], config.seed)
    mlflow.log_params({"calibration.temperature": f"{temperature:.4f}", "rejection.threshold": f"{threshold:.4f}"})
    return FitResult(dataset, temperature, reference, threshold)


def _embedded(dataset: Dataset, backbone: Backbone, split: str, cache: Path, flip: bool = False) -> Embeddings:
    @functools.cache
    def engine() -> OnnxEngine:  # made only if a picture isn't in the cache
        description = Description(backbone.name, dataset.classes, backbone.preprocess)
        return OnnxEngine(
            flavor.export_graph(backbone.network, description, np.zeros((1, backbone.network.head.in_features), np.float32))
        )

    # What computes an embedding is part of its name: another ONNX Runtime may round otherwise.
    name = f"{backbone.digest}/onnxruntime-{onnxruntime.__version__}"
    return embed(engine, dataset.splits[split], backbone.preprocess, cache=cache, backbone=name, flip=flip)


def _learn_head(config: TrainingConfig, dataset: Dataset, backbone: Backbone) -> tuple[Dataset, dict[str, Floats]]:
    cache = cache_dir() / "embeddings.sqlite"
    # The test split, too: what is broken there must be known before anything is measured or saved.
    found = {split: _embedded(dataset, backbone, split, cache) for split in SPLITS}
    broken = {path: reason for split in SPLITS for path, reason in found[split].broken.items()}
    rest = dataset.drop(broken)
    kept = {split: [k for k, example in enumerate(dataset.splits[split]) if example.path not in broken] for split in SPLITS}
    labels = {split: [dataset.splits[split][k].label for k in kept[split]] for split in SPLITS}
    values = {split: found[split].values[kept[split]] for split in SPLITS}
    x, y = values["train"], labels["train"]
    if config.horizontal_flip:
        mirrored = _embedded(dataset, backbone, "train", cache, flip=True).values
        x, y = np.concatenate([x, mirrored[kept["train"]]]), y + y
    head = fit_head(x, y, values["val"], labels["val"], len(dataset.classes))
    head.copy_to(backbone.network.head)
    _log_head(head)
    return rest, values


def _learn_all(config: TrainingConfig, dataset: Dataset, backbone: Backbone) -> None:
    epochs, rate = config.finetune_epochs, config.learning_rate
    plan = FinetuneConfig(epochs, rate, config.batch_size, config.seed)
    mlflow.log_params(
        {"finetune.epochs": epochs, "finetune.learning_rate": rate, "finetune.weight_decay": plan.weight_decay}
    )
    history: list[EpochMetrics] = []

    def on_epoch(epoch: int, scores: EpochMetrics) -> None:
        history.append(scores)
        mlflow.log_metrics({f"finetune/{name}": value for name, value in asdict(scores).items()}, step=epoch)
        log(f"epoch {epoch}/{epochs}: val loss {scores.val_loss:.4f}, val accuracy {scores.val_accuracy:.4f}")

    checkpoint = cache_dir() / f"finetune-{backbone.name}-{backbone.digest}-{dataset.digest('train', 'val')}.pt"
    splits = dataset.splits["train"], dataset.splits["val"]
    kept = finetune(
        backbone.network, *splits, backbone.preprocess, plan, checkpoint=checkpoint, resume=config.resume, on_epoch=on_epoch
    )
    mlflow.log_param("finetune.kept_epoch", kept)
    if history:
        figure = learning_curves.curves(
            history, f"Fine-tuning {backbone.name}", "epoch", kept if len(history) == epochs else None
        )
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
    mlflow.log_figure(learning_curves.curves(head.steps, title, "L-BFGS step"), "plots/curves_head.png")
    mlflow.log_figure(learning_curves.regularisation(head.candidates, head.weight_decay), "plots/regularisation.png")
