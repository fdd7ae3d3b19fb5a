"""What was measured, as a table and as the shares that matter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Row:
    """One server, one photo size, one number of clients."""

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


def reached(rows: Sequence[Row]) -> dict[str, Any]:
    """At 8 clients: the share of what path and limit allow, how many times the plain way, p99 over p50; and start-up."""
    at = {(row.server, row.workers, row.size): row for row in rows if row.clients == 8}
    told: dict[str, Any] = {}
    for workers in (1, 2):
        for size in dict.fromkeys(row.size for row in rows):
            names = [("catdog", workers, size), ("path", workers, size), ("limit", 1, size), ("plain pyfunc", workers, size)]
            if not all(name in at for name in names):
                continue
            ours, path, limit, plain = (at[name] for name in names)
            possible = 1 / (1 / path.images_per_s + 1 / limit.images_per_s)
            told[f"{workers} workers, {size}"] = {
                "possible_images_per_s": round(possible, 1),
                "share_of_possible": round(ours.images_per_s / possible, 3),
                "times_plain": round(ours.images_per_s / plain.images_per_s, 2),
                "p99_over_p50": round(ours.p99_ms / ours.p50_ms, 2),
                "start_up_of_plain": round((ours.start_s or 0) / (plain.start_s or 1), 2),
            }
    return told


def table(rows: Sequence[Row]) -> str:
    """Markdown."""
    lines = [
        "| server | workers | photos | clients | images/s | p50 ms | p99 ms | start s | MB a worker | same label | errors |"
    ]
    lines.append("|---|---|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        start = "" if row.start_s is None else f"{row.start_s:.1f}"
        memory = "" if row.memory_mb is None else f"{row.memory_mb:.0f}"
        figures = f"{row.images_per_s:.1f} | {row.p50_ms:.1f} | {row.p99_ms:.1f} | {start} | {memory}"
        lines.append(
            f"| {row.server} | {row.workers} | {row.size} | {row.clients} | {figures} | {row.same_labels} | {row.errors} |"
        )
    return "\n".join(lines)
