"""Intervals: Wilson's against published values, the bootstrap's against theory and by how often they hold the true value."""

from __future__ import annotations

import math

import numpy as np
import pytest

from catdog_pyfunc.pipeline.evaluation import intervals
from catdog_pyfunc.pipeline.evaluation.intervals import Metric, Weights, bootstrap, wilson
from catdog_pyfunc.pipeline.evaluation.metrics import auroc, label_metrics


def mean_of(values: np.ndarray) -> Metric:
    return lambda weights: weights @ values / weights.sum(axis=1)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(0, 20, 0.0, 0.1611), (81, 263, 0.2553, 0.3662), (9, 10, 0.5958, 0.9821), (20, 20, 0.8389, 1.0)],
)
def test_the_interval_of_a_fraction_is_wilsons(successes: int, n: int, low: float, high: float):
    """The first two are published: Newcombe, Statistics in Medicine 17:857, 1998."""
    estimate = wilson(successes, n)
    assert (estimate.value, estimate.n) == (successes / n, n)
    assert (estimate.low, estimate.high) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize("n", range(1, 60))
def test_the_interval_of_a_fraction_contains_it_at_the_ends(n: int):
    for successes in (0, n):
        estimate = wilson(successes, n)
        assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1


def test_without_images_nothing_is_known():
    fraction = wilson(0, 0)
    assert math.isnan(fraction.value)
    assert (fraction.low, fraction.high, fraction.n) == (0, 1, 0)
    mean = bootstrap({"mean": mean_of(np.empty(0))}, 0, seed=0)["mean"]
    assert mean.n == 0
    assert all(math.isnan(value) for value in (mean.value, mean.low, mean.high))


def test_an_estimate_reads_well():
    assert str(wilson(9, 10)) == "0.9000 (95 % interval 0.5958–0.9821, n = 10)"


def test_the_bootstrap_of_a_mean_is_as_wide_as_theory_says():
    values = np.random.default_rng(0).normal(5, 1, 400)
    estimate = bootstrap({"mean": mean_of(values)}, 400, seed=0)["mean"]
    assert estimate.value == pytest.approx(values.mean())
    assert estimate.n == 400
    assert estimate.high - estimate.low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)
    assert (estimate.low + estimate.high) / 2 == pytest.approx(values.mean(), abs=0.02)


def test_the_same_seed_gives_the_same_interval():
    metrics = {"mean": mean_of(np.arange(50.0))}
    first, again, other = (bootstrap(metrics, 50, seed)["mean"] for seed in (3, 3, 4))
    assert first == again
    assert first != other


def test_intervals_stay_comparable_with_those_of_earlier_runs():
    estimate = bootstrap({"mean": mean_of(np.arange(50.0))}, 50, seed=3)["mean"]
    assert (estimate.value, estimate.low, estimate.high) == pytest.approx((24.5, 20.4887, 28.3097), abs=5e-5)


@pytest.mark.parametrize(("limit", "sizes"), [(520, [10] * 100), (35_000, [700, 300]), (50_000, [1_000]), (20, [1] * 1_000)])
def test_a_thousand_resamples_are_taken_in_parts_that_fit_in_memory(
    limit: int, sizes: list[int], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(intervals, "_MAX_WEIGHTS", limit)
    seen: list[int] = []

    def count(weights: Weights) -> np.ndarray:
        seen.append(len(weights))
        return weights.sum(axis=1)

    assert bootstrap({"count": count}, 50, seed=0)["count"].value == 50
    assert seen == [*sizes, 1]  # the last call is that of the value


def test_the_bias_of_the_resamples_is_taken_off():
    """The absolute distance from 0 of a mean that is 0 grows with each resample's noise."""
    values = np.tile([-1.0, 1.0], 50)
    estimate = bootstrap({"distance": lambda weights: np.abs(mean_of(values)(weights)) + 0.5}, 100, seed=0)["distance"]
    assert estimate.value == pytest.approx(0.5)
    assert estimate.low < 0.5 < estimate.high


def test_an_interval_has_no_negative_end():
    values = np.array([0.0] * 9 + [1.0])
    estimate = bootstrap({"distance": lambda weights: np.abs(mean_of(values)(weights) - 0.1)}, 10, seed=0)["distance"]
    assert estimate.low == 0


def test_resamples_in_which_a_metric_is_nan_are_left_out():
    def fragile(weights: Weights) -> np.ndarray:
        return np.where(weights[:, 0] == 0, np.nan, 3.0)

    estimate = bootstrap({"fragile": fragile}, 5, seed=0)["fragile"]
    assert (estimate.value, estimate.low, estimate.high) == (3, 3, 3)


def test_a_metric_that_is_never_known_has_no_interval():
    estimate = bootstrap({"never": lambda weights: np.full(len(weights), np.nan)}, 5, seed=0)["never"]
    assert all(math.isnan(value) for value in (estimate.value, estimate.low, estimate.high))
    assert estimate.n == 5
    only_value = bootstrap({"once": lambda weights: np.full(len(weights), 1.0 if len(weights) == 1 else np.nan)}, 5, seed=0)
    assert only_value["once"].value == 1
    assert math.isnan(only_value["once"].low)
    assert math.isnan(only_value["once"].high)


def test_the_intervals_contain_the_true_value_about_as_often_as_they_say():
    """AUROC and balanced accuracy of 120 images, 80 times; the true values follow from the distributions drawn from."""
    rng = np.random.default_rng(0)
    contained = {"auroc": 0, "balanced_accuracy": 0}
    # Two normal distributions whose means are 1.5 apart: Φ(1.5 / √2), and Φ(0.75) with the threshold half-way.
    true = {"auroc": 0.5 + 0.5 * math.erf(1.5 / 2), "balanced_accuracy": 0.5 + 0.5 * math.erf(0.75 / math.sqrt(2))}
    for repetition in range(80):
        labels = rng.integers(0, 2, 120)
        scores = rng.normal(1.5 * labels, 1)
        metrics = {
            "auroc": auroc(labels == 1, scores),
            "balanced_accuracy": label_metrics(labels, (scores > 0.75).astype(int), ("a", "b"))["balanced_accuracy"],
        }
        for name, estimate in bootstrap(metrics, 120, seed=repetition).items():
            contained[name] += estimate.low <= true[name] <= estimate.high
    assert all(0.88 <= count / 80 <= 1 for count in contained.values()), contained
