"""`catdog promote`, and `mlflow run . -e promote`."""

from __future__ import annotations

import click

from catdog_pyfunc.pipeline import tracking
from catdog_pyfunc.pipeline.cli.options import build, options_from
from catdog_pyfunc.pipeline.console import text_table
from catdog_pyfunc.pipeline.data.dataset import ALL, SPLITS
from catdog_pyfunc.pipeline.registry.gate import Thresholds
from catdog_pyfunc.pipeline.registry.promotion import Promotion, promote


@click.command("promote")
@options_from(Promotion, split=(*SPLITS, ALL))
@options_from(Thresholds)
def command(**options: object) -> None:
    """Point an alias to a version if it passes the gate."""
    promotion, thresholds = build(Promotion, options), build(Thresholds, options)
    with tracking.run():
        report = promote(promotion, thresholds, show=lambda rows: click.echo(text_table(rows)))
    uri = f"models:/{promotion.name}@{promotion.alias}"
    if report is None:
        click.echo(f"{uri} is already version {promotion.version}: nothing to do")
    else:
        click.echo(f"{uri} is version {promotion.version}; next: mlflow models serve -m {uri} -p 5001 --env-manager local")
