"""`mlflow run . -e evaluate -P data=…`: measure a model on labelled photos, in a run of its own."""

from __future__ import annotations

import click

from scripts.program import program


@click.command(context_settings={"show_default": True})
@click.option("--model-uri", default="models:/CatDogClassifier@production", help="A model that this project logged.")
@click.option("--data", default="sample", help="A folder with one sub-folder a class, 'sample' or 'oxford-iiit-pet'.")
@click.option("--side", default="test", type=click.Choice(["train", "val", "test"]), help="Which side of the data.")
def main(model_uri: str, data: str, side: str) -> None:
    """Measure a model on labelled photos, in a run of its own."""
    with program():
        from catdog_pyfunc.pipeline import tracking

        with tracking.run(f"evaluate {model_uri.removeprefix('models:/')}"):
            from catdog_pyfunc.pipeline.measuring import measure

            evaluation = measure(model_uri, data, side)
    click.echo(f"{side} accuracy {evaluation.accuracy}")
    for name, recall in evaluation.recalls.items():
        click.echo(f"{side} recall of {name} {recall}")


if __name__ == "__main__":
    main()
