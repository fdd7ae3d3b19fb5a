"""Calibration on val: a temperature for the probabilities, and a threshold that detects out-of-distribution images."""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import minimize_scalar

from catdog_pyfunc.classifier import softmax
from catdog_pyfunc.network import Network, similarity
from catdog_pyfunc.pipeline.training.embeddings import batches
from catdog_pyfunc.preprocessing import Floats

ACCEPTED_FRACTION = 0.98  # of val, by the OOD threshold
MAX_REFERENCES = 1_000  # embeddings kept for comparison: every prediction reads them all
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


def fit_ood_threshold(network: Network, train: Floats, val: Floats, seed: int) -> tuple[Floats, float]:
    """Select the reference embeddings and fit the similarity below which an image counts as out-of-distribution.

    Args:
        network: Says by what embeddings are compared.
        train: Embeddings (N, D) of training images; at most 1,000 of them, sampled by seed, become the reference.
        val: Embeddings of other images from the same distribution.
        seed: Seed of the sampling.

    Returns:
        The reference embeddings (M, D), and the threshold: 98 % of val are at least as similar.
    """
    if len(train) > MAX_REFERENCES:
        train = train[np.sort(np.random.default_rng(seed).choice(len(train), MAX_REFERENCES, replace=False))]
    reference = train.astype(np.float16).astype(np.float32)  # the precision it is stored in
    n_classes = network.head.out_features
    with torch.inference_mode():
        features = network.ood_features(torch.from_numpy(reference)).half().float()  # as in `ServingNetwork`
        similarities = torch.cat(  # all N × M of them would outgrow the memory
            [similarity(network.ood_features(torch.from_numpy(batch)), features, n_classes) for batch in batches(val)]
        )
    return reference, float(np.quantile(similarities.numpy(), 1 - ACCEPTED_FRACTION))
