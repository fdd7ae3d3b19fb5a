"""The command `catdog-follow`."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import click

from catdog_pyfunc.pipeline.processes import sigterm_as_interrupt
from mlflow_catdog.following.endpoint import listening
from mlflow_catdog.following.follower import Follower

# MLflow's own are 7 and 120: a registry that was away for an hour would be noticed only minutes after it is back.
_RETRIES, _TIMEOUT_S = "2", "30"


@click.command()
@click.option("--interval", default=15.0, show_default=True, type=click.FloatRange(min=1), help="Seconds between two looks.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address of the webhook and the metrics.")
@click.option("--port", default=8090, show_default=True, type=click.IntRange(1, 65535), help="Port of the same.")
@click.option(
    "--webhook-secret-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="File with the secret of MLflow's webhook; without it, webhooks are refused.",
)
def main(interval: float, host: str, port: int, webhook_secret_file: Path | None) -> None:
    """Deploy what aliases point to.

    Replaces the model of each deployment with follow=true as soon as its alias names another version, and writes the
    outcome to the model's audit log. Uses the registry of MLFLOW_TRACKING_URI and the Docker daemon of DOCKER_HOST or of
    docker's current context. Runs until Ctrl-C or SIGTERM.
    """
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", _RETRIES)
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", _TIMEOUT_S)
    secret = webhook_secret_file.read_bytes().strip() if webhook_secret_file else b""
    follower = Follower(interval)
    with contextlib.suppress(KeyboardInterrupt), sigterm_as_interrupt(), contextlib.ExitStack() as stack:
        try:
            stack.enter_context(listening(host, port, follower.statuses, follower.look_now, secret))
        except OSError as failure:
            raise click.ClickException(f"cannot listen on {host}:{port} ({failure}): choose another --port") from None
        follower.run()
