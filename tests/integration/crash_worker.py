"""A program for tests: moves aliases in processes that die by SIGKILL before their nth request that writes.

`python -m tests.integration.crash_worker URI` reads lines from standard input, each a JSON list of jobs, does the jobs of a
line at once, and answers with their exit codes. It forks after all imports, so that a job takes milliseconds.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable
from multiprocessing.synchronize import Barrier
from typing import Any

import mlflow
from mlflow.utils import rest_utils

from catdog_pyfunc.errors import PromotionLost
from catdog_pyfunc.pipeline.registry import reconcile
from catdog_pyfunc.pipeline.registry.audit_log import PROMOTED, Entry, open_audit_log
from catdog_pyfunc.pipeline.registry.state import replay

DONE, LOST, FAILED = 0, 3, 5


def die_before(number: int) -> None:
    """Let the process die before its nth request that writes."""
    sent, real = 0, rest_utils.http_request

    def counted(host_creds: Any, endpoint: str, method: str, *args: Any, **kwargs: Any) -> Any:
        nonlocal sent
        if method != "GET" and "search" not in endpoint:
            if sent == number:
                os.kill(os.getpid(), signal.SIGKILL)
            sent += 1
        return real(host_creds, endpoint, method, *args, **kwargs)

    rest_utils.http_request = counted


def promote(name: str, version: str, alias: str = "production", decided: Callable[[], object] = lambda: None) -> None:
    """Move an alias without a gate; `decided` is called between reading the entries and writing."""
    audit_log = open_audit_log(name)
    seen = reconcile.reconcile(audit_log)
    decided()
    reconcile.commit(audit_log, Entry(PROMOTED, alias, version, replay(seen).aliases.get(alias)), seen)


def do(job: dict[str, Any], all_decided: Barrier) -> int:
    if "die_before" in job:
        die_before(job["die_before"])
    try:
        if job["do"] == "promote":
            promote(job["name"], job["version"], decided=lambda: all_decided.wait(60))
        elif job["do"] == "rollback":
            reconcile.roll_back(job["name"])
        else:
            open_audit_log(job["name"])
    except PromotionLost:
        return LOST
    except Exception:
        traceback.print_exc()
        return FAILED
    return DONE


def main() -> None:
    mlflow.set_tracking_uri(sys.argv[1])
    for line in sys.stdin:
        jobs, children = json.loads(line), []
        all_decided = multiprocessing.get_context("fork").Barrier(len(jobs))  # all jobs decide on the same entries
        for job in jobs:
            pid = os.fork()
            if pid == 0:
                os.dup2(2, 1)  # what MLflow prints must not get between the answers
                os._exit(do(job, all_decided))
            children.append(pid)
        print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]), flush=True)


if __name__ == "__main__":
    main()
