"""What an evaluation shows, as matplotlib figures; no window, no global state."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from catdog_pyfunc.pipeline.evaluation.evaluation import Evaluation
from catdog_pyfunc.pipeline.evaluation.intervals import Estimate, wilson

RIGHT, WRONG = "#4c78a8", "#e45756"
_GREY = "#777777"
_COLOURS = ("#4c78a8", "#f58518", "#54a24b", "#e45756", "#72b7b2", "#b279a2", "#9d755d", "#eeca3b", "#ff9da6", "#79706e")
_MOST_NUMBERS = 20  # classes up to which a confusion matrix shows its counts
_ZOOMED_FROM = 0.95  # AUROC from which the curve's corner is shown enlarged
_BINS = 25


def confusion_matrix(evaluation: Evaluation) -> Figure:
    """Truth down, answer across: counts and shares of the row, shaded by the share."""
    counts, classes = evaluation.confusion, evaluation.classes
    portions = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = max(3.6, min(0.62 * len(classes), 14) + 1.6)
    figure = Figure(figsize=(side + 1.4, side + 0.4), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(portions, cmap="Blues", vmin=0, vmax=1)
    ticks = range(len(classes))
    short = len(classes) < 6 and max(map(len, classes)) < 12
    axes.set_xticks(ticks, classes, rotation=0 if short else 90)
    axes.set_yticks(ticks, classes)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set(xlabel="answer", ylabel="truth")
    for row in ticks if len(classes) <= _MOST_NUMBERS else ():
        for column in ticks:
            text = f"{counts[row, column]}" + (f"\n{100 * portions[row, column]:.1f} %" if len(classes) < 6 else "")
            colour = "white" if portions[row, column] > 0.5 else "black"
            axes.text(column, row, text, ha="center", va="center", color=colour)
    bar = figure.colorbar(image, ax=axes, label="share of the truth's pictures", shrink=0.85)
    bar.outline.set_visible(False)
    missing = evaluation.estimates["unreadable"].value * len(evaluation.images)
    _title(figure, "Confusion matrix", f"accuracy {_interval(evaluation.accuracy)}" + _unreadable(round(missing)))
    return figure


def roc(evaluation: Evaluation) -> Figure:
    """The ROC curve: of two classes the second's, of more each one's against the rest; the corner enlarged if it is good."""
    figure = Figure(figsize=(5.2, 5.2), layout="constrained")
    axes = figure.subplots()
    read = ~np.isnan(evaluation.probabilities).any(axis=1)
    labels = np.array(evaluation.labels)[read]
    names = evaluation.classes[1:] if len(evaluation.classes) == 2 else evaluation.classes
    estimate = evaluation.estimates["auroc"]
    panes = [axes]
    if estimate.value > _ZOOMED_FROM:
        panes.append(_enlarged(axes))
    else:
        axes.plot([0, 1], [0, 1], color=_GREY, ls=":", lw=1.2)  # what guessing would give
    for pane in panes:
        for place, name in enumerate(names):
            scores = evaluation.probabilities[read, evaluation.classes.index(name)]
            pane.plot(*_roc_points(labels == name, scores), color=_COLOURS[place % 10], lw=1.8, label=name)
    axes.set(xlabel="false positive rate", ylabel="true positive rate", xlim=(-0.01, 1), ylim=(0, 1.01), aspect="equal")
    _quiet(axes)
    if 1 < len(names) <= 10:
        axes.legend(frameon=False, loc="lower right", fontsize=8)
    what = f"{names[0]} against {evaluation.classes[0]}" if len(names) == 1 else "each class against the rest"
    _title(figure, f"ROC curve, {what}", f"AUROC {_interval(estimate)}")
    return figure


def reliability(evaluation: Evaluation) -> Figure:
    """Accuracy over confidence, in bins with 95 % intervals; on the diagonal, confidence is what it says."""
    bins = evaluation.calibration
    figure = Figure(figsize=(5.2, 5.2), layout="constrained")
    axes = figure.subplots()
    lowest = _lowest(evaluation)
    axes.plot([lowest, 1], [lowest, 1], color=_GREY, ls=":", lw=1.2, label="confidence as it should be")
    spans = [wilson(round(a * n), int(n)) for a, n in zip(bins.accuracy, bins.counts, strict=True)]
    errors = [[s.value - s.low for s in spans], [s.high - s.value for s in spans]]
    axes.errorbar(
        bins.confidence, bins.accuracy, errors, fmt="o", ms=6, color=RIGHT, capsize=3, label="measured, 95 % interval"
    )
    for x, count in zip(bins.confidence, bins.counts, strict=True):
        axes.text(x, -0.035, f"{count}", ha="center", va="center", fontsize=7, color=_GREY, rotation=45)
    axes.set(xlabel="confidence (below the points: how many pictures)", ylabel="accuracy")
    axes.set(xlim=(lowest - 0.02, 1.02), ylim=(-0.08, 1.03))
    _quiet(axes)
    figure.legend(frameon=False, loc="outside lower center", fontsize=8, ncols=2)
    error = _interval(evaluation.estimates["calibration_error"])
    _title(figure, "Reliability", f"expected calibration error {error}")
    return figure


def confidence(evaluation: Evaluation) -> Figure:
    """How many right and wrong answers had which confidence; counts on a logarithmic scale, so that few wrong ones show."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    pairs = list(zip(evaluation.predictions, evaluation.correct, strict=True))
    correct = [p.confidence for p, is_right in pairs if p.confidence is not None and is_right]
    wrong = [p.confidence for p, is_right in pairs if p.confidence is not None and not is_right]
    counts, _, _ = axes.hist(
        [correct, wrong],
        np.linspace(_lowest(evaluation), 1, _BINS + 1).tolist(),
        color=[RIGHT, WRONG],
        label=[f"right ({len(correct)})", f"wrong ({len(wrong)})"],
        rwidth=0.9,
    )
    if correct or wrong:
        axes.set_yscale("log")
        axes.set_ylim(0.6, max(10.0, 4 * float(np.max(counts))))  # room for the legend
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("")
    axes.set(xlabel="confidence", ylabel="pictures")
    _quiet(axes)
    axes.legend(frameon=False, loc="upper left")
    _title(figure, "Confidence of right and wrong answers", f"log-loss {_interval(evaluation.estimates['log_loss'])}")
    return figure


def _enlarged(axes: Axes) -> Axes:
    corner = axes.inset_axes((0.42, 0.14, 0.52, 0.52))
    corner.set(xlim=(0, 0.1), ylim=(0.9, 1.002))
    corner.tick_params(labelsize=7)
    corner.grid(alpha=0.25)
    axes.indicate_inset_zoom(corner, edgecolor=_GREY, alpha=0.6)
    return corner


def _roc_points(positive: npt.NDArray[np.bool_], scores: npt.NDArray[np.float64]) -> tuple[list[float], list[float]]:
    """False and true positive rates as the threshold falls; equal scores fall together."""
    order = np.argsort(-scores, kind="stable")
    lasts = np.flatnonzero(np.diff(scores[order], append=-np.inf))
    true, false = positive[order].cumsum()[lasts], (~positive[order]).cumsum()[lasts]
    rates = false / max(int((~positive).sum()), 1), true / max(int(positive.sum()), 1)
    return [0.0, *rates[0].tolist()], [0.0, *rates[1].tolist()]


def _lowest(evaluation: Evaluation) -> float:
    """The least confidence that the best of C classes can have, or that an answer had."""
    known = [p.confidence for p in evaluation.predictions if p.confidence is not None]
    return math.floor(10 * min([1 / len(evaluation.classes), *known])) / 10


def _quiet(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)


def _title(figure: Figure, title: str, figures: str) -> None:
    figure.suptitle(title, fontsize=12, weight="bold")
    figure.axes[0].set_title(figures, fontsize=8.5, color="#444444")


def _interval(estimate: Estimate) -> str:
    if math.isnan(estimate.value):
        return "not to be had from these pictures"
    return f"{estimate.value:.4f} (95 %: {estimate.low:.4f}–{estimate.high:.4f}), n = {estimate.n}"


def _unreadable(count: int) -> str:
    return f"\n{count} could not be read and count as wrong" if count else ""
