"""Marks a run KILLED once a process has ended: `python -m catdog_pyfunc.pipeline.interrupted RUN_ID PID TIMEOUT_S`.

When `mlflow run` is interrupted, it waits for the entry point and then marks the run FAILED even if it has ended as KILLED:
`RunStatus.is_terminated` of MLflow 3.17 compares a status name with a set of numbers. This process outlives it.
It is outside `tracking` so that starting it imports no MLflow: an import that Ctrl-C has broken off cannot be repeated.
"""

from __future__ import annotations

import contextlib
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator

_TIMEOUT_S = 60.0


def mark_killed(run_id: str) -> None:
    """Start a process that marks the run KILLED once this process's parent, `mlflow run`, has ended."""
    _start(run_id, os.getppid(), _TIMEOUT_S)


@contextlib.contextmanager
def marked_if_process_dies(run_id: str) -> Iterator[None]:
    """Have the run marked KILLED if this process is killed within the block, by SIGKILL or by a crash."""
    waiting = _start(run_id, os.getpid(), math.inf)
    try:
        yield
    finally:
        waiting.kill()
        waiting.wait()


def _start(run_id: str, process: int, timeout_s: float) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "catdog_pyfunc.pipeline.interrupted", run_id, str(process), str(timeout_s)]
    null = subprocess.DEVNULL
    return subprocess.Popen(command, stdin=null, stdout=null, stderr=null, start_new_session=True)


def main(run_id: str, process: int, timeout_s: float) -> None:
    """Wait for a process to end, but no longer than the timeout; then mark the run."""
    deadline = time.monotonic() + timeout_s
    with contextlib.suppress(ProcessLookupError):
        while time.monotonic() < deadline:
            os.kill(process, 0)
            time.sleep(0.1)
    import mlflow

    mlflow.MlflowClient().set_terminated(run_id, "KILLED")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
