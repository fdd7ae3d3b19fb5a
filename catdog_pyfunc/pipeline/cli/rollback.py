"""`catdog rollback`, and `mlflow run . -e rollback`."""

from __future__ import annotations

import click

from catdog_pyfunc.pipeline import tracking
from catdog_pyfunc.pipeline.registry import versions
from catdog_pyfunc.pipeline.registry.reconcile import roll_back


@click.command("rollback")
@click.option("--name", default=versions.NAME, help="The registered model.")
@click.option("--alias", default=versions.PRODUCTION, help="The alias to move.")
@click.option("--reason", default="", show_default=False, help="Why, for the audit log.")
def command(name: str, alias: str, reason: str) -> None:
    """Point an alias back to its previous version.

    Called again, it goes back one version further.
    """
    with tracking.run_of_project("rollback"):
        entry = roll_back(name, alias, reason)
        tracking.name_run(f"rollback to v{entry.version}")
    click.echo(f"models:/{name}@{alias} is version {entry.version} again (it was {entry.previous})")
