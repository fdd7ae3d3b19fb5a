"""One figure with a pane for each quantity: the test split beside what has been predicted since."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, PercentFormatter

from catdog_pyfunc.pipeline.evaluation.intervals import wilson
from catdog_pyfunc.pipeline.monitoring.comparison import Comparison
from catdog_pyfunc.pipeline.monitoring.sample import Sample, Values

_COLOURS = ("#4c78a8", "#f58518")  # test split, now
_DRIFTED, _GREY = "#c0392b", "#777777"
_MAX_LABELS = 12
_TICKS = (0.5, 0.9, 0.99, 0.999, 0.9999)  # of confidence
_SURE = 1e-5  # confidences closer to 1 are drawn there: the axis has no 1


def plot(comparisons: Sequence[Comparison], reference: Sample, observed: Sample) -> Figure:
    """Draw fractions with 95 % intervals, the labels that changed most, and distribution functions.

    Args:
        comparisons: What `compare` made of the two samples.
        reference: Of the test split.
        observed: Later predictions.

    Returns:
        The figure.
    """
    figure = Figure(figsize=(11, 6.6), layout="constrained")
    samples = reference.in_buckets_of(observed), observed
    for axes, comparison in zip(figure.subplots(2, 3).ravel(), comparisons, strict=True):
        _pane(axes, comparison.quantity, samples)
        p = f"p = {comparison.adjusted_p:.2g}" + ("" if comparison.ignored else " (corrected)")
        verdict = "drifted" if comparison.drifted else "ignored" if comparison.ignored else "no drift"
        colour = _DRIFTED if comparison.drifted else "black"
        title = f"{comparison.quantity}: {verdict}\nchange {comparison.effect:.3f}, {p}"
        axes.set_title(title, fontsize=10, color=colour)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        axes.set_axisbelow(True)
    names = f"test split ({reference.images} images)", f"now ({observed.images} images)"
    handles = [figure.axes[0].bar([0], [0], color=colour, label=name) for colour, name in zip(_COLOURS, names, strict=True)]
    figure.legend(handles=handles, frameon=False, loc="outside lower center", ncols=2)
    return figure


def _pane(axes: Axes, quantity: str, samples: tuple[Sample, Sample]) -> None:
    if quantity == "in_domain":
        _fractions(axes, "fraction out of domain", [(each.out_of_domain, each.readable) for each in samples])
    elif quantity == "error":
        _fractions(axes, "fraction that cannot be read", [(each.errors, each.images) for each in samples])
    elif quantity == "label":
        _labels(axes, [each.labels for each in samples])
    else:
        _distributions(axes, quantity, [each.values[quantity] for each in samples])


def _fractions(axes: Axes, what: str, counts: Sequence[tuple[int, int]]) -> None:
    estimates = [wilson(*each) for each in counts]
    heights = np.nan_to_num([each.value for each in estimates])
    ends = np.array([(each.low, each.high) for each in estimates]).T
    axes.bar(["test split", "now"], heights, color=_COLOURS, width=0.6)
    axes.errorbar([0, 1], heights, np.abs(ends - heights), fmt="none", color="black", capsize=5)
    axes.set(ylabel=what, ylim=(0, None))
    axes.yaxis.set_major_formatter(PercentFormatter(1))


def _labels(axes: Axes, counts: Sequence[Mapping[str, int]]) -> None:
    names = sorted({*counts[0], *counts[1]})
    fractions = {name: [each.get(name, 0) / max(sum(each.values()), 1) for each in counts] for name in names}
    changed = sorted(names, key=lambda name: -abs(fractions[name][1] - fractions[name][0]))[:_MAX_LABELS]
    shown = [name for name in names if name in changed]
    for side, colour in enumerate(_COLOURS):
        places = np.arange(len(shown)) + 0.4 * side - 0.2
        axes.barh(places, [fractions[name][side] for name in shown], 0.4, color=colour)
    axes.set_yticks(range(len(shown)), shown)
    axes.invert_yaxis()
    left_out = f"\nthe {len(shown)} of {len(names)} that changed most" if len(shown) < len(names) else ""
    axes.set(xlabel=f"fraction of predictions{left_out}")
    axes.xaxis.set_major_formatter(PercentFormatter(1))


def _distributions(axes: Axes, name: str, values: Sequence[Values]) -> None:
    known = np.concatenate(values)
    known = known[np.isfinite(known)]  # the last bucket has no upper bound
    if not len(known):
        axes.text(0.5, 0.5, "no images", ha="center", color=_GREY, transform=axes.transAxes)
        return
    end = min(known.max(), 1 - _SURE) if name == "confidence" else known.max()
    for each, colour in zip(values, _COLOURS, strict=True):
        if len(each):
            axes.ecdf(np.minimum(each, end), color=colour, lw=1.8)
    axes.set(xlabel=name, ylabel="fraction of images below", ylim=(0, 1.01))
    if name == "confidence":
        axes.set_xscale("logit")
        axes.set_xticks(_TICKS, [f"{tick:g}" for tick in _TICKS])
        axes.set_xticks([], minor=True)
    if name == "image_bytes":
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(EngFormatter("B"))
        axes.xaxis.set_minor_formatter("")
