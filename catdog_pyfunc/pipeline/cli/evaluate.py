"""`catdog evaluate`, and `mlflow run . -e evaluate`."""

from __future__ import annotations

import math

import click

from catdog_pyfunc.pipeline import tracking
from catdog_pyfunc.pipeline.cli.options import build, options_from
from catdog_pyfunc.pipeline.console import text_table
from catdog_pyfunc.pipeline.data.dataset import ALL, SPLITS
from catdog_pyfunc.pipeline.evaluation.evaluation import Evaluation
from catdog_pyfunc.pipeline.evaluation.runs import EvaluationConfig, evaluate_model


@click.command("evaluate")
@options_from(EvaluationConfig, split=(*SPLITS, ALL))
def command(**options: object) -> None:
    """Evaluate a model on labelled images."""
    config = build(EvaluationConfig, options)
    with tracking.run():
        evaluation = evaluate_model(config)
    click.echo(text_table(_rows(evaluation, config.split)))


def _rows(evaluation: Evaluation, split: str) -> list[list[str]]:
    measured = {name: str(estimate) for name, estimate in evaluation.estimates.items() if not math.isnan(estimate.value)}
    if evaluation.latency_p50_ms is not None:
        measured["single-image latency"] = f"{evaluation.latency_p50_ms:.1f} ms (p99 {evaluation.latency_p99_ms:.1f} ms)"
    return [[f"{split} {name}", text] for name, text in measured.items()]
