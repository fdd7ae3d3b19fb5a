"""`python -m scripts.predict photo.jpg …`: ask a model what is on a photo."""

from __future__ import annotations

from pathlib import Path

import click

from scripts.cli import program


@click.command(context_settings={"show_default": True})
@click.argument("photos", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--model-uri", default="models:/CatDogClassifier@production", help="A model that this project logged.")
def main(photos: tuple[Path, ...], model_uri: str) -> None:
    """Ask a model what is on each of PHOTOS."""
    wrong = [photo for photo in photos if not photo.is_file()]
    if wrong:
        raise click.ClickException(f"no such photo: {', '.join(map(str, wrong))}")
    with program():
        from catdog_pyfunc.flavor import load_model

        answers = load_model(model_uri).predict([photo.read_bytes() for photo in photos])
    for photo, answer in zip(photos, answers, strict=True):
        about = f"{photo}: " if len(photos) > 1 else ""
        if answer.error:
            click.echo(f"{about}{answer.error}", err=True)
        else:
            click.echo(f"{about}Predicted class: {answer.label}, Confidence: {answer.confidence:.4f}")
    if any(answer.error for answer in answers):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
