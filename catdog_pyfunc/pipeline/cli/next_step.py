"""The command that a message suggests to run next."""

from __future__ import annotations

import shlex

import click

from catdog_pyfunc.pipeline.cli.main import MLFLOW_RUN
from catdog_pyfunc.pipeline.registry import versions


def promote_command(name: str, version: str) -> str:
    """Format the command that promotes a version: for `mlflow run` if that started this process, else for `catdog`."""
    given = {"version": version} if name == versions.NAME else {"version": version, "name": name}
    if click.get_current_context().find_root().obj == MLFLOW_RUN:
        return shlex.join(
            ["mlflow", "run", ".", "-e", "promote", *(w for k, v in given.items() for w in ("-P", f"{k}={v}"))]
        )
    return shlex.join(["catdog", "promote", *(w for k, v in given.items() for w in (f"--{k}", v))])
