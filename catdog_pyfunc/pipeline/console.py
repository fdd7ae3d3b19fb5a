"""Console output: messages, progress, tables."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")
_LOG_INTERVAL_S = 10.0


def log(message: str) -> None:
    """Print a line to standard error, unbuffered."""
    print(message, file=sys.stderr, flush=True)


def progress(items: Iterable[Item], title: str, total: int, done: int = 0) -> Iterator[Item]:
    """Show the progress of a loop: a bar on a terminal, a line every ten seconds and at the end in a log.

    Args:
        items: The items to loop over.
        title: A few words for what the loop does.
        total: Number of items, those included that an earlier call has done.
        done: Number of those.

    Yields:
        The items.
    """
    if sys.stderr.isatty():
        yield from tqdm(items, desc=title, total=total, initial=done)
        return
    started = logged = time.monotonic()
    for here, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if done + here == total or now - logged >= _LOG_INTERVAL_S:
            logged, elapsed = now, max(now - started, 1e-3)
            left = (total - done - here) * elapsed / here
            log(f"{title}: {done + here}/{total} ({elapsed:.0f} s, {here / elapsed:.0f}/s, {left:.0f} s left)")


def text_table(rows: Sequence[Sequence[str]]) -> str:
    """Align rows of cells in columns, for a terminal or a log."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Render rows of cells as a Markdown table; the first row is its header."""
    header, *body = rows
    return "".join(f"| {' | '.join(row)} |\n" for row in (header, ["---"] * len(header), *body))
