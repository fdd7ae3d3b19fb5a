"""`catdog select`, and `mlflow run . -e select`."""

from __future__ import annotations

from collections import Counter

import click

from catdog_pyfunc.pipeline import tracking
from catdog_pyfunc.pipeline.cli.options import build, options_from
from catdog_pyfunc.pipeline.console import text_table
from catdog_pyfunc.pipeline.labelling.select import SelectionConfig, select


@click.command("select")
@options_from(SelectionConfig)
def command(**options: object) -> None:
    """Select the images to label next."""
    config = build(SelectionConfig, options)
    with tracking.run() as run:
        selection = select(config)
    predicted = Counter(prediction.label for _, prediction in selection.selected)
    click.echo(
        text_table([["selected, predicted to be", "images"], *([str(k), str(n)] for k, n in predicted.most_common())])
    )
    apart = f"{len(selection.strange)} strange and {len(selection.unreadable)} unreadable images apart"
    click.echo(f"{apart}; galleries, table and tasks for Label Studio are in run {run.info.run_id}")
