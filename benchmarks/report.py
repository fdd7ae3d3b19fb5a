"""The measurements as a table, and the ratios that matter."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow

from catdog_pyfunc.cpu import available_cores
from catdog_pyfunc.pipeline.console import markdown_table


@dataclass(frozen=True)
class Row:
    """One server with one image size and one number of clients."""

    server: str
    workers: int
    size: str
    clients: int
    images_per_s: float
    p50_ms: float
    p99_ms: float
    errors: int
    same_labels: str
    start_s: float | None = None
    memory_mb: float | None = None


def ratios(rows: Sequence[Row]) -> dict[str, Any]:
    """Compare with the achievable throughput and with the PyTorch baseline, at 8 clients.

    What MLflow's overhead and the upper bound allow together is 1 / (1 / overhead + 1 / bound) images per second.
    """
    at = {(row.server, row.workers, row.size): row for row in rows if row.clients == 8}
    found: dict[str, Any] = {}
    for workers in (1, 2):
        for size in dict.fromkeys(row.size for row in rows):
            names = [
                ("catdog", workers, size),
                ("mlflow overhead", workers, size),
                ("upper bound", 1, size),
                ("torch pyfunc", workers, size),
            ]
            if not all(name in at for name in names):
                continue
            ours, overhead, bound, baseline = (at[name] for name in names)
            achievable = 1 / (1 / overhead.images_per_s + 1 / bound.images_per_s)
            found[f"{workers} workers, {size}"] = {
                "achievable_images_per_s": round(achievable, 1),
                "fraction_of_achievable": round(ours.images_per_s / achievable, 3),
                "times_torch_pyfunc": round(ours.images_per_s / baseline.images_per_s, 2),
                "p99_over_p50": round(ours.p99_ms / ours.p50_ms, 2),
                "start_up_vs_torch_pyfunc": round((ours.start_s or 0) / (baseline.start_s or 1), 2),
            }
    return found


def table(rows: Sequence[Row]) -> str:
    """All rows as a Markdown table."""
    head = ["server", "workers", "images", "clients", "images/s", "of the bound", "p50 ms", "p99 ms"]
    bounds = {(row.size, row.clients): row.images_per_s for row in rows if row.server == "upper bound"}
    cells = [[*head, "start s", "MB per worker", "same label", "errors"]]
    for row in rows:
        start = "" if row.start_s is None else f"{row.start_s:.1f}"
        memory = "" if row.memory_mb is None else f"{row.memory_mb:.0f}"
        fraction = f"{row.images_per_s / bounds[row.size, row.clients]:.2f}"
        speed = [f"{row.images_per_s:.1f}", fraction, f"{row.p50_ms:.1f}", f"{row.p99_ms:.1f}"]
        named = [row.server, str(row.workers), row.size, str(row.clients)]
        cells.append([*named, *speed, start, memory, row.same_labels, str(row.errors)])
    return markdown_table(cells)


def machine() -> str:
    """The processor and the versions that a measurement depends on."""
    model = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        names = [
            line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
        ]
        model = names[0] if names else model
    return f"{available_cores()} cores of {model}, Python {platform.python_version()}, MLflow {mlflow.__version__}"
