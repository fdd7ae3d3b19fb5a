"""Marks an interrupted run KILLED after MLflow has ended: `python -m catdog_pyfunc.pipeline.interrupted RUN_ID PID`.

When `mlflow run` is interrupted, it waits for the entry point and then marks the run FAILED even if it has ended as KILLED:
`RunStatus.is_terminated` of MLflow 3.17 compares a status name with a set of numbers. This process outlives it.
It is outside `tracking` so that starting it imports no MLflow: an import that Ctrl-C has broken off cannot be repeated.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time

_TIMEOUT_S = 60.0


def mark_killed(run_id: str) -> None:
    """Start a process that marks the run KILLED once this process's parent, `mlflow run`, has ended."""
    command = [sys.executable, "-m", "catdog_pyfunc.pipeline.interrupted", run_id, str(os.getppid())]
    null = subprocess.DEVNULL
    subprocess.Popen(command, stdin=null, stdout=null, stderr=null, start_new_session=True)


def main(run_id: str, parent: int) -> None:
    """Wait up to a minute for the parent process to end, then mark the run."""
    import mlflow

    deadline = time.monotonic() + _TIMEOUT_S
    with contextlib.suppress(ProcessLookupError):
        while time.monotonic() < deadline:
            os.kill(parent, 0)
            time.sleep(0.1)
    mlflow.MlflowClient().set_terminated(run_id, "KILLED")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
