"""95 % intervals: Wilson's for a fraction, a seeded bootstrap for every other metric."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest

Weights = npt.NDArray[np.float64]  # (B, N): how often each resample contains each image
Metric = Callable[[Weights], npt.NDArray[np.float64]]  # (B, N) → (B,)
_RESAMPLES = 1_000
_MAX_WEIGHTS = 2_000_000  # held at a time: 16 MB


@dataclass(frozen=True)
class Estimate:
    """A metric's value with its 95 % interval.

    Attributes:
        value: The value; NaN where there is nothing to compute from.
        low: Lower end of the interval.
        high: Upper end of the interval.
        n: Number of images it is computed from.
    """

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.value:.4f} (95 % interval {self.low:.4f}–{self.high:.4f}, n = {self.n})"


def wilson(successes: int, n: int) -> Estimate:
    """A fraction with its score interval (Wilson, JASA 22:209, 1927).

    Args:
        successes: Number of successful trials.
        n: Number of trials; without any, the value is NaN and the interval 0..1.

    Returns:
        The estimate of `successes / n`.
    """
    if n == 0:
        return Estimate(math.nan, 0.0, 1.0, 0)
    interval = binomtest(successes, n).proportion_ci(method="wilson")
    return Estimate(successes / n, float(interval.low), float(interval.high), n)


def bootstrap(metrics: Mapping[str, Metric], n: int, seed: int) -> dict[str, Estimate]:
    """Resample n images a thousand times to see how far each metric moves (Efron, Annals of Statistics 7:1, 1979).

    A resample is a row of weights; the value is the metric at weights of one. All metrics see the same resamples, many per
    call, which is many times faster than scipy.stats.bootstrap. The interval lies between the 2.5th and 97.5th percentile of
    the resamples, less their bias: the distance of their mean from the value. A resample in which a metric is NaN (no image
    of a class, for example) is left out. Where all images did alike, the interval is a point: a bootstrap cannot know what it
    has never seen.

    Args:
        metrics: Name → function of weights (B, N) that returns (B,), none below 0.
        n: Number of images.
        seed: Seed of the resampling: equal seeds give equal intervals.

    Returns:
        Name → estimate; all NaN without images.
    """
    if n == 0:
        return {name: Estimate(math.nan, math.nan, math.nan, 0) for name in metrics}
    rng = np.random.default_rng(seed)
    chunk = max(1, min(_RESAMPLES, _MAX_WEIGHTS // n))
    resampled: dict[str, list[npt.NDArray[np.float64]]] = {name: [] for name in metrics}
    for start in range(0, _RESAMPLES, chunk):
        weights = rng.multinomial(n, np.full(n, 1 / n), min(chunk, _RESAMPLES - start)).astype(np.float64)  # (B, N)
        for name, metric in metrics.items():
            resampled[name].append(metric(weights))
    return {name: _estimate(metric, np.concatenate(resampled[name]), n) for name, metric in metrics.items()}


def _estimate(metric: Metric, resampled: npt.NDArray[np.float64], n: int) -> Estimate:
    value = float(metric(np.ones((1, n)))[0])
    resampled = resampled[~np.isnan(resampled)]
    if math.isnan(value) or not len(resampled):
        return Estimate(value, math.nan, math.nan, n)
    # Resampling adds noise, which makes a calibration error larger: that bias is taken off again.
    unbiased = np.clip(resampled - (resampled.mean() - value), 0, max(value, float(resampled.max())))
    low, high = np.percentile(unbiased, [2.5, 97.5])
    return Estimate(value, float(low), float(high), n)
