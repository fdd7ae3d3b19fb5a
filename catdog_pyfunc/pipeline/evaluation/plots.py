"""Plots of an evaluation, as matplotlib figures; without pyplot, so without windows and global state."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.metrics import roc_curve

from catdog_pyfunc.pipeline.evaluation.corruptions import CORRUPTIONS, SEVERITIES
from catdog_pyfunc.pipeline.evaluation.evaluation import Evaluation
from catdog_pyfunc.pipeline.evaluation.intervals import Estimate, wilson
from catdog_pyfunc.pipeline.evaluation.stress import StressTest

CORRECT, WRONG = "#4c78a8", "#e45756"
_GREY = "#777777"
_COLOURS = ("#4c78a8", "#f58518", "#54a24b", "#e45756", "#72b7b2", "#b279a2", "#9d755d", "#eeca3b", "#ff9da6", "#79706e")
_MAX_NUMBERED = 20  # classes up to which a confusion matrix shows its counts
_ZOOMED_FROM = 0.95  # AUROC above which the top left corner is shown enlarged
_BINS = 25


def confusion_matrix(evaluation: Evaluation) -> Figure:
    """Counts and fractions of each label's images, shaded by the fraction; rows are labels, columns are predictions."""
    counts, classes = evaluation.confusion, evaluation.classes
    fractions = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = max(3.6, min(0.62 * len(classes), 14) + 1.6)
    figure = Figure(figsize=(side + 1.4, side + 0.4), layout="constrained")
    axes = figure.subplots()
    shades = axes.imshow(fractions, cmap="Blues", vmin=0, vmax=1)
    ticks = range(len(classes))
    short = len(classes) < 6 and max(map(len, classes)) < 12
    axes.set_xticks(ticks, classes, rotation=0 if short else 90)
    axes.set_yticks(ticks, classes)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set(xlabel="prediction", ylabel="label")
    for row in ticks if len(classes) <= _MAX_NUMBERED else ():
        for column in ticks:
            text = f"{counts[row, column]}" + (f"\n{100 * fractions[row, column]:.1f} %" if len(classes) < 6 else "")
            colour = "white" if fractions[row, column] > 0.5 else "black"
            axes.text(column, row, text, ha="center", va="center", color=colour)
    bar = figure.colorbar(shades, ax=axes, label="fraction of the label's images", shrink=0.85)
    bar.outline.set_visible(False)
    unreadable = sum(prediction.label is None for prediction in evaluation.predictions)
    note = f"\nunreadable images, counted as wrong: {unreadable}" if unreadable else ""
    _title(figure, "Confusion matrix", f"accuracy {_interval(evaluation.accuracy)}{note}")
    return figure


def roc(evaluation: Evaluation) -> Figure:
    """ROC curve of the second of two classes, or of each class against the rest; a good one has its corner enlarged."""
    figure = Figure(figsize=(5.2, 5.2), layout="constrained")
    axes = figure.subplots()
    readable = ~np.isnan(evaluation.probabilities).any(axis=1)
    labels = np.array(evaluation.labels)[readable]
    names = evaluation.classes[1:] if len(evaluation.classes) == 2 else evaluation.classes
    estimate = evaluation.estimates["auroc"]
    panes = [axes]
    if estimate.value > _ZOOMED_FROM:
        panes.append(_enlarged(axes))
    else:
        axes.plot([0, 1], [0, 1], color=_GREY, ls=":", lw=1.2)  # a random classifier
    for place, name in enumerate(names):
        positive = labels == name
        if not positive.any() or positive.all():
            continue
        rates = roc_curve(positive, evaluation.probabilities[readable, evaluation.classes.index(name)])[:2]
        for pane in panes:
            pane.plot(*rates, color=_COLOURS[place % len(_COLOURS)], lw=1.8, label=name)
    axes.set(xlabel="false positive rate", ylabel="true positive rate", xlim=(-0.01, 1), ylim=(0, 1.01), aspect="equal")
    _declutter(axes)
    if 1 < len(names) <= len(_COLOURS):
        figure.legend(*axes.get_legend_handles_labels(), frameon=False, loc="outside lower center", fontsize=8, ncols=5)
    what = f"{names[0]} vs. {evaluation.classes[0]}" if len(names) == 1 else "each class vs. the rest"
    _title(figure, f"ROC curve, {what}", f"AUROC {_interval(estimate)}")
    return figure


def reliability(evaluation: Evaluation) -> Figure:
    """Accuracy over confidence, in bins with 95 % intervals; a calibrated model lies on the diagonal."""
    bins = evaluation.calibration
    figure = Figure(figsize=(5.2, 5.2), layout="constrained")
    axes = figure.subplots()
    lowest = _lowest(evaluation)
    axes.plot([lowest, 1], [lowest, 1], color=_GREY, ls=":", lw=1.2, label="perfect calibration")
    spans = [wilson(round(a * n), int(n)) for a, n in zip(bins.accuracy, bins.counts, strict=True)]
    errors = [[s.value - s.low for s in spans], [s.high - s.value for s in spans]]
    axes.errorbar(
        bins.confidence, bins.accuracy, errors, fmt="o", ms=6, color=CORRECT, capsize=3, label="this model, 95 % interval"
    )
    for x, count in zip(bins.confidence, bins.counts, strict=True):
        axes.text(x, -0.035, f"{count}", ha="center", va="center", fontsize=7, color=_GREY, rotation=45)
    axes.set(xlabel="confidence (below each point: number of images)", ylabel="accuracy")
    axes.set(xlim=(lowest - 0.02, 1.02), ylim=(-0.08, 1.03))
    _declutter(axes)
    figure.legend(frameon=False, loc="outside lower center", fontsize=8, ncols=2)
    error = _interval(evaluation.estimates["calibration_error"])
    _title(figure, "Reliability", f"expected calibration error {error}")
    return figure


def confidence(evaluation: Evaluation) -> Figure:
    """Histogram of the confidence of correct and of wrong predictions; logarithmic, so that a few wrong ones show."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    results = list(zip(evaluation.predictions, evaluation.correct, strict=True))
    correct = [p.confidence for p, is_correct in results if p.confidence is not None and is_correct]
    wrong = [p.confidence for p, is_correct in results if p.confidence is not None and not is_correct]
    counts, _, _ = axes.hist(
        [correct, wrong],
        np.linspace(_lowest(evaluation), 1, _BINS + 1).tolist(),
        color=[CORRECT, WRONG],
        label=[f"correct ({len(correct)})", f"wrong ({len(wrong)})"],
        rwidth=0.9,
    )
    if correct or wrong:
        axes.set_yscale("log")
        axes.set_ylim(0.6, max(10.0, 4 * float(np.max(counts))))  # room for the legend
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("")
    axes.set(xlabel="confidence", ylabel="images")
    _declutter(axes)
    axes.legend(frameon=False, loc="upper left")
    log_loss = _interval(evaluation.estimates["log_loss"])
    _title(figure, "Confidence of correct and wrong predictions", f"log-loss {log_loss}")
    return figure


def stress(test: StressTest) -> Figure:
    """Heat tables of accuracy, calibration error and acceptance; one row per corruption, above them the baseline."""
    rows = [f"none (n = {len(test.baseline.images)})", *(name.replace("_", " ") for name in CORRUPTIONS)]
    figure = Figure(figsize=(2.2 + 2.1 * len(test.metrics), 6.2), layout="constrained")
    for axes, metric in zip(figure.subplots(1, len(test.metrics), sharey=True, squeeze=False)[0], test.metrics, strict=True):
        values = np.full((len(rows), len(SEVERITIES)), test.baseline.estimates[metric].value)
        for place, evaluation in enumerate(test.corrupted.values(), start=len(SEVERITIES)):
            values.flat[place] = evaluation.estimates[metric].value
        low = 1 / len(test.baseline.classes) if metric == "accuracy" else 0.0  # a random classifier's
        colours, high = ("Reds", 0.5) if metric == "calibration_error" else ("Blues", 1.0)
        axes.imshow(values, cmap=colours, vmin=low, vmax=high, aspect="auto")
        for (row, column), value in np.ndenumerate(values):
            dark = value > (low + high) / 2
            if row or column == 1:  # the baseline has one value
                text = "" if math.isnan(value) else f"{value:.3f}"
                axes.text(column, row, text, ha="center", va="center", fontsize=8.5, color="white" if dark else "black")
        axes.axhline(0.5, color="white", lw=5)
        axes.set_xticks(range(len(SEVERITIES)), [str(severity) for severity in SEVERITIES])
        axes.set_yticks(range(len(rows)), rows)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_xlabel("severity")
        axes.set_title(metric.replace("_", " "), fontsize=10)
    accuracy = test.accuracy
    figure.suptitle(
        f"Under corruptions: mean accuracy {accuracy.value:.4f} (95 %: {accuracy.low:.4f}–{accuracy.high:.4f})",
        fontsize=12,
        weight="bold",
    )
    return figure


def _enlarged(axes: Axes) -> Axes:
    corner = axes.inset_axes((0.42, 0.14, 0.52, 0.52))
    corner.set(xlim=(0, 0.1), ylim=(0.9, 1.002))
    corner.tick_params(labelsize=7)
    corner.grid(alpha=0.25)
    axes.indicate_inset_zoom(corner, edgecolor=_GREY, alpha=0.6)
    return corner


def _lowest(evaluation: Evaluation) -> float:
    """Where confidence axes begin: the lowest confidence possible with C classes, or found."""
    found = [p.confidence for p in evaluation.predictions if p.confidence is not None]
    return math.floor(10 * min([1 / len(evaluation.classes), *found])) / 10


def _declutter(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)


def _title(figure: Figure, title: str, metrics: str) -> None:
    figure.suptitle(title, fontsize=12, weight="bold")
    figure.axes[0].set_title(metrics, fontsize=8.5, color="#444444")


def _interval(estimate: Estimate) -> str:
    if math.isnan(estimate.value):
        return "not available for these images"
    return f"{estimate.value:.4f} (95 %: {estimate.low:.4f}–{estimate.high:.4f}), n = {estimate.n}"
