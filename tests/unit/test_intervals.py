"""Intervals: Wilson's against published values, the bootstrap's against theory and by how often it holds the truth."""

from __future__ import annotations

import math

import numpy as np
import pytest

from catdog_pyfunc.pipeline.evaluation.intervals import bootstrap, wilson
from catdog_pyfunc.pipeline.evaluation.metrics import auroc, label_metrics


def mean_of(values: np.ndarray):
    return lambda weights: weights @ values / weights.sum(axis=1)


def test_the_interval_is_wilsons():
    """Against published values: 0 of 20 and 81 of 263 (Newcombe, Statistics in Medicine 17:857, 1998)."""
    none, some = wilson(0, 20), wilson(81, 263)
    assert (none.low, none.high) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert (some.low, some.high) == pytest.approx((0.2553, 0.3662), abs=5e-5)


@pytest.mark.parametrize("n", range(1, 60))
def test_the_interval_holds_its_value_at_the_ends_too(n: int):
    for right in (0, n):
        estimate = wilson(right, n)
        assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1


def test_of_nothing_nothing_is_known():
    assert math.isnan(wilson(0, 0).value)
    nothing = bootstrap({"mean": mean_of(np.empty(0))}, 0, seed=0)["mean"]
    assert nothing.n == 0
    assert math.isnan(nothing.value)


def test_an_estimate_reads_well():
    assert str(wilson(9, 10)) == "0.9000 (95 % interval 0.5958–0.9821, n = 10)"


def test_the_bootstrap_of_a_mean_is_as_wide_as_theory_says():
    values = np.random.default_rng(0).normal(5, 1, 400)
    estimate = bootstrap({"mean": mean_of(values)}, 400, seed=0)["mean"]
    assert estimate.value == pytest.approx(values.mean())
    assert estimate.high - estimate.low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)
    assert (estimate.low + estimate.high) / 2 == pytest.approx(values.mean(), abs=0.02)


def test_the_same_seed_gives_the_same_interval():
    metrics = {"mean": mean_of(np.arange(50.0))}
    first, again, other = (bootstrap(metrics, 50, seed)["mean"] for seed in (3, 3, 4))
    assert first == again
    assert first != other


def test_many_pictures_are_resampled_in_parts():
    """5,000 pictures are more weights than are held at a time."""
    largest = 0

    def mean(weights: np.ndarray) -> np.ndarray:
        nonlocal largest
        largest = max(largest, weights.size)
        return weights @ values / weights.sum(axis=1)

    values = np.random.default_rng(0).random(5_000)
    estimate = bootstrap({"mean": mean}, 5_000, seed=0)["mean"]
    assert estimate.low < estimate.value < estimate.high
    assert largest <= 2_000_000


def test_the_intervals_hold_the_truth_about_as_often_as_they_say():
    """AUROC and balanced accuracy of 120 pictures, 150 times; the truth is known from how they are drawn."""
    rng = np.random.default_rng(0)
    held = {"auroc": 0, "balanced_accuracy": 0}
    # Two normal distributions whose means are 1.5 apart: Φ(1.5 / √2), and Φ(0.75) with the threshold half-way.
    label = {"auroc": 0.5 + 0.5 * math.erf(1.5 / 2), "balanced_accuracy": 0.5 + 0.5 * math.erf(0.75 / math.sqrt(2))}
    for repetition in range(150):
        labels = rng.integers(0, 2, 120)
        values = rng.normal(1.5 * labels, 1)
        metrics = {
            "auroc": auroc(labels == 1, values),
            "balanced_accuracy": label_metrics(labels, (values > 0.75).astype(int), ("a", "b"))["balanced_accuracy"],
        }
        for name, estimate in bootstrap(metrics, 120, seed=repetition).items():
            held[name] += estimate.low <= label[name] <= estimate.high
    assert all(0.88 <= count / 150 <= 1 for count in held.values()), held
