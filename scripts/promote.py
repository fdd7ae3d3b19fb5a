"""`mlflow run . -e promote -P version=…`: let an alias point to a version, if it passes the gate."""

from __future__ import annotations

import click

from catdog_pyfunc.pipeline.console import text_table
from scripts.cli import program


@click.command(context_settings={"show_default": True})
@click.option("--version", required=True, help="The version's number.")
@click.option("--alias", default="production", help="production, staging, or a name of your own.")
@click.option("--name", default="CatDogClassifier", help="The registered model.")
@click.option("--data", default="auto", help="Photos to decide on; 'auto': those that the version was tested on.")
@click.option("--split", default="test", type=click.Choice(["train", "val", "test", "all"]), help="Which split of them.")
@click.option("--reason", default="", help="Why, for the history.")
@click.option("--force", type=bool, default=False, help="Move the alias whatever the checks say; needs a reason.")
@click.option("--seed", default=0, help="Of the intervals' bootstrap.")
@click.option("--min-accuracy", default=0.8, help="At least, whatever the champion does.")
@click.option("--alpha", default=0.05, help="Refused if p of McNemar's test against the champion is below.")
@click.option("--log-loss-margin", default=0.05, help="Nats above the champion's that pass.")
@click.option("--calibration-margin", default=0.05, help="Calibration error above the champion's that passes.")
@click.option("--recall-margin", default=0.05, help="Recall of a class below the champion's that passes.")
@click.option("--latency-ratio", default=1.5, help="p99 latency, times the champion's, that passes.")
@click.option("--latency-allowed-ms", default=50.0, help="p99 latency that always passes.")
def main(
    version: str, alias: str, name: str, data: str, split: str, reason: str, force: bool, seed: int, **thresholds: float
) -> None:
    """Let an alias point to a version, if it passes the gate."""
    with program():
        from catdog_pyfunc.pipeline import tracking

        with tracking.run():
            from catdog_pyfunc.pipeline.registry import gate
            from catdog_pyfunc.pipeline.registry.promotion import Promotion, promote

            report = promote(
                Promotion(version, alias, name, data, split, reason, force, seed), gate.Thresholds(**thresholds), show=_show
            )
    if not report:
        click.echo(f"models:/{name}@{alias} is version {version} already: nothing to do")
        return
    click.echo(f"models:/{name}@{alias} is version {version}; next: mlflow models serve -m models:/{name}@{alias} -p 5001")


def _show(rows: list[list[str]]) -> None:
    click.echo(text_table(rows))


if __name__ == "__main__":
    main()
