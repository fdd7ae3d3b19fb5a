"""Looks for drift: reads what a version has predicted, compares it with its test split, and logs the verdict."""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import mlflow
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds

from catdog_pyfunc import flavor
from catdog_pyfunc.classifier import Classifier
from catdog_pyfunc.errors import InvalidData
from catdog_pyfunc.pipeline import tracking
from catdog_pyfunc.pipeline.console import progress
from catdog_pyfunc.pipeline.evaluation.reference import MODEL_DIGEST, read_reference
from catdog_pyfunc.pipeline.monitoring import prometheus
from catdog_pyfunc.pipeline.monitoring.comparison import Comparison, compare
from catdog_pyfunc.pipeline.monitoring.config import DriftConfig
from catdog_pyfunc.pipeline.monitoring.plot import plot
from catdog_pyfunc.pipeline.monitoring.sample import Sample, from_rows
from catdog_pyfunc.pipeline.registry.versions import find_version
from catdog_pyfunc.pipeline.scoring import local
from catdog_pyfunc.pipeline.scoring.inputs import open_images
from catdog_pyfunc.pipeline.scoring.output import SUCCESS, model_digest

_COLUMNS = ["label", "confidence", "in_domain", "domain_score", "image_bytes", "error"]


@dataclass(frozen=True)
class DriftReport:
    """What has changed since a version was tested.

    Attributes:
        comparisons: One for each quantity.
        images: Number of images that were predicted, those that could not be read included.
        run_id: Id of the MLflow run, which has a plot and a table.
    """

    comparisons: tuple[Comparison, ...]
    images: int
    run_id: str

    @property
    def drifted(self) -> tuple[str, ...]:
        """The quantities that have drifted."""
        return tuple(comparison.quantity for comparison in self.comparisons if comparison.drifted)


def check_drift(config: DriftConfig) -> DriftReport:
    """Compare what a version predicts with its predictions on the test split, in the active MLflow run or in one of its own.

    Args:
        config: The version, and where its predictions are.

    Returns:
        The report; drift is no error.

    Raises:
        RegistryError: There is no such version, or it has no predictions on a test split.
        InvalidData: The source cannot be used, has no images, or has another model's predictions.
        InvalidBundle: The version's model is damaged.
        TrackingError: The tracking store cannot be reached or written.

    Example:
        >>> report = check_drift(DriftConfig("3", "http://prometheus:9090", since="7d"))
        >>> report.drifted
        ('in_domain', 'domain_score')
    """
    with tracking.active_or_new_run() as active:
        tracking.log_params(asdict(config))
        tracking.name_run(f"drift v{config.version}")
        tracking.set_parent_run(find_version(config.name, config.version).run_id)
        stored = read_reference(config.model_uri)
        reference, observed = from_rows(stored.to_pandas()), _observe(config, stored)
        if not observed.images:
            raise InvalidData(f"{config.source} has no images of {config.model_uri}: give another source, or a longer since")
        comparisons = compare(reference, observed, alpha=config.alpha, min_effect=config.min_effect, ignored=config.ignored)
        report = DriftReport(comparisons, observed.images, active.info.run_id)
        _log(report, reference, observed)
        return report


def _observe(config: DriftConfig, stored: pa.Table) -> Sample:
    if prometheus.is_prometheus(config.source):
        return prometheus.read(config.source, config.name, config.version, config.since)
    folder = Path(config.source).expanduser()
    if found := model_digest(folder):
        return from_rows(_scored(folder, found, stored.schema.metadata[MODEL_DIGEST.encode()].decode()))
    return from_rows(_score(config))


def _scored(folder: Path, found: str, wanted: str) -> pd.DataFrame:
    """The predictions in an output of `score`."""
    if found != wanted:
        raise InvalidData(
            f"{folder} has the predictions of model {found:.12}, and this version is {wanted:.12}: score with this version"
        )
    if not (folder / SUCCESS).exists():
        raise InvalidData(f"{folder} is not complete: run the command that began it again, which goes on from there")
    frame: pd.DataFrame = ds.dataset(folder, format="parquet").to_table(_COLUMNS).to_pandas()
    return frame


def _score(config: DriftConfig) -> pd.DataFrame:
    """The predictions for images that nobody has scored yet."""
    with tempfile.TemporaryDirectory(prefix="catdog-") as scratch, flavor.opened_bundle(config.model_uri) as bundle:
        images = open_images(config.source, Path(scratch) / "images.parquet")
        rows = progress(local.score(Classifier(bundle), images.items(), heatmaps=False), "scoring images", images.count)
        return pd.DataFrame([[row.get(name) for name in _COLUMNS] for row in rows], columns=_COLUMNS)


def _log(report: DriftReport, reference: Sample, observed: Sample) -> None:
    mlflow.set_tag("drift.verdict", ", ".join(report.drifted) or "none")
    metrics = {"images": float(report.images), "drifted": float(len(report.drifted))}
    for comparison in report.comparisons:
        metrics |= {f"{comparison.quantity}_effect": comparison.effect, f"{comparison.quantity}_p": comparison.adjusted_p}
    mlflow.log_metrics({f"drift/{name}": value for name, value in metrics.items()})
    table = pd.DataFrame([asdict(comparison) for comparison in report.comparisons])
    mlflow.log_text(table.to_csv(index=False, float_format="%.6g", lineterminator="\n"), "tables/drift.csv")
    mlflow.log_figure(plot(report.comparisons, reference, observed), "plots/drift.png", save_kwargs={"dpi": 120})
