"""Scores images with a model: opens both, runs the engine, and leaves a summary in an MLflow run."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from time import monotonic

import mlflow
from mlflow.exceptions import MlflowException

from catdog_pyfunc import flavor
from catdog_pyfunc.bundle import Bundle
from catdog_pyfunc.classifier import Classifier
from catdog_pyfunc.errors import TrackingError, first_line
from catdog_pyfunc.pipeline import tracking
from catdog_pyfunc.pipeline.console import log, progress
from catdog_pyfunc.pipeline.evaluation.reference import MODEL_DIGEST
from catdog_pyfunc.pipeline.scoring import local, spark
from catdog_pyfunc.pipeline.scoring.config import ScoringConfig
from catdog_pyfunc.pipeline.scoring.inputs import Images, open_images
from catdog_pyfunc.pipeline.scoring.output import Output, columns, open_output
from catdog_pyfunc.pipeline.scoring.summary import Summary, plot, summarise
from catdog_pyfunc.pipeline.spark import LOCAL, SPARK, session


@dataclass(frozen=True)
class ScoringResult:
    """The outcome of scoring.

    Attributes:
        output: The folder of parquet.
        summary: What it holds.
        images_per_second: Of this call; an earlier, interrupted one does not count.
    """

    output: Path
    summary: Summary
    images_per_second: float


def score(config: ScoringConfig) -> ScoringResult:
    """Score images, in the active MLflow run or in one of its own.

    Started again after an interruption, a call with the same settings goes on where the last one ended. If the images of an
    input change in between, those that were listed first count.

    Args:
        config: The images, the model and the output.

    Returns:
        The output and what it holds.

    Raises:
        InvalidData: The input cannot be used, or the output is there already.
        RegistryError: There is no such model.
        InvalidBundle: The model was not logged by this project.
        JobFailed: The output cannot be written; a second call goes on.
        TrackingError: The tracking store cannot be reached or written.

    Example:
        >>> result = score(ScoringConfig("photos", "predictions"))
        >>> result.summary.labels
        {'cat': 24, 'dog': 24}
        >>> pyarrow.dataset.dataset(result.output).count_rows()
        48
    """
    with tracking.active_or_new_run() as active:
        tracking.log_params(asdict(config))
        output = Path(config.output).expanduser().absolute()
        tracking.name_run(f"score {Path(config.input).name}")
        model_uri = flavor.exact_uri(config.model_uri)
        with flavor.opened_bundle(model_uri) as bundle:
            metadata = {
                "catdog.model": model_uri,
                MODEL_DIGEST: bundle.digest,
                "catdog.run_id": active.info.run_id,
                "catdog.time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            }
            rate = _score(config, bundle, output, metadata)
        return _log(ScoringResult(output, summarise(output), rate), metadata)


def _score(config: ScoringConfig, bundle: Bundle, folder: Path, metadata: dict[str, str]) -> float:
    identity = {
        "input": str(Path(config.input).expanduser().absolute()),
        "model_digest": bundle.digest,
        "heatmaps": str(config.heatmaps),
        "engine": LOCAL if config.engine == LOCAL else SPARK,
    }
    with open_output(folder, identity) as output:
        images = open_images(config.input, output.listing)
        if config.engine == LOCAL:
            return _score_here(config, bundle, images, output, metadata)
        started = monotonic()
        with session(config.engine) as active, output.unfinished_folder() as unfinished:
            rows = spark.images_from(active, images.files, images.columns)
            spark.score(active, rows, bundle.path, unfinished, config.heatmaps, metadata)
        return images.count / (monotonic() - started)


def _score_here(config: ScoringConfig, bundle: Bundle, images: Images, output: Output, metadata: dict[str, str]) -> float:
    if output.done:
        log(f"going on: {output.done} of {images.count} images have their predictions")
    begun, started = output.done, monotonic()
    rows = local.score(Classifier(bundle), images.items(begun), config.heatmaps)
    output.write(progress(rows, "scoring images", images.count, done=begun), columns(config.heatmaps, metadata))
    return (output.done - begun) / (monotonic() - started)


def _log(result: ScoringResult, tags: dict[str, str]) -> ScoringResult:
    try:
        mlflow.set_tags({**tags, "catdog.output": str(result.output)})
        mlflow.log_metrics({**result.summary.metrics(), "scored/images_per_second": result.images_per_second})
        mlflow.log_text(result.summary.table(), "tables/histograms.csv")
        mlflow.log_figure(plot(result.summary), "plots/predictions.png", save_kwargs={"dpi": 120})
    except MlflowException as error:
        raise TrackingError(
            f"the predictions are complete, in {result.output}, but {mlflow.get_tracking_uri()} took no summary "
            f"({first_line(error)}): nothing needs to be scored again"
        ) from None
    return result
