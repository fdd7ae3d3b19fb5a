"""`catdog train`, and `mlflow run .`."""

from __future__ import annotations

import click

from catdog_pyfunc.pipeline import tracking
from catdog_pyfunc.pipeline.cli.next_step import promote_command
from catdog_pyfunc.pipeline.cli.options import build, options_from
from catdog_pyfunc.pipeline.processes import rank_and_size
from catdog_pyfunc.pipeline.training.config import TrainingConfig


@click.command("train")
@options_from(TrainingConfig)
@click.option("--run-name", default="", show_default=False, help="Name of the MLflow run; by default its main parameters.")
def command(run_name: str, **options: object) -> None:
    """Train, log and register a classifier.

    Under torchrun, all processes share the fine-tuning, and the first does everything else.
    """
    rank, size = rank_and_size()
    if rank > 0:
        from catdog_pyfunc.pipeline.training.finetuning import assist

        assist()
        return
    config = build(TrainingConfig, options)  # before the run: a wrong option leaves none
    config.check_processes(size)
    with tracking.run(run_name or None):
        from catdog_pyfunc.pipeline.training.train import train  # imports torch for seconds: the run is visible meanwhile

        result = train(config)
    click.echo(f"test accuracy {result.evaluation.accuracy}")
    click.echo(f"model {result.model_uri}")
    if result.version:
        name, version = config.registered_model, result.version
        click.echo(f"registered as models:/{name}/{version}; next: {promote_command(name, version)}")
