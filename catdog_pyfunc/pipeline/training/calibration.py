"""What makes an answer trustworthy: a temperature for the probabilities, and a reference that tells what is "neither"."""

from __future__ import annotations

import numpy as np

from catdog_pyfunc.classifier import softmax
from catdog_pyfunc.preprocessing import Floats

ACCEPTED_OF_VAL = 0.98
MOST_REFERENCES = 2_000  # embeddings kept for comparison: 5 MB of float16 at 1,280 numbers each
_LOWEST, _HIGHEST = 0.05, 20.0  # temperatures that are looked at


def fit_temperature(logits: Floats, labels: list[int]) -> float:
    """Find the temperature that makes val's probabilities most truthful.

    One number that divides all logits, by least negative log-likelihood (Guo et al., "On Calibration of Modern Neural
    Networks", ICML 2017). It changes no label.

    Args:
        logits: (N, C) of pictures that the network did not learn from.
        labels: Class indices, N of them.

    Returns:
        The temperature.
    """

    def loss(log_temperature: float) -> float:
        probabilities = softmax(logits / np.exp(log_temperature))
        label = probabilities[np.arange(len(labels)), labels]
        return float(-np.log(np.maximum(label, 1e-300)).mean())

    # The loss has a single minimum in 1/T (it is convex there): golden-section search finds it.
    golden = (np.sqrt(5) - 1) / 2
    low, high = np.log(_LOWEST), np.log(_HIGHEST)
    for _ in range(60):
        left, right = high - golden * (high - low), low + golden * (high - low)
        if loss(left) < loss(right):
            high = right
        else:
            low = left
    return float(np.exp((low + high) / 2))


def fit_ood_threshold(train: Floats, val: Floats, seed: int) -> tuple[Floats, float]:
    """Keep what embeddings of known pictures look like, and how near to them val comes.

    Args:
        train: Embeddings (N, D); at most 2,000 of them, drawn by seed, are kept.
        val: Embeddings (M, D) of other pictures of the same kind.
        seed: Of the drawing.

    Returns:
        The reference (K, D), each of length 1, and the least likeness to it that is accepted: that of 98 % of val.
    """
    if len(train) > MOST_REFERENCES:
        train = train[np.sort(np.random.default_rng(seed).choice(len(train), MOST_REFERENCES, replace=False))]
    reference = _normalised(train).astype(np.float16).astype(np.float32)  # as it will be read back
    similarity = (_normalised(val) @ reference.T).max(axis=1)  # as `PixelNetwork` computes it
    return reference, float(np.quantile(similarity, 1 - ACCEPTED_OF_VAL))


def _normalised(embedding: Floats) -> Floats:
    return np.asarray(embedding / np.maximum(np.linalg.norm(embedding, axis=1, keepdims=True), 1e-12))
