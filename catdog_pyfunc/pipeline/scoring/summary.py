"""Counts and plots of an output, read back from its files: the same for every engine, and after any interruption."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.dataset as ds
from matplotlib.figure import Figure

_BINS = np.linspace(0, 1, 26)
_READ = ["label", "confidence", "in_domain", "error"]


@dataclass(frozen=True)
class Summary:
    """What an output holds.

    Attributes:
        labels: Class → number of images.
        confidences: Number of images in each of 25 equal bins of confidence, 0 to 1.
        errors: Images that cannot be read.
        out_of_domain: Images that probably show none of the classes.
    """

    labels: dict[str, int]
    confidences: npt.NDArray[np.int64]
    errors: int
    out_of_domain: int

    @property
    def images(self) -> int:
        """All images, those that cannot be read included."""
        return sum(self.labels.values()) + self.errors

    def metrics(self) -> dict[str, float]:
        """The counts as MLflow's metrics."""
        counts = {"images": self.images, "errors": self.errors, "out_of_domain": self.out_of_domain}
        counts |= {f"label_{label}": count for label, count in self.labels.items()}
        return {f"scored/{name}": float(count) for name, count in counts.items()}


def summarise(output: Path) -> Summary:
    """Count the predictions of an output.

    Args:
        output: A folder of parquet, complete.

    Returns:
        The counts.
    """
    labels: Counter[str] = Counter()
    confidences, errors, out_of_domain = np.zeros(len(_BINS) - 1, np.int64), 0, 0
    for batch in ds.dataset(output, format="parquet").to_batches(columns=_READ):
        cells = batch.to_pydict()
        labels.update(label for label in cells["label"] if label is not None)
        confidences += np.histogram([value for value in cells["confidence"] if value is not None], _BINS)[0]
        errors += sum(error is not None for error in cells["error"])
        out_of_domain += sum(inside is False for inside in cells["in_domain"])
    return Summary(dict(sorted(labels.items())), confidences, errors, out_of_domain)


def plot(summary: Summary) -> Figure:
    """Images per class, and how sure the model was."""
    figure = Figure(figsize=(8.4, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    names = [*summary.labels, *(["cannot be read"] if summary.errors else [])]
    counts = [*summary.labels.values(), *([summary.errors] if summary.errors else [])]
    bars = left.barh(names, counts, color=["#4c78a8"] * len(summary.labels) + ["#777777"])
    left.bar_label(bars, fmt="{:,.0f}", padding=3)
    left.invert_yaxis()
    left.margins(x=0.18)
    left.set(xlabel="images", title="predictions")
    right.stairs(summary.confidences, _BINS, fill=True, color="#4c78a8")
    right.set(xlabel="confidence", ylabel="images", xlim=(0, 1), title="how sure the model was")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    return figure
