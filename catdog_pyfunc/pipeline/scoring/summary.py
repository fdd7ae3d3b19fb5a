"""Counts and plots of an output, read back from its files: the same for every engine, and after any interruption."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow.compute as pc
import pyarrow.dataset as ds
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

BINS = {
    "confidence": np.linspace(0, 1, 26),
    "domain_score": np.linspace(-1, 1, 101),
    "image_bytes": 1024 * 2 ** (np.arange(33) / 2),  # to 64 MiB
}
"""Column → edges of the bins that its values are counted in; what lies outside counts in the outermost."""
_READ = ["label", "in_domain", "error", *BINS]


@dataclass(frozen=True)
class Summary:
    """What an output holds.

    Attributes:
        labels: Class → number of images.
        histograms: confidence, domain_score, image_bytes → number of readable images in each bin.
        errors: Images that cannot be read.
        out_of_domain: Images that probably show none of the classes.
    """

    labels: dict[str, int]
    histograms: dict[str, npt.NDArray[np.int64]]
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

    def table(self) -> str:
        """The histograms as CSV."""
        frames = [
            pd.DataFrame({"quantity": name, "from": BINS[name][:-1], "to": BINS[name][1:], "images": counts})
            for name, counts in self.histograms.items()
        ]
        return str(pd.concat(frames).to_csv(index=False, float_format="%.6g", lineterminator="\n"))


def summarise(output: Path) -> Summary:
    """Count the predictions of an output.

    Args:
        output: A folder of parquet, complete.

    Returns:
        The counts.
    """
    labels: Counter[str] = Counter()
    histograms, errors, out_of_domain = {name: np.zeros(len(edges) - 1, np.int64) for name, edges in BINS.items()}, 0, 0
    for batch in ds.dataset(output, format="parquet").to_batches(columns=_READ):
        cells = batch.filter(pc.is_valid(batch["label"])).to_pydict()
        labels.update(cells["label"])
        for name, edges in BINS.items():
            histograms[name] += np.histogram(np.clip(cells[name], edges[0], edges[-1]), edges)[0]
        errors += batch.num_rows - len(cells["label"])
        out_of_domain += sum(inside is False for inside in cells["in_domain"])
    return Summary(dict(sorted(labels.items())), histograms, errors, out_of_domain)


def plot(summary: Summary) -> Figure:
    """Images per class, and how confidence, `domain_score` and the files' sizes are distributed."""
    figure = Figure(figsize=(8.4, 6.4), layout="constrained")
    panes = figure.subplots(2, 2).ravel().tolist()
    _plot_labels(summary, panes[0])
    titles = {"confidence": "how sure the model was", "domain_score": "similarity to the training images"}
    for axes, (name, counts) in zip(panes[1:], summary.histograms.items(), strict=True):
        (found,) = counts.nonzero()
        first, last = (found[0], found[-1] + 1) if len(found) else (0, len(counts))
        axes.stairs(counts[first:last], BINS[name][first : last + 1], fill=True, color="#4c78a8")
        axes.set(xlabel=name, ylabel="images", title=titles.get(name, "size of the files"))
    panes[1].set_xlim(0, 1)
    panes[3].set_xscale("log")
    panes[3].xaxis.set_major_formatter(EngFormatter("B"))
    panes[3].xaxis.set_minor_formatter("")
    for axes in panes:
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _plot_labels(summary: Summary, axes: Axes) -> None:
    names = [*summary.labels, *(["cannot be read"] if summary.errors else [])]
    counts = [*summary.labels.values(), *([summary.errors] if summary.errors else [])]
    bars = axes.barh(names, counts, color=["#4c78a8"] * len(summary.labels) + ["#777777"])
    axes.bar_label(bars, fmt="{:,.0f}", padding=3)
    axes.invert_yaxis()
    axes.margins(x=0.18)
    axes.set(xlabel="images", title="predictions")
