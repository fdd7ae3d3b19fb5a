"""`catdog predict`, and `mlflow run . -e predict`: needs neither torch nor the [train] extra."""

from __future__ import annotations

from pathlib import Path

import click

from catdog_pyfunc.flavor import load_model
from catdog_pyfunc.pipeline.registry import versions


@click.command("predict")
@click.argument("images", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--model-uri",
    default=f"models:/{versions.NAME}@{versions.PRODUCTION}",
    help="A model that this project logged.",
)
def command(images: tuple[Path, ...], model_uri: str) -> None:
    """Predict the class of images.

    IMAGES are files. The exit code is 1 if one of them is corrupt; the others are answered all the same.
    """
    predictions = load_model(model_uri).predict([image.read_bytes() for image in images])
    for image, prediction in zip(images, predictions, strict=True):
        prefix = f"{image}: " if len(images) > 1 else ""
        if prediction.error:
            click.echo(f"{prefix}{prediction.error}", err=True)
        else:
            click.echo(f"{prefix}Predicted class: {prediction.label}, Confidence: {prediction.confidence:.4f}")
    if any(prediction.error for prediction in predictions):
        raise SystemExit(1)
