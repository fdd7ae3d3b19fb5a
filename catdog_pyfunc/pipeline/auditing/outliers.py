"""Images that are unlike all others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from catdog_pyfunc.pipeline.auditing.findings import Finding, Image
from catdog_pyfunc.preprocessing import Floats

NEIGHBOURS = 10
_FENCE = 1.5  # interquartile ranges below the first quartile (Tukey, "Exploratory Data Analysis", 1977)
_FEWEST = 50  # images below which quartiles mean little


def outliers(images: Sequence[Image], cosines: Floats) -> list[Finding]:
    """Find images whose nearest neighbours are much farther away than those of other images.

    Args:
        images: N images.
        cosines: (N, K), of the embeddings to those of the K nearest neighbours.

    Returns:
        One finding per outlier; none among too few images.
    """
    if len(images) < _FEWEST:
        return []
    means = cosines.mean(1)
    first, third = np.quantile(means, [0.25, 0.75])
    limit = first - _FENCE * (third - first)
    reason = "similarity {:.2f} to its nearest neighbours; the median is {:.2f}"
    return [
        Finding(images[k], "outlier", 1 - float(means[k]), reason.format(means[k], np.median(means)))
        for k in np.flatnonzero(means < limit).tolist()
    ]
