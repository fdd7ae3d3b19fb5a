"""`mlflow run .`, or `python -m scripts.train`: train, log and register a classifier."""

from __future__ import annotations

import click

from scripts.cli import program


@click.command(context_settings={"show_default": True})
@click.option("--data", default="sample", help="A folder with one sub-folder a class, 'sample' or 'oxford-iiit-pet'.")
@click.option("--weights", default="auto", help="'imagenet', a path to a state_dict, 'none', or 'auto'.")
@click.option("--backbone", default="mobilenet_v2", help="A classification model of torchvision.models.")
@click.option("--image-size", default=0, help="Pixels; 0 for the backbone's own.")
@click.option("--horizontal-flip", type=bool, default=False, help="Let the head learn from mirrored pictures, too.")
@click.option("--finetune-epochs", default=-1, help="-1: 0 with pretrained weights, 8 without.")
@click.option("--learning-rate", default=0.0, help="Of fine-tuning; 0: 1e-4 with pretrained weights, 3e-3 without.")
@click.option("--batch-size", default=16, help="Of fine-tuning.")
@click.option("--seed", default=0, help="Of all that is random.")
@click.option("--resume", type=bool, default=False, help="Go on with a fine-tuning that was interrupted.")
@click.option("--registered-model", default="CatDogClassifier", help="The registered model; 'none' for no registration.")
@click.option("--run-name", default="", help="Of the run; empty: made of what it does.")
def main(run_name: str, registered_model: str, **options: object) -> None:
    """Train, log and register a classifier."""
    with program():
        from catdog_pyfunc.pipeline import tracking

        with tracking.run(run_name or None):
            from catdog_pyfunc.pipeline.training.config import TrainingConfig
            from catdog_pyfunc.pipeline.training.train import train  # torch takes seconds: the run is there meanwhile

            name = "" if registered_model.lower() == "none" else registered_model
            result = train(TrainingConfig(registered_model=name, **options))  # type: ignore[arg-type]
    click.echo(f"test accuracy {result.evaluation.accuracy}")
    click.echo(f"model {result.model_uri}")
    if result.version:
        click.echo(
            f"registered as models:/{name}/{result.version}; next: mlflow run . -e promote -P version={result.version}"
        )


if __name__ == "__main__":
    main()
