"""`mlflow run . -e history`: who moved which alias when, from where to where, why, with which figures."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from catdog_pyfunc.pipeline.console import text_table
from scripts.cli import program


@click.command(context_settings={"show_default": True})
@click.option("--name", default="CatDogClassifier", help="The registered model.")
@click.option("--output", default="table", type=click.Choice(["table", "json"]), help="json has every figure.")
def main(name: str, output: str) -> None:
    """Show who moved which alias when, from where to where, why, with which figures; oldest first."""
    with program():
        from catdog_pyfunc.pipeline import tracking
        from catdog_pyfunc.pipeline.registry import descriptions, reconcile

        with tracking.run_of_project("history"):
            entries = reconcile.history(name)
            tracking.set_parent_run(entries[-1].run_id if entries else None)
    if output == "json":
        click.echo(json.dumps([asdict(entry) for entry in entries], indent=2))
        return
    click.echo(text_table(descriptions.audit_table(entries)))


if __name__ == "__main__":
    main()
