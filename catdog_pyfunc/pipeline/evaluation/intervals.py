"""What n trials tell of a figure: Wilson's interval for a share, a seeded bootstrap for the rest."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Weights = npt.NDArray[np.float64]  # (B, N): how often each resample holds each picture
Metric = Callable[[Weights], npt.NDArray[np.float64]]  # (B, N) → (B,)
_RESAMPLES = 1_000
_MOST_NUMBERS = 2_000_000  # weights held at a time: 16 MB


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval.

    Attributes:
        value: The figure; NaN where nothing could be measured.
        low: The interval's lower end.
        high: Its upper end.
        n: How many pictures it is of.
    """

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.value:.4f} (95 % interval {self.low:.4f}–{self.high:.4f}, n = {self.n})"


def wilson(successes: int, n: int) -> Estimate:
    """The share `right / n` with its 95 % score interval (Wilson, JASA 22:209, 1927).

    Args:
        right: How many of the trials.
        n: How many trials; of none nothing is known: NaN, 0..1.

    Returns:
        The estimate.
    """
    if n == 0:
        return Estimate(math.nan, 0.0, 1.0, 0)
    z = 1.959964  # standard normal, 97.5 %
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # At 0 and n the end is the value itself, which rounding may just miss.
    return Estimate(p, min(p, max(0.0, centre - half)), max(p, min(1.0, centre + half)), n)


def bootstrap(metrics: Mapping[str, Metric], n: int, seed: int) -> dict[str, Estimate]:
    """Resample n pictures a thousand times and see how far the figures move (Efron, Annals of Statistics 7:1, 1979).

    A resample is a row of weights, so a figure is defined once: its value is the metric at weights of one. The interval lies
    between the 2.5th and the 97.5th percentile, less the bias: how far the resamples' mean is from the value. A resample in
    which a figure has no meaning (NaN: no picture of a class, say) doesn't count. Where all pictures did alike, the interval
    is a point: it can't know what it has never seen.

    Args:
        metrics: Name → function of weights (B, N), giving (B,), none below 0.
        n: How many pictures there are.
        seed: Of the resampling: the same seed, the same intervals.

    Returns:
        Name → estimate.
    """
    if n == 0:
        return {name: Estimate(math.nan, math.nan, math.nan, 0) for name in metrics}
    rng = np.random.default_rng(seed)
    at_a_time = max(1, min(_RESAMPLES, _MOST_NUMBERS // n))
    drawn: dict[str, list[npt.NDArray[np.float64]]] = {name: [] for name in metrics}
    for start in range(0, _RESAMPLES, at_a_time):
        size = min(at_a_time, _RESAMPLES - start)
        weights = rng.multinomial(n, np.full(n, 1 / n), size).astype(np.float64)  # (B, N)
        for name, metric in metrics.items():
            drawn[name].append(metric(weights))
    return {name: _estimate(metric, np.concatenate(drawn[name]), n) for name, metric in metrics.items()}


def _estimate(metric: Metric, drawn: npt.NDArray[np.float64], n: int) -> Estimate:
    value = float(metric(np.ones((1, n)))[0])
    drawn = drawn[~np.isnan(drawn)]
    if math.isnan(value) or not len(drawn):
        return Estimate(value, math.nan, math.nan, n)
    # Resampling makes a calibration error larger, as it adds noise: that much is taken off again.
    unbiased = np.clip(drawn - (drawn.mean() - value), 0, max(value, float(drawn.max())))
    low, high = np.percentile(unbiased, [2.5, 97.5])
    return Estimate(value, float(low), float(high), n)
