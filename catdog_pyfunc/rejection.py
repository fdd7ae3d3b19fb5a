"""Telling what is none of the classes: how like the pictures of the training data a picture's embedding is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from catdog_pyfunc.preprocess import Floats


@dataclass(frozen=True)
class Rejection:
    """What a picture must be like to be accepted.

    Attributes:
        reference: (M, D), embeddings of training pictures, each of length 1, of float16 precision.
        threshold: A picture less like the nearest of them than this is none of the classes.
    """

    reference: Floats
    threshold: float

    def score(self, embedding: Floats) -> Floats:
        """How like the nearest training picture each of (N, D) embeddings is: (N,), at most 1."""
        return likeness(embedding, self.reference)


def normalised(embedding: Floats) -> Floats:
    """Scale (N, D) embeddings to length 1."""
    return np.asarray(embedding / np.maximum(np.linalg.norm(embedding, axis=1, keepdims=True), 1e-12))


def likeness(embedding: Floats, reference: Floats) -> Floats:
    """Cosine to the nearest reference embedding.

    The k-nearest-neighbour distance on normalised features (Sun et al., "Out-of-Distribution Detection with Deep Nearest
    Neighbors", ICML 2022) with k = 1.

    Args:
        embedding: (N, D).
        reference: (M, D), each of length 1.

    Returns:
        (N,)
    """
    return np.asarray((normalised(embedding) @ reference.T).max(axis=1))
