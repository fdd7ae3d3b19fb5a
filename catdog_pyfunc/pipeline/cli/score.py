"""`catdog score`, and `mlflow run . -e score`."""

from __future__ import annotations

import click

from catdog_pyfunc.pipeline import tracking
from catdog_pyfunc.pipeline.cli.options import build, options_from
from catdog_pyfunc.pipeline.console import text_table
from catdog_pyfunc.pipeline.scoring.config import ScoringConfig
from catdog_pyfunc.pipeline.scoring.score import score


@click.command("score")
@options_from(ScoringConfig)
def command(**options: object) -> None:
    """Score many images, with predictions as parquet.

    After an interruption, the same command goes on where it was.
    """
    config = build(ScoringConfig, options)
    with tracking.run():
        result = score(config)
    summary = result.summary
    rows = [[label, str(count)] for label, count in summary.labels.items()]
    rows += [["cannot be read", str(summary.errors)], ["probably none of the classes", str(summary.out_of_domain)]]
    click.echo(text_table(rows))
    click.echo(f"{summary.images} predictions in {result.output} ({result.images_per_second:.0f} images/s)")
