"""Calibration on val: a temperature for the probabilities, and a threshold that detects out-of-distribution images."""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize_scalar

from catdog_pyfunc.classifier import softmax
from catdog_pyfunc.pipeline.training.embeddings import batches
from catdog_pyfunc.preprocessing import Floats

ACCEPTED_FRACTION = 0.98  # of val, by the OOD threshold
MAX_REFERENCES = 2_000  # embeddings kept for comparison: 5 MB of float16 at 1,280 dimensions
_MIN_TEMPERATURE, _MAX_TEMPERATURE = 0.05, 20.0


def fit_temperature(logits: Floats, labels: list[int]) -> float:
    """Fit the temperature that minimises the negative log-likelihood on val.

    Temperature scaling divides all logits by one number, which changes confidences but no label (Guo et al., "On Calibration
    of Modern Neural Networks", ICML 2017).

    Args:
        logits: (N, C) of images that the network was not trained on.
        labels: N class indices.

    Returns:
        The temperature, 0.05 to 20.
    """

    def negative_log_likelihood(log_temperature: float) -> float:
        probabilities = softmax(logits / np.exp(log_temperature))
        return float(-np.log(np.maximum(probabilities[np.arange(len(labels)), labels], 1e-300)).mean())

    bounds = float(np.log(_MIN_TEMPERATURE)), float(np.log(_MAX_TEMPERATURE))
    result = minimize_scalar(negative_log_likelihood, bounds=bounds, method="bounded", options={"xatol": 1e-9})
    return float(np.exp(result.x))


def fit_ood_threshold(train: Floats, val: Floats, seed: int) -> tuple[Floats, float]:
    """Select the reference embeddings and fit the similarity below which an image counts as out-of-distribution.

    Args:
        train: Embeddings (N, D) of training images; at most 2,000 of them, sampled by seed, become the reference.
        val: Embeddings (M, D) of other images from the same distribution.
        seed: Seed of the sampling.

    Returns:
        The reference embeddings (K, D), each of length 1, and the threshold: 98 % of val are at least as similar.
    """
    if len(train) > MAX_REFERENCES:
        train = train[np.sort(np.random.default_rng(seed).choice(len(train), MAX_REFERENCES, replace=False))]
    reference = _normalised(train).astype(np.float16).astype(np.float32)  # the precision it is stored in
    # As `ServingNetwork`; all N × K similarities would outgrow the memory.
    similarity = np.concatenate([(_normalised(batch) @ reference.T).max(axis=1) for batch in batches(val)])
    return reference, float(np.quantile(similarity, 1 - ACCEPTED_FRACTION))


def _normalised(embedding: Floats) -> Floats:
    return np.asarray(embedding / np.maximum(np.linalg.norm(embedding, axis=1, keepdims=True), 1e-12))
