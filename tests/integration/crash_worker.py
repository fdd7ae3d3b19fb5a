"""A program for tests: makes moves in processes that die by SIGKILL before their nth request that writes.

`python -m tests.integration.cut_off` reads a JSON line a job from standard input and answers each with a line. It has
imported everything before the first, so that a job costs milliseconds and not seconds.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from typing import Any

import mlflow
from mlflow.utils import rest_utils

from catdog_pyfunc.errors import PromotionLost, RegistryError
from catdog_pyfunc.pipeline.registry import reconcile
from catdog_pyfunc.pipeline.registry.audit_log import PROMOTED, Entry, open_audit_log, replay

DONE, LOST, NOTHING, BROKEN = 0, 3, 4, 5


def die_before(number: int) -> None:
    """Let the process die before its nth request that is no GET."""
    sent, real = 0, rest_utils.http_request

    def counted(host_creds: Any, endpoint: str, method: str, *args: Any, **kwargs: Any) -> Any:
        nonlocal sent
        if method != "GET" and "search" not in endpoint:
            if sent == number:
                os.kill(os.getpid(), signal.SIGKILL)
            sent += 1
        return real(host_creds, endpoint, method, *args, **kwargs)

    rest_utils.http_request = counted


def promote(name: str, version: str, alias: str, start: float = 0.0) -> None:
    """Move without a gate; all that do so at once decide on the same trail."""
    audit_log = open_audit_log(name)
    seen = reconcile.reconcile(audit_log)
    time.sleep(max(0.0, start - time.time()))
    reconcile.commit(audit_log, Entry(PROMOTED, alias, version, replay(seen).aliases_by_name.get(alias)), seen)


def child(job: dict[str, Any]) -> int:
    if "die_before" in job:
        die_before(job["die_before"])
    try:
        if job["do"] == "promote":
            promote(job["name"], job["version"], job["alias"], job.get("start", 0.0))
        elif job["do"] == "roll back":
            reconcile.roll_back(job["name"])
        else:
            open_audit_log(job["name"])
    except PromotionLost:
        return LOST
    except RegistryError:
        return NOTHING
    except Exception:
        traceback.print_exc()
        return BROKEN
    return DONE


def main() -> None:
    mlflow.set_tracking_uri(sys.argv[1])
    for line in sys.stdin:
        children = []
        for job in json.loads(line):
            pid = os.fork()
            if pid == 0:
                os.dup2(2, 1)  # what MLflow prints must not stand among the answers
                os._exit(child(job))
            children.append(pid)
        print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]), flush=True)


if __name__ == "__main__":
    main()
