"""The last word on an interrupted run: `python -m catdog_pyfunc.pipeline.tracking.interrupted RUN_ID PARENT_PID`.

When `mlflow run` is interrupted it waits for the entry point to end, and then marks the run FAILED, also one that has ended
as KILLED: MLflow 3.17 compares the status, a string, with a set of numbers (`RunStatus.is_terminated`). So this outlives it.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time

_TIMEOUT_S = 60.0


def mark_killed(run_id: str) -> None:
    """Start a process that marks the run KILLED once this process's parent has ended."""
    command = [sys.executable, "-m", "catdog_pyfunc.pipeline.tracking.interrupted", run_id, str(os.getppid())]
    quiet = subprocess.DEVNULL
    subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True)


def main(run_id: str, parent: int) -> None:
    """Wait for the parent to end, but a minute at most; mark the run."""
    import mlflow

    deadline = time.monotonic() + _TIMEOUT_S
    with contextlib.suppress(ProcessLookupError):
        while time.monotonic() < deadline:
            os.kill(parent, 0)
            time.sleep(0.1)
    mlflow.MlflowClient().set_terminated(run_id, "KILLED")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
