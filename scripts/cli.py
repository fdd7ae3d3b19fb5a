"""What all programs share: an error of ours is a message and exit code 1, Ctrl-C is 130, and neither is a traceback."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import click

from catdog_pyfunc.errors import CatDogError
from catdog_pyfunc.pipeline.tracking import interrupted


@contextlib.contextmanager
def program() -> Iterator[None]:
    """Turn errors that a user can mend into messages; keep MLflow's bars for each little file out of the log."""
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    try:
        yield
    except CatDogError as wrong:
        raise click.ClickException(str(wrong)) from None
    except KeyboardInterrupt:
        if run_id := os.environ.get("MLFLOW_RUN_ID"):  # still there: so early that `tracking.run` hasn't begun
            interrupted.mark_killed(run_id)
        click.echo("interrupted", err=True)
        raise SystemExit(130) from None
