"""Fits everything: the head on frozen features, the whole network if wanted, then the calibration on val."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import mlflow
import numpy as np
import onnxruntime

from catdog_pyfunc import export
from catdog_pyfunc.bundle import Description
from catdog_pyfunc.engine import OnnxEngine
from catdog_pyfunc.pipeline.cache import cache_dir
from catdog_pyfunc.pipeline.console import log
from catdog_pyfunc.pipeline.data.corrupt import find_corrupt
from catdog_pyfunc.pipeline.data.dataset import ALL, SPLITS, Dataset, Example
from catdog_pyfunc.pipeline.spark import LOCAL
from catdog_pyfunc.pipeline.training import learning_curves
from catdog_pyfunc.pipeline.training.backbones import Backbone
from catdog_pyfunc.pipeline.training.calibration import fit_ood_threshold, fit_temperature
from catdog_pyfunc.pipeline.training.config import TrainingConfig
from catdog_pyfunc.pipeline.training.embeddings import Embeddings, Outcome, batches, compute_here, embed
from catdog_pyfunc.pipeline.training.finetuning import FinetuneConfig, finetune
from catdog_pyfunc.pipeline.training.linear_head import EpochMetrics, Head, fit_head
from catdog_pyfunc.pipeline.training.near_duplicates import Leaks, find_leaks
from catdog_pyfunc.pipeline.training.spark import compute_on_spark
from catdog_pyfunc.preprocessing import Floats, Preprocess


@dataclass(frozen=True)
class FitResult:
    """Everything fitted besides the network's weights.

    Attributes:
        dataset: The dataset without its corrupt images.
        temperature: Divisor of the logits.
        reference_embeddings: (M, D), embeddings of training images.
        ood_threshold: Similarity to the reference embeddings below which an image counts as out-of-distribution.
        leaks: Near-duplicates across splits; None if the backbone is not pretrained, so that nothing can be said.
    """

    dataset: Dataset
    temperature: float
    reference_embeddings: Floats
    ood_threshold: float
    leaks: Leaks | None = None


def fit(config: TrainingConfig, dataset: Dataset, backbone: Backbone) -> FitResult:
    """Fit the head of a pretrained backbone, fine-tune the network if wanted, and calibrate on val.

    Metrics, parameters and plots go to the active run.

    Args:
        config: Resolved parameters.
        dataset: Training and validation images; test images are only checked for being corrupt.
        backbone: Its network is changed in place.

    Returns:
        Everything fitted besides the weights.

    Raises:
        InvalidData: Too few images are left without the corrupt ones.
    """
    embeddings: dict[str, Floats] = {}
    leaks = None
    if backbone.pretrained:
        dataset, embeddings = _fit_head(config, dataset, backbone)
        leaks = find_leaks(dataset, embeddings, backbone.preprocess, config.seed)
    else:  # random features are no use to a head
        dataset = dataset.drop(find_corrupt(dataset.examples(ALL), backbone.preprocess))
    if config.finetune_epochs:
        _finetune(config, dataset, backbone)
        with tempfile.TemporaryDirectory(dir=cache_dir(), prefix="finetuned-") as scratch:  # nobody will need them again
            examples = [*dataset.splits["train"], *dataset.splits["val"]]
            embedded = embed_images(backbone, examples, Path(scratch) / "embeddings.sqlite", config.engine)
        embeddings = _by_split(dataset, embedded.values)
    weight, bias = (parameter.detach().numpy() for parameter in backbone.network.head.parameters())
    logits = np.concatenate([batch @ weight.T + bias for batch in batches(embeddings["val"])])
    temperature = fit_temperature(logits, _labels(dataset, "val"))
    reference, threshold = fit_ood_threshold(backbone.network, embeddings["train"], embeddings["val"], config.seed)
    mlflow.log_params({"calibration.temperature": f"{temperature:.4f}", "ood.threshold": f"{threshold:.4f}"})
    return FitResult(dataset, temperature, reference, threshold, leaks)


def embed_images(
    backbone: Backbone, examples: Sequence[Example], cache: Path, engine: str = LOCAL, *, flip: bool = False
) -> Embeddings:
    """Embed images with a backbone, reusing cached embeddings.

    Args:
        backbone: The backbone.
        examples: The images.
        cache: As for `embed`.
        engine: Where to embed: local, spark, or the URL of a Spark master.
        flip: Mirror every image left to right.

    Returns:
        The embeddings.

    Raises:
        JobFailed: The cache cannot be written, or the cluster gave up.
    """

    def compute(examples: Sequence[Example], spec: Preprocess, flip: bool) -> Iterable[tuple[Example, Outcome]]:
        n_classes, dimension = backbone.network.head.weight.shape
        description = Description(backbone.name, tuple(map(str, range(n_classes))), spec)
        graph = export.onnx_graph(backbone.network, description, np.zeros((1, dimension), np.float32))
        if engine == LOCAL:
            return compute_here(OnnxEngine(graph), examples, spec, flip)
        return compute_on_spark(engine, graph, examples, spec, flip)

    # Another version of ONNX Runtime may round differently, so it is part of the cache key.
    name = f"{backbone.digest}/onnxruntime-{onnxruntime.__version__}"
    return embed(compute, examples, backbone.preprocess, cache=cache, backbone=name, flip=flip)


def checkpoint_path(config: FinetuneConfig, dataset: Dataset, backbone: Backbone, *, horizontal_flip: bool) -> Path:
    """Name the checkpoint of a fine-tuning by everything that its result depends on."""
    identity = {
        **asdict(config),
        "horizontal_flip": horizontal_flip,  # of the head that fine-tuning starts from
        "backbone": backbone.digest,
        "preprocess": backbone.preprocess.to_dict(),
        "data": dataset.digest("train", "val"),
    }
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    return cache_dir() / f"finetune-{backbone.name.replace('/', '-')}-{digest}.pt"


def _by_split(dataset: Dataset, values: Floats) -> dict[str, Floats]:
    """Embeddings of a dataset's examples, in order → those of each split."""
    ends = np.cumsum([len(dataset.splits[split]) for split in SPLITS])
    return dict(zip(SPLITS, np.split(values, ends[:-1]), strict=True))


def _labels(dataset: Dataset, split: str) -> list[int]:
    return [example.label for example in dataset.splits[split]]


def _fit_head(config: TrainingConfig, dataset: Dataset, backbone: Backbone) -> tuple[Dataset, dict[str, Floats]]:
    """Fit the head; returns the dataset without corrupt images, and each split's embeddings."""
    cache = cache_dir() / "embeddings.sqlite"
    # The test split as well: its corrupt images must be known before anything is evaluated or saved.
    embedded = embed_images(backbone, dataset.examples(ALL), cache, config.engine)
    rest = dataset.drop(embedded.corrupt)
    values = _by_split(rest, embedded.values)
    x, y = [values["train"]], _labels(rest, "train")
    if config.horizontal_flip:
        x, y = [*x, embed_images(backbone, rest.splits["train"], cache, config.engine, flip=True).values], y + y
    head = fit_head(x, y, values["val"], _labels(rest, "val"), len(dataset.classes))
    head.copy_to(backbone.network.head)
    _log_head(head)
    return rest, values


def _finetune(config: TrainingConfig, dataset: Dataset, backbone: Backbone) -> None:
    epochs = config.finetune_epochs
    finetuning = FinetuneConfig(epochs, config.learning_rate, config.batch_size, config.seed)
    mlflow.log_params(
        {f"finetune.{name}": getattr(finetuning, name) for name in ("epochs", "learning_rate", "weight_decay")}
    )
    history: list[EpochMetrics] = []

    def on_epoch(epoch: int, metrics: EpochMetrics) -> None:
        history.append(metrics)
        mlflow.log_metrics({f"finetune/{name}": value for name, value in asdict(metrics).items()}, step=epoch)
        log(f"epoch {epoch}/{epochs}: val loss {metrics.val_loss:.4f}, val accuracy {metrics.val_accuracy:.4f}")

    kept = finetune(
        *(backbone, dataset.splits["train"], dataset.splits["val"], finetuning),
        checkpoint=checkpoint_path(finetuning, dataset, backbone, horizontal_flip=config.horizontal_flip),
        resume=config.resume,
        on_epoch=on_epoch,
    )
    mlflow.log_param("finetune.kept_epoch", kept)
    if history:
        marked = kept if len(history) == epochs else None  # a resumed run has not seen the first epochs
        figure = learning_curves.curves(history, f"Fine-tuning {backbone.name}", "epoch", marked)
        mlflow.log_figure(figure, "plots/curves_finetune.png")


def _log_head(head: Head) -> None:
    active = mlflow.active_run()
    assert active is not None
    metrics = [
        mlflow.entities.Metric(f"head/{name}", value, int(active.info.start_time), step)
        for step, measured in enumerate(head.steps, start=1)
        for name, value in asdict(measured).items()
    ]
    mlflow.MlflowClient().log_batch(active.info.run_id, metrics=metrics)  # 200 single calls would take seconds
    mlflow.log_params({"head.weight_decay": head.weight_decay})
    title = f"Head on frozen features, weight decay from {max(head.candidates):g} to {head.weight_decay:g}"
    mlflow.log_figure(learning_curves.curves(head.steps, title, "L-BFGS step"), "plots/curves_head.png")
    mlflow.log_figure(learning_curves.regularisation(head.candidates, head.weight_decay), "plots/regularisation.png")
