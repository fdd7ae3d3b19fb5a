"""Labels that contradict what a linear classifier of all other images predicts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
from cleanlab.filter import find_label_issues

from catdog_pyfunc.classifier import softmax
from catdog_pyfunc.pipeline.auditing.findings import Finding, Image
from catdog_pyfunc.pipeline.training.calibration import fit_temperature
from catdog_pyfunc.pipeline.training.embeddings import batches
from catdog_pyfunc.preprocessing import Floats

_PENALTIES = (0.3, 1.0, 3.0, 10.0, 30.0)  # of the squared weights, per image
_ROUNDS = 3
_FEWEST = 5  # images per class, below which noise rates mean nothing
Doubles = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]


def label_errors(images: Sequence[Image], embeddings: Floats, classes: Sequence[str]) -> list[Finding]:
    """Find label errors by confident learning (Northcutt et al., JAIR 2021), as cleanlab implements it.

    A round's suspects do not count in the next: a classifier that has not learnt from them contradicts them more clearly.

    Args:
        images: N images.
        embeddings: (N, D), in memory or memory-mapped.
        classes: C class names.

    Returns:
        One finding per suspected label; none if there is only one class, or one with fewer than five images.
    """
    labels = np.array([image.example.label for image in images])
    if len(classes) < 2 or np.bincount(labels, minlength=len(classes)).min() < _FEWEST:
        return []
    trusted = np.ones(len(labels), bool)
    for _ in range(_ROUNDS):
        probabilities = leave_one_out(embeddings, labels, len(classes), trusted)
        suspects = find_label_issues(labels, probabilities, n_jobs=1)
        if np.bincount(labels[~suspects], minlength=len(classes)).min() < _FEWEST:
            break
        trusted = ~suspects
    return [_finding(images[k], probabilities[k], classes) for k in np.flatnonzero(suspects).tolist()]


def leave_one_out(embeddings: Floats, labels: npt.NDArray[np.int64], n_classes: int, trusted: Flags) -> Doubles:
    """Predict each label by a ridge classifier that was fitted to all other trusted images.

    In closed form: leaving an image out changes its score s to (s - h y) / (1 - h), with h its leverage (PRESS, Allen 1974).
    The penalty and the temperature are those with the lowest log-loss on the trusted images.

    Args:
        embeddings: (N, D), passed over in batches.
        labels: (N,) class indices.
        n_classes: C.
        trusted: (N,), which images to fit to.

    Returns:
        Probabilities (N, C).
    """
    targets = np.eye(n_classes, dtype=np.float32)[labels]
    candidates = []
    for scores in _held_out_scores(embeddings, targets, trusted):
        temperature = fit_temperature(scores[trusted], labels[trusted].tolist())
        probabilities = softmax(scores / temperature)
        loss = -np.log(np.maximum(probabilities[trusted, labels[trusted]], 1e-12)).mean()
        candidates.append((loss, probabilities))
    return min(candidates, key=lambda candidate: candidate[0])[1]


def _held_out_scores(embeddings: Floats, targets: Floats, trusted: Flags) -> list[Floats]:
    """Scores (N, C) for each penalty."""
    mean, std = _moments(embeddings)
    dimension = len(mean) + 1
    gram, product = np.zeros((dimension, dimension)), np.zeros((dimension, targets.shape[1]))
    for rows, x in _standardised(embeddings, mean, std):
        kept = x[trusted[rows]]
        gram += kept.T @ kept
        product += kept.T @ targets[rows][trusted[rows]]
    eigenvalues, vectors = np.linalg.eigh(gram)
    projected = vectors.T @ product
    rotation = vectors.astype(np.float32)
    scores = [np.empty_like(targets) for _ in _PENALTIES]
    for rows, x in _standardised(embeddings, mean, std):
        rotated = x @ rotation
        for score, penalty in zip(scores, _PENALTIES, strict=True):
            shrunk = 1 / (eigenvalues + penalty * trusted.sum())
            leverage = (rotated**2 @ shrunk * trusted[rows])[:, None]
            score[rows] = (rotated @ (shrunk[:, None] * projected) - leverage * targets[rows]) / (1 - leverage)
    return scores


def _moments(embeddings: Floats) -> tuple[Floats, Floats]:
    count = len(embeddings)
    mean = sum(batch.sum(0, dtype=np.float64) for batch in batches(embeddings)) / count
    variance = sum(((batch - mean) ** 2).sum(0) for batch in batches(embeddings)) / count
    std = np.sqrt(variance)
    std = np.maximum(std, max(0.01 * std.mean(), 1e-6))  # nearly constant features would get huge weights
    return mean.astype(np.float32), std.astype(np.float32)


def _standardised(embeddings: Floats, mean: Floats, std: Floats) -> Iterator[tuple[slice, Floats]]:
    """Rows of a batch, and (B, D + 1): its embeddings standardised, and a constant."""
    done = 0
    for batch in batches(embeddings):
        rows = slice(done, done + len(batch))
        yield rows, np.concatenate([(batch - mean) / std, np.ones((len(batch), 1), np.float32)], 1)
        done += len(batch)


def _finding(image: Image, probabilities: Doubles, classes: Sequence[str]) -> Finding:
    best, own = int(probabilities.argmax()), image.example.label
    reason = f"probability of {classes[best]} {probabilities[best]:.2f}, of {classes[own]} {probabilities[own]:.2f}"
    return Finding(image, "label_error", float(1 - probabilities[own]), reason, suggestion=classes[best])
