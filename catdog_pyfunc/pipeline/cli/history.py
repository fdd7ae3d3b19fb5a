"""`catdog history`, and `mlflow run . -e history`."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from catdog_pyfunc.pipeline import tracking
from catdog_pyfunc.pipeline.console import text_table
from catdog_pyfunc.pipeline.registry import descriptions, reconcile, versions


@click.command("history")
@click.option("--name", default=versions.NAME, help="The registered model.")
@click.option("--output", default="table", type=click.Choice(["table", "json"]), help="json has every recorded metric.")
def command(name: str, output: str) -> None:
    """Show who moved which alias when, and why.

    Entries of the audit log, oldest first, with the versions and the metrics they were decided on.
    """
    with tracking.run_of_project("history"):
        entries = reconcile.history(name)
        tracking.set_parent_run(entries[-1].run_id if entries else None)
    if output == "json":
        click.echo(json.dumps([asdict(entry) for entry in entries], indent=2))
    else:
        click.echo(text_table(descriptions.audit_table(entries)))
