"""`catdog register`, and `mlflow run . -e register`."""

from __future__ import annotations

import click

from catdog_pyfunc.pipeline import tracking
from catdog_pyfunc.pipeline.cli.next_step import promote_command
from catdog_pyfunc.pipeline.registry import versions


@click.command("register")
@click.option("--run-id", required=True, help="Id of the training run.")
@click.option("--name", default=versions.NAME, help="The registered model; created if it does not exist.")
def command(run_id: str, name: str) -> None:
    """Register a run's model as a new version."""
    with tracking.run_of_project(f"register {run_id[:8]}"):
        version = str(versions.register(run_id, name).version)
    click.echo(f"the model of run {run_id} is models:/{name}/{version}; next: {promote_command(name, version)}")
