"""What a comparison needs of many predictions: counts, and three distributions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pandas as pd

Values = npt.NDArray[np.float64]
DISTRIBUTIONS = ("domain_score", "confidence", "image_bytes")


@dataclass(frozen=True)
class Sample:
    """Predictions, without what tells one image from another.

    Attributes:
        labels: Label → number of readable images.
        out_of_domain: Readable images with `in_domain` false.
        errors: Images that could not be read.
        values: Each of `DISTRIBUTIONS` → values of the readable images, in any order. There may be none.
        bounds: Each of `DISTRIBUTIONS` → ascending upper bounds, the last one infinite, if the values are only known to lie
            in these buckets: they are bounds, then. Empty if they are exact.
    """

    labels: Mapping[str, int]
    out_of_domain: int
    errors: int
    values: Mapping[str, Values]
    bounds: Mapping[str, Values] = field(default_factory=dict)

    @property
    def readable(self) -> int:
        """Number of images that got a label."""
        return sum(self.labels.values())

    @property
    def images(self) -> int:
        """Number of all images."""
        return self.readable + self.errors

    def in_buckets_of(self, other: Sample) -> Sample:
        """This sample with values as coarse as another's."""
        return Sample(
            self.labels,
            self.out_of_domain,
            self.errors,
            {name: into_buckets(values, other.bounds.get(name)) for name, values in self.values.items()},
            other.bounds,
        )


def into_buckets(values: Values, bounds: Values | None) -> Values:
    """Replace each value by the upper bound of its bucket, as Prometheus counts: a bound belongs to the bucket below it."""
    return values if bounds is None else bounds[np.searchsorted(bounds, values)]


def from_rows(rows: pd.DataFrame) -> Sample:
    """The sample of predictions that are known one by one.

    Args:
        rows: Columns label, in_domain, error and `DISTRIBUTIONS`.

    Returns:
        The sample.
    """
    readable = rows[rows["label"].notna()]
    labels = {str(label): int(count) for label, count in readable["label"].value_counts().items()}
    values = {name: readable[name].dropna().to_numpy(np.float64) for name in DISTRIBUTIONS}
    outside = int((~readable["in_domain"].astype(bool)).sum())
    return Sample(labels, outside, len(rows) - len(readable), values)
