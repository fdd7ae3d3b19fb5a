"""How learning went, as matplotlib figures; no window, no global state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from catdog_pyfunc.pipeline.training.linear_head import EpochMetrics

_TRAIN, _VAL, _KEPT = "#4c78a8", "#f58518", "#777777"


def curves(steps: Sequence[EpochMetrics], title: str, unit: str, kept: int | None = None) -> Figure:
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
        for split, colour in (("train", _TRAIN), ("val", _VAL)):
            values = [getattr(step, f"{split}_{what}") for step in steps]
            axes.plot(places, values, color=colour, marker="o" if len(steps) < 20 else None, ms=4, label=split)
        if kept:
            axes.axvline(kept, color=_KEPT, ls=":", lw=1.2, label="kept")
        axes.set(xlabel=unit, ylabel="cross-entropy (nats)" if what == "loss" else what)
        axes.grid(alpha=0.25)
        axes.legend(frameon=False)
    figure.suptitle(title)
    return figure


def regularisation(candidates: Mapping[float, EpochMetrics], chosen: float) -> Figure:
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
