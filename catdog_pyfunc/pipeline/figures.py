"""Plots and galleries, as matplotlib figures; no window, no global state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from catdog_pyfunc.errors import InvalidImage
from catdog_pyfunc.pipeline.calibrate import Reliability
from catdog_pyfunc.pipeline.evaluation import Evaluation, Mistake
from catdog_pyfunc.pipeline.head import Scores
from catdog_pyfunc.preprocess import DEFAULT_LIMITS, decode

_TRAIN, _VAL, _KEPT = "#4c78a8", "#f58518", "#777777"
_TILE = 256  # pixels of a gallery's picture
_MOST_TILES = 12


def curves(steps: Sequence[Scores], title: str, unit: str, kept: int | None = None) -> Figure:
    """Loss and accuracy over training.

    Args:
        steps: Scores after each step or epoch.
        title: What was trained.
        unit: "step" or "epoch".
        kept: The step whose weights were kept, counted from 1.

    Returns:
        Two panels side by side.
    """
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    places = np.arange(1, len(steps) + 1)
    for axes, what in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        for side, colour in (("train", _TRAIN), ("val", _VAL)):
            values = [getattr(step, f"{side}_{what}") for step in steps]
            axes.plot(places, values, color=colour, marker="o" if len(steps) < 20 else None, ms=4, label=side)
        if kept:
            axes.axvline(kept, color=_KEPT, ls=":", lw=1.2, label="kept")
        axes.set(xlabel=unit, ylabel="cross-entropy (nats)" if what == "loss" else what)
        axes.grid(alpha=0.25)
        axes.legend(frameon=False)
    figure.suptitle(title)
    return figure


def regularisation(candidates: Mapping[float, Scores], chosen: float) -> Figure:
    """Loss on train and val for each weight decay that was tried."""
    figure = Figure(figsize=(6, 3.8), layout="constrained")
    axes = figure.subplots()
    decays = list(candidates)
    axes.semilogx(decays, [candidates[d].train_loss for d in decays], color=_TRAIN, marker="o", ms=4, label="train")
    axes.semilogx(decays, [candidates[d].val_loss for d in decays], color=_VAL, marker="o", ms=4, label="val")
    axes.axvline(chosen, color=_KEPT, ls=":", lw=1.2, label="kept")
    axes.set(xlabel="weight decay", ylabel="cross-entropy (nats)", title="The head's regularisation, chosen on val")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    return figure


def confusion_matrix(evaluation: Evaluation) -> Figure:
    """Truth down, answer across: counts, shaded by the share of the row."""
    counts, classes = evaluation.confusion, evaluation.classes
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = max(4.2, 0.5 * len(classes) + 2)
    figure = Figure(figsize=(side + 0.6, side), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    ticks = range(len(classes))
    axes.set_xticks(ticks, classes, rotation=0 if len(classes) < 6 else 90)
    axes.set_yticks(ticks, classes)
    axes.set(xlabel="answer", ylabel="truth", title=f"accuracy {evaluation.accuracy.value:.4f}, n = {evaluation.accuracy.n}")
    if len(classes) <= 20:
        for row in ticks:
            for column in ticks:
                colour = "white" if shares[row, column] > 0.5 else "black"
                axes.text(column, row, f"{counts[row, column]}", ha="center", va="center", color=colour)
    figure.colorbar(image, ax=axes, label="share of the truth's pictures", shrink=0.8)
    return figure


def reliability_diagram(calibration: Reliability) -> Figure:
    """Accuracy over confidence, in bins; on the diagonal, confidence is what it says."""
    figure = Figure(figsize=(4.8, 4.6), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=_KEPT, ls=":", lw=1.2)
    sizes = 20 + 280 * calibration.counts / max(int(calibration.counts.sum()), 1)
    axes.scatter(calibration.confidence, calibration.accuracy, s=sizes, color=_TRAIN, alpha=0.8)
    for x, y, count in zip(calibration.confidence, calibration.accuracy, calibration.counts, strict=True):
        axes.annotate(f"{count}", (x, y), textcoords="offset points", xytext=(0, -16), ha="center", fontsize=7)
    axes.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1.03), ylim=(0, 1.05))
    axes.set_title(f"expected calibration error {calibration.error:.4f}")
    axes.grid(alpha=0.25)
    return figure


def mistakes_gallery(mistakes: Sequence[Mistake]) -> Figure:
    """The worst mistakes: the photos themselves, with truth, answer and confidence; most confident first."""
    shown = mistakes[:_MOST_TILES]
    columns = min(4, max(1, len(shown)))
    rows = max(1, -(-len(shown) // columns))
    figure = Figure(figsize=(2.8 * columns, 3.1 * rows + 0.5), layout="constrained")
    for axes in figure.subplots(rows, columns, squeeze=False).flat:
        axes.axis("off")
    for axes, mistake in zip(figure.axes, shown, strict=False):
        axes.imshow(_tile(mistake))
        answer, confidence = mistake.prediction.label, mistake.prediction.confidence
        said = f"{answer} {confidence:.3f}" if confidence is not None else "unreadable"
        axes.set_title(f"{mistake.truth}, called {said}\n{mistake.path.name[:34]}", fontsize=8)
    title = f"The worst {len(shown)} of {len(mistakes)} mistakes, most confident first" if shown else "No mistakes"
    figure.suptitle(title, fontsize=11)
    return figure


def _tile(mistake: Mistake) -> Image.Image:
    try:
        picture = decode(mistake.path.read_bytes(), DEFAULT_LIMITS, least_side=_TILE)
    except (InvalidImage, OSError):
        return Image.new("RGB", (_TILE, _TILE), "lightgrey")
    picture.thumbnail((_TILE, _TILE))
    return picture
