"""`mlflow run . -e rollback`: let an alias point to the version before."""

from __future__ import annotations

import click

from scripts.cli import program


@click.command(context_settings={"show_default": True})
@click.option("--name", default="CatDogClassifier", help="The registered model.")
@click.option("--alias", default="production", help="Which alias.")
@click.option("--reason", default="", help="Why, for the history.")
def main(name: str, alias: str, reason: str) -> None:
    """Let an alias point to the version before; again: to the one before that."""
    with program():
        from catdog_pyfunc.pipeline import tracking

        with tracking.run_of_project("rollback"):
            from catdog_pyfunc.pipeline.registry import reconcile

            move = reconcile.roll_back(name, alias, reason)
            tracking.name_run(f"rollback to v{move.version}")
    click.echo(f"models:/{name}@{alias} is version {move.version} again (it was {move.previous})")


if __name__ == "__main__":
    main()
