"""`mlflow run . -e promote -P version=…`: let an alias point to a version."""

from __future__ import annotations

import click

from scripts.program import program


@click.command(context_settings={"show_default": True})
@click.option("--version", required=True, help="The version's number.")
@click.option("--alias", default="production", help="Such as production, staging or archived.")
@click.option("--name", default="CatDogClassifier", help="The registered model.")
def main(version: str, alias: str, name: str) -> None:
    """Let an alias point to a version."""
    with program():
        from catdog_pyfunc.pipeline import registry, tracking

        with tracking.run_of_project(f"promote {name} {version} to {alias}"):
            registry.promote(version, alias, name)
    click.echo(f"models:/{name}@{alias} is version {version}; next: mlflow models serve -m models:/{name}@{alias} -p 5001")


if __name__ == "__main__":
    main()
