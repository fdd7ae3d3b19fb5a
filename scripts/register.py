"""`mlflow run . -e register -P run_id=…`: make a run's model a version of a registered model."""

from __future__ import annotations

import click

from scripts.cli import program


@click.command(context_settings={"show_default": True})
@click.option("--run-id", required=True, help="Of a training run.")
@click.option("--name", default="CatDogClassifier", help="The registered model.")
def main(run_id: str, name: str) -> None:
    """Make a run's model a version of a registered model."""
    with program():
        from catdog_pyfunc.pipeline import tracking
        from catdog_pyfunc.pipeline.registry import versions

        with tracking.run_of_project(f"register {run_id[:8]}"):
            version = versions.register(run_id, name).version
    click.echo(f"runs:/{run_id}/model is models:/{name}/{version}; next: mlflow run . -e promote -P version={version}")


if __name__ == "__main__":
    main()
