"""`mlflow run . -e evaluate -P data=…`: measure a model on labelled photos, in a run of its own."""

from __future__ import annotations

import math

import click

from scripts.cli import program


@click.command(context_settings={"show_default": True})
@click.option(
    "--model-uri", default="models:/CatDogClassifier@production", help="Any model that answers label and confidence."
)
@click.option("--data", default="sample", help="A folder with one sub-folder a class, 'sample' or 'oxford-iiit-pet'.")
@click.option("--split", default="test", type=click.Choice(["train", "val", "test", "all"]), help="Which split of the data.")
def main(model_uri: str, data: str, split: str) -> None:
    """Measure a model on labelled photos, in a run of its own."""
    with program():
        from catdog_pyfunc.pipeline import tracking

        with tracking.run():
            from catdog_pyfunc.pipeline.evaluation.runs import EvaluationConfig, evaluate_model

            evaluation = evaluate_model(EvaluationConfig(model_uri, data, split))
    figures = {name: estimate for name, estimate in evaluation.estimates.items() if not math.isnan(estimate.value)}
    width = max(map(len, figures))
    for name, estimate in figures.items():
        click.echo(f"{split} {name:<{width}}  {estimate}")
    if evaluation.latency_p50_ms is not None:
        click.echo(f"a lone picture: {evaluation.latency_p50_ms:.1f} ms, p99 {evaluation.latency_p99_ms:.1f} ms")


if __name__ == "__main__":
    main()
