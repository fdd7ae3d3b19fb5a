"""The number of CPU cores that this process may use."""

from __future__ import annotations

import contextlib
import math
import os
from pathlib import Path


def available_cores(control_group: Path = Path("/sys/fs/cgroup")) -> int:
    """Count the cores this process may use: CPU affinity, capped by the container's quota.

    A container that runs 64 threads on a quota of two cores is throttled most of the time.

    Args:
        control_group: The folder where Linux keeps the quota: cgroup v2's `cpu.max` or v1's two files, in microseconds.

    Returns:
        At least 1; a fraction of a core is rounded up.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for files in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        with contextlib.suppress(OSError, ValueError):  # no such file, or "max": no quota
            quota, period = map(int, " ".join((control_group / file).read_text() for file in files).split())
            if quota > 0:
                cores = min(cores, math.ceil(quota / period))
    return cores
