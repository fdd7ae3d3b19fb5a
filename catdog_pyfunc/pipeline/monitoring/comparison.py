"""Compares two samples of predictions: a test for each quantity, with levels that hold for all of them together."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from catdog_pyfunc.pipeline.monitoring.config import QUANTITIES
from catdog_pyfunc.pipeline.monitoring.sample import DISTRIBUTIONS, Sample, Values

_MIN_EXPECTED = 5.0  # images of a label, for the χ² approximation (Cochran, Biometrics 10:417, 1954)


@dataclass(frozen=True)
class Comparison:
    """One quantity, on the test split and now.

    Attributes:
        quantity: A column of the predictions.
        reference: The test split's, in words.
        observed: Now, in words.
        effect: How much has changed, 0 to 1: of a fraction; of the fraction below the value where that changed most
            (Kolmogorov–Smirnov's D); for labels, the fraction of images that would need another one (total variation).
        p: Probability of such a change, or a larger one, by chance; 1 if there is nothing to compare.
        adjusted_p: `p`, corrected for the number of quantities that decide.
        ignored: Whether this quantity does not decide; then it is not corrected.
        drifted: Whether it decides, and the change is both certain and large enough.
    """

    quantity: str
    reference: str
    observed: str
    effect: float
    p: float
    adjusted_p: float = 1.0
    ignored: bool = False
    drifted: bool = False


def compare(
    reference: Sample, observed: Sample, *, alpha: float, min_effect: float, ignored: Collection[str] = ()
) -> tuple[Comparison, ...]:
    """Compare each quantity.

    More images out of domain, and more errors, are drift, but not fewer (Fisher's exact test, one-sided). Labels are
    compared by Pearson's χ² test, distributions by the two-sample Kolmogorov–Smirnov test, in the observed sample's buckets
    if that has any: the ties make the test conservative, never more likely to raise a false alarm.

    Args:
        reference: Of the test split; its values are exact.
        observed: Later predictions.
        alpha: Probability of a false alarm in any quantity; Holm's method keeps it (Scand. J. Statistics 6:65, 1979).
        min_effect: Smallest effect that counts.
        ignored: Quantities that do not decide.

    Returns:
        One comparison for each of `QUANTITIES`.
    """
    reference = reference.in_buckets_of(observed)
    made = {
        "in_domain": _more("in_domain", "outside", *((each.out_of_domain, each.readable) for each in (reference, observed))),
        "label": _labels(reference.labels, observed.labels),
        "error": _more("error", "unreadable", *((each.errors, each.images) for each in (reference, observed))),
        **{name: _distribution(name, reference.values[name], observed.values[name]) for name in DISTRIBUTIONS},
    }
    deciding = [name for name in QUANTITIES if name not in ignored]
    adjusted = dict(zip(deciding, _holm([made[name].p for name in deciding]), strict=True))
    return tuple(
        replace(
            made[name],
            adjusted_p=adjusted.get(name, made[name].p),
            ignored=name in ignored,
            drifted=name in adjusted and adjusted[name] <= alpha and made[name].effect >= min_effect,
        )
        for name in QUANTITIES
    )


def _more(quantity: str, what: str, reference: tuple[int, int], observed: tuple[int, int]) -> Comparison:
    """Compare how many of how many images are `what`."""
    (before, before_n), (now, now_n) = reference, observed
    if not (before_n and now_n):
        return _nothing(quantity)
    p = stats.fisher_exact([[now, now_n - now], [before, before_n - before]], alternative="greater").pvalue
    words = f"{before / before_n:.1%} {what}", f"{now / now_n:.1%} {what}"
    return Comparison(quantity, *words, max(now / now_n - before / before_n, 0.0), float(p))


def _labels(reference: Mapping[str, int], observed: Mapping[str, int]) -> Comparison:
    names = sorted({*reference, *observed})
    counts = np.array([[sample.get(name, 0) for name in names] for sample in (reference, observed)], float)
    if not counts.sum(axis=1).all():
        return _nothing("label")
    fractions = counts / counts.sum(axis=1, keepdims=True)
    most = int(np.abs(fractions[1] - fractions[0]).argmax())
    before, now = (f"{fraction:.1%} {names[most]}" for fraction in fractions[:, most])
    counts = _without_rare(counts)
    p = stats.chi2_contingency(counts).pvalue if counts.shape[1] > 1 else 1.0
    return Comparison("label", before, now, float(np.abs(fractions[1] - fractions[0]).sum() / 2), float(p))


def _without_rare(counts: Values) -> Values:
    """Count labels together that are too rare for the χ² approximation."""
    expected = counts.sum(axis=0) * (counts.sum(axis=1).min() / counts.sum())
    rare = expected < _MIN_EXPECTED
    merged = np.column_stack([counts[:, ~rare], counts[:, rare].sum(axis=1)])
    return merged[:, merged.sum(axis=0) > 0]


def _distribution(name: str, reference: Values, observed: Values) -> Comparison:
    if not (len(reference) and len(observed)):
        return _nothing(name)
    test = stats.ks_2samp(reference, observed, method="asymp")
    where = test.statistic_location
    limit = f"{where:.4g}" if where < 1000 else f"{where:,.0f}"
    before, now = (f"{np.mean(values <= where):.1%} up to {limit}" for values in (reference, observed))
    return Comparison(name, before, now, float(test.statistic), float(test.pvalue))


def _nothing(quantity: str) -> Comparison:
    return Comparison(quantity, "", "no images", 0.0, 1.0)


def _holm(p: list[float]) -> list[float]:
    """Adjusted p-values: each may be compared with alpha itself."""
    order = np.argsort(p)
    steps = np.array(p)[order] * np.arange(len(p), 0, -1)
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return [float(value) for value in adjusted]
