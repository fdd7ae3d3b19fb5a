"""`catdog drift`, and `mlflow run . -e drift`."""

from __future__ import annotations

import click

from catdog_pyfunc.pipeline import tracking
from catdog_pyfunc.pipeline.cli.options import build, options_from
from catdog_pyfunc.pipeline.console import text_table
from catdog_pyfunc.pipeline.monitoring.comparison import Comparison
from catdog_pyfunc.pipeline.monitoring.config import DriftConfig
from catdog_pyfunc.pipeline.monitoring.drift import check_drift

DRIFT = 3  # exit code


@click.command("drift")
@options_from(DriftConfig)
def command(**options: object) -> None:
    """Compare what a version predicts with its test split.

    The exit code is 3 if something has drifted, 0 if nothing has, and 1 if that cannot be told.
    """
    config = build(DriftConfig, options)
    with tracking.run():
        report = check_drift(config)
    heads = ["quantity", "test split", "now", "change", "p (corrected)", ""]
    click.echo(text_table([heads, *map(_row, report.comparisons)]))
    verdict = f"drift: {', '.join(report.drifted)}" if report.drifted else "no drift"
    click.echo(f"{verdict} ({report.images} images; run {report.run_id})")
    if report.drifted:
        raise SystemExit(DRIFT)


def _row(comparison: Comparison) -> list[str]:
    verdict = "ignored" if comparison.ignored else "drifted" if comparison.drifted else ""
    measured = f"{comparison.effect:.3f}", f"{comparison.adjusted_p:.2g}"
    return [comparison.quantity, comparison.reference, comparison.observed, *measured, verdict]
