"""What an audit finds: one finding per suspected image and kind."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from catdog_pyfunc.pipeline.data.dataset import Dataset, Example

KINDS = {
    "label_error": "Labels that look wrong",
    "exact_duplicate": "The same file again",
    "near_duplicate": "Near-duplicates",
    "outlier": "Unlike all other images",
    "dark": "Too dark",
    "bright": "Too bright",
    "blurred": "Blurred",
    "tiny": "Tiny",
    "odd_shape": "Odd shape",
    "corrupt": "Unreadable",
}
"""Kind → title of its gallery."""
COLUMNS = ("path", "split", "label", "suggestion", "score", "kind", "reason")


@dataclass(frozen=True)
class Image:
    """An image of the dataset, and the split that it is in."""

    split: str
    example: Example


@dataclass(frozen=True)
class Finding:
    """A suspected image.

    Attributes:
        image: The image.
        kind: One of `KINDS`.
        score: How strongly it is suspected, 0 to 1; comparable within a kind.
        reason: Why.
        suggestion: The class that it seems to belong to; "" unless the label is suspected.
        original: The image that it is a copy of.
    """

    image: Image
    kind: str
    score: float
    reason: str
    suggestion: str = ""
    original: Path | None = None


def root(dataset: Dataset) -> Path:
    """The folder that paths are relative to: the data folder, or the one that all images of a named dataset are in."""
    if Path(dataset.source).is_dir():
        return Path(dataset.source)
    return Path(os.path.commonpath([example.path.parent for example in dataset.examples("all")]))


def table(findings: Sequence[Finding], dataset: Dataset) -> pd.DataFrame:
    """Make a table of findings, kind after kind, the most suspected images first.

    Args:
        findings: The findings.
        dataset: The dataset.

    Returns:
        A frame with the columns `COLUMNS`.
    """
    folder = root(dataset)
    rows = [
        (
            *(finding.image.example.path.relative_to(folder).as_posix(), finding.image.split),
            *(dataset.classes[finding.image.example.label], finding.suggestion),
            *(round(finding.score, 4), finding.kind, finding.reason),
        )
        for finding in ranked(findings)
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def ranked(findings: Sequence[Finding]) -> list[Finding]:
    """Sort by kind, then by score."""
    kinds = list(KINDS)
    return sorted(findings, key=lambda one: (kinds.index(one.kind), -one.score, one.image.example.path))
