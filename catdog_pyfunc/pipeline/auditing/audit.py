"""Audits a dataset in an MLflow run: a table of suspected images, a gallery per kind, and counts."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd

from catdog_pyfunc.errors import InvalidData, JobFailed
from catdog_pyfunc.pipeline import tracking
from catdog_pyfunc.pipeline.auditing.config import AuditConfig
from catdog_pyfunc.pipeline.auditing.copies import exact_duplicates, near_duplicates, unique_images
from catdog_pyfunc.pipeline.auditing.findings import KINDS, Finding, ranked, root, table
from catdog_pyfunc.pipeline.auditing.galleries import gallery
from catdog_pyfunc.pipeline.auditing.label_errors import label_errors
from catdog_pyfunc.pipeline.auditing.outliers import NEIGHBOURS, outliers
from catdog_pyfunc.pipeline.auditing.quality import judge, measure
from catdog_pyfunc.pipeline.cache import cache_dir
from catdog_pyfunc.pipeline.data import catalog
from catdog_pyfunc.pipeline.data.dataset import ALL, Dataset
from catdog_pyfunc.pipeline.data.label_studio import Task, labelling_interface, tasks_json
from catdog_pyfunc.pipeline.evaluation.galleries import small_png
from catdog_pyfunc.pipeline.training.backbones import Backbone, load_backbone
from catdog_pyfunc.pipeline.training.fit import embed_images
from catdog_pyfunc.pipeline.training.near_duplicates import nearest

TABLE = "tables/audit.csv"  # and .parquet
_DESCRIPTOR_NEIGHBOURS = 3


@dataclass(frozen=True)
class AuditResult:
    """What an audit found.

    Attributes:
        run_id: Id of the MLflow run.
        images: Number of files that were audited.
        table: One row per suspected image and kind: path (relative to the data folder), split, label, suggestion (the class
            that it seems to belong to, or ""), score (0 to 1, comparable within a kind), kind, reason.
        classes: Class → number of images in train.
    """

    run_id: str
    images: int
    table: pd.DataFrame
    classes: Mapping[str, int]

    @property
    def counts(self) -> dict[str, int]:
        """Kind → number of suspected images."""
        counter = Counter(self.table["kind"])
        return {kind: counter[kind] for kind in KINDS}

    @property
    def imbalance(self) -> float:
        """Number of training images of the largest class, divided by that of the smallest."""
        return max(self.classes.values()) / max(1, min(self.classes.values()))


def audit(config: AuditConfig) -> AuditResult:
    """Find what is wrong with a dataset, in the active run, or in a run of its own if none is active.

    Args:
        config: The images, and how to embed them.

    Returns:
        What was found; table, galleries and counts are in the run.

    Raises:
        InvalidSetting: The backbone is unknown or has no globally pooled features.
        InvalidData: The data cannot be used.
        InvalidWeights: The weights are not available or belong to another network.
        JobFailed: The cache of embeddings or the output cannot be written.
        TrackingError: The tracking store cannot be reached or written.

    Example:
        >>> from catdog_pyfunc import pipeline
        >>> pipeline.audit(pipeline.AuditConfig("photos")).counts["label_error"]
        3
    """
    with tracking.active_or_new_run() as active:
        tracking.log_params(asdict(config))
        tracking.name_run(f"audit {Path(config.data).resolve().name}")
        dataset = catalog.load_dataset(config.data, ALL)
        tracking.log_dataset(dataset, ALL)
        mlflow.set_tag("data.digest", dataset.digest())
        backbone = load_backbone(config.backbone, config.weights, len(dataset.classes), seed=0)
        findings, count = find(dataset, backbone)
        result = AuditResult(active.info.run_id, count, table(findings, dataset), dataset.counts("train"))
        _log(result, findings, dataset)
        if config.output:
            _write(result.table, Path(config.output).expanduser())
        return result


def find(dataset: Dataset, backbone: Backbone) -> tuple[list[Finding], int]:
    """Find everything that is suspected.

    Args:
        dataset: The images.
        backbone: Embeds them.

    Returns:
        The findings, and the number of files.

    Raises:
        InvalidData: No image is readable.
    """
    folder, spec = root(dataset), backbone.preprocess
    unique, copies = unique_images(dataset)
    embedded = embed_images(backbone, [image.example for image in unique], cache_dir() / "embeddings.sqlite")
    corrupt = embedded.corrupt
    images = [image for image in unique if image.example.path not in corrupt]
    if not images:
        path, reason = next(iter(corrupt.items()))
        raise InvalidData(f"none of the images in {dataset.source} can be read: {path} {reason}")
    findings = [
        Finding(image, "corrupt", 1.0, corrupt[image.example.path]) for image in unique if image.example.path in corrupt
    ]
    findings += exact_duplicates(copies, dataset.classes, folder)
    qualities = measure(images, spec)
    findings += [finding for pair in zip(images, qualities, strict=True) for finding in judge(*pair, spec)]
    by_embedding = nearest(embedded.values, embedded.values, NEIGHBOURS)
    descriptors = np.stack([quality.descriptor for quality in qualities])
    by_descriptor = nearest(descriptors, descriptors, _DESCRIPTOR_NEIGHBOURS)
    findings += near_duplicates(images, qualities, by_embedding, by_descriptor, spec, dataset.classes, folder)
    findings += outliers(images, by_embedding[0])
    findings += label_errors(images, embedded.values, dataset.classes)
    return findings, len(unique) + len(copies)


def _log(result: AuditResult, findings: Sequence[Finding], dataset: Dataset) -> None:
    mlflow.log_metrics({f"audit/{kind}": float(count) for kind, count in result.counts.items()})
    mlflow.log_metrics({"audit/images": float(result.images), "audit/imbalance": result.imbalance})
    with tempfile.TemporaryDirectory() as scratch:
        _write(result.table, Path(scratch) / Path(TABLE).name)
        result.table.to_parquet(Path(scratch) / "audit.parquet", index=False)
        mlflow.log_artifacts(scratch, Path(TABLE).parent.as_posix())
    suspects = result.table[result.table["kind"] == "label_error"]
    tasks = [Task(*row) for row in zip(suspects["path"], suspects["suggestion"], suspects["score"], strict=True)]
    mlflow.log_text(tasks_json(tasks, root(dataset), "audit"), "label_studio/tasks.json")
    mlflow.log_text(labelling_interface(dataset.classes), "label_studio/interface.xml")
    for kind in KINDS:
        drawn = [finding for finding in ranked(findings) if finding.kind == kind]
        if drawn and kind != "corrupt":
            mlflow.log_image(small_png(gallery(drawn, dataset.classes, root(dataset))), f"images/{kind}.png")


def _write(rows: pd.DataFrame, output: Path) -> None:
    try:
        rows.to_csv(output, index=False, lineterminator="\n")
    except OSError as error:
        raise JobFailed(f"cannot write {output} ({error.strerror}): the table is in the run, as {TABLE}") from None
