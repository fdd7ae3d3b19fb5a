"""BADGE: a batch of images that a classifier is unsure of, and that differ from each other."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from catdog_pyfunc.preprocessing import Floats


def badge(embeddings: Floats, probabilities: npt.NDArray[np.float64], count: int, rng: np.random.Generator) -> list[int]:
    """Choose images by k-means++ on the gradients that their predicted labels would give the head.

    (Ash et al., "Deep Batch Active Learning by Diverse, Uncertain Gradient Lower Bounds", ICLR 2020.) The gradient of the
    cross-entropy in a linear head is the outer product of probabilities less label, and embedding: short where the model is
    sure, and alike where images are. Distances come from the factors; no gradient is ever built.

    Args:
        embeddings: (N, D).
        probabilities: (N, C).
        count: How many to choose, at most N.
        rng: Draws each but the first, with probability in proportion to its squared distance from the nearest chosen one.

    Returns:
        Indices in the order of choice; the first is the image with the longest gradient.
    """
    residuals = probabilities.copy()
    residuals[np.arange(len(residuals)), residuals.argmax(axis=1)] -= 1
    squares = np.square(residuals).sum(axis=1) * np.square(embeddings).sum(axis=1, dtype=np.float64)
    chosen = [int(squares.argmax())]
    nearest = np.full(len(squares), np.inf)
    while len(chosen) < count:
        last = chosen[-1]
        products = (residuals @ residuals[last]) * (embeddings @ embeddings[last])
        nearest = np.minimum(nearest, np.maximum(squares + squares[last] - 2 * products, 0))
        nearest[chosen] = 0
        if not nearest.any():  # only duplicates of what is chosen are left
            nearest[:] = 1
            nearest[chosen] = 0
        chosen.append(int(rng.choice(len(squares), p=nearest / nearest.sum())))
    return chosen
