"""The group `catdog`: imports a command when it is called, and turns expected errors into messages.

`catdog --help` answers in a fraction of a second, as torch and MLflow take seconds to import.
"""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Iterator
from typing import Any

import click

import catdog_pyfunc
from catdog_pyfunc.errors import CatDogError
from catdog_pyfunc.pipeline import interrupted

COMMANDS = {
    "train": "Train, log and register a classifier.",
    "audit": "Find wrong labels, duplicates, outliers and bad images.",
    "evaluate": "Evaluate a model on labelled images.",
    "register": "Register a run's model as a new version.",
    "promote": "Point an alias to a version if it passes the gate.",
    "rollback": "Point an alias back to its previous version.",
    "history": "Show who moved which alias when, and why.",
    "predict": "Predict the class of images.",
    "score": "Score many images, with predictions as parquet.",
    "select": "Select the images to label next.",
    "drift": "Compare what a version predicts with its test split.",
}
"""Name → summary. Each is the `command` of the module of the same name in this package."""
MLFLOW_RUN = "mlflow run"  # the context's `obj` in a process that `mlflow run` has started


class _LazyGroup(click.Group):
    """Imports a command's module only when that command is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"{__package__}.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def invoke(self, ctx: click.Context) -> Any:
        with _errors_as_messages(), _refusals_as_errors():
            return super().invoke(ctx)


@click.group(cls=_LazyGroup, context_settings={"show_default": True})
@click.version_option(catdog_pyfunc.__version__)
@click.pass_context
def catdog(ctx: click.Context) -> None:
    """Train, evaluate, govern and use image classifiers in MLflow.

    The tracking server is MLFLOW_TRACKING_URI, the experiment MLFLOW_EXPERIMENT_NAME ("catdog" if unset).
    """
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # one bar per small file otherwise
    if "MLFLOW_RUN_ID" in os.environ:  # MLflow unsets it when the run starts
        ctx.obj = MLFLOW_RUN


@contextlib.contextmanager
def _refusals_as_errors() -> Iterator[None]:
    """Say what it means where the tracking server refuses."""
    try:
        yield
    except Exception as error:
        if type(error).__module__.split(".")[0] in ("mlflow", "requests"):
            from catdog_pyfunc import access

            access.check(error)
        raise


@contextlib.contextmanager
def _errors_as_messages() -> Iterator[None]:
    """Exit with 1 and a message on an expected error, with 130 on Ctrl-C or SIGTERM; neither prints a traceback."""
    try:
        yield
    except CatDogError as error:
        raise click.ClickException(str(error)) from None
    except ModuleNotFoundError as missing:
        if (missing.name or "").startswith("catdog_pyfunc"):
            raise
        raise click.ClickException(f"{missing.name} is not installed: pip install 'catdog-pyfunc[train]'") from None
    except KeyboardInterrupt:
        if run_id := os.environ.get("MLFLOW_RUN_ID"):  # still set: interrupted before `tracking.run` began
            interrupted.mark_killed(run_id)
        click.echo("interrupted", err=True)
        raise SystemExit(130) from None
