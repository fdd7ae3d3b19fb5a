"""Learning curves as matplotlib figures, without a window or global state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from catdog_pyfunc.pipeline.training.linear_head import EpochMetrics

_TRAIN, _VAL, _KEPT = "#4c78a8", "#f58518", "#777777"


def curves(steps: Sequence[EpochMetrics], title: str, unit: str, kept: int | None = None) -> Figure:
    """Plot loss and accuracy over training.

    Args:
        steps: Metrics after each step or epoch.
        title: Title of the figure.
        unit: Label of the x axis, "epoch" or the like.
        kept: Step whose weights were kept, counted from 1; None to mark none.

    Returns:
        Two panels side by side.
    """
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    x = np.arange(1, len(steps) + 1)
    for axes, metric in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        for split, colour in (("train", _TRAIN), ("val", _VAL)):
            values = [getattr(step, f"{split}_{metric}") for step in steps]
            axes.plot(x, values, color=colour, marker="o" if len(steps) < 20 else None, ms=4, label=split)
        if kept:
            axes.axvline(kept, color=_KEPT, ls=":", lw=1.2, label="kept")
        axes.set(xlabel=unit, ylabel="cross-entropy (nats)" if metric == "loss" else metric)
        axes.grid(alpha=0.25)
        axes.legend(frameon=False)
    figure.suptitle(title)
    return figure


def regularisation(candidates: Mapping[float, EpochMetrics], chosen: float) -> Figure:
    """Plot the loss on train and val over the weight decays that were tried."""
    figure = Figure(figsize=(6, 3.8), layout="constrained")
    axes = figure.subplots()
    decays = list(candidates)
    for split, colour in (("train", _TRAIN), ("val", _VAL)):
        losses = [getattr(candidates[decay], f"{split}_loss") for decay in decays]
        axes.semilogx(decays, losses, color=colour, marker="o", ms=4, label=split)
    axes.axvline(chosen, color=_KEPT, ls=":", lw=1.2, label="kept")
    axes.set(xlabel="weight decay", ylabel="cross-entropy (nats)", title="Regularisation of the head, chosen on val")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    return figure
