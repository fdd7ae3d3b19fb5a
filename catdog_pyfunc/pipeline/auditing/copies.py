"""Exact and near-duplicates, within and across splits: for each copy, the one to leave out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from catdog_pyfunc.pipeline.auditing.findings import Finding, Image
from catdog_pyfunc.pipeline.auditing.quality import Quality
from catdog_pyfunc.pipeline.console import log
from catdog_pyfunc.pipeline.data.dataset import SPLITS, Dataset
from catdog_pyfunc.pipeline.training.near_duplicates import (
    LEAST_COSINE,
    LEAST_DESCRIPTOR_COSINE,
    Integers,
    Pair,
    confirmed,
)
from catdog_pyfunc.preprocessing import Floats, Preprocess

_MAX_CANDIDATES = 20_000  # decoded twice each, a minute or two on two cores
Neighbours = tuple[Floats, Integers]
"""What `near_duplicates.nearest` returns."""


def unique_images(dataset: Dataset) -> tuple[list[Image], list[tuple[Image, Image]]]:
    """Separate images from exact copies of them.

    Args:
        dataset: The dataset.

    Returns:
        One image of each content, in the last of train, val, test that has it; and the others, each with the one kept.
    """
    listed = [Image(split, example) for split in SPLITS for example in dataset.splits[split]]
    kept: dict[str, Image] = {}
    copies = []
    for image in (*listed, *(Image(split, example) for split, example in dataset.leaks)):
        original = kept.setdefault(image.example.digest, image)
        if original is not image:
            copies.append((image, original))
    return list(kept.values()), copies


def exact_duplicates(copies: Sequence[tuple[Image, Image]], classes: Sequence[str], root: Path) -> list[Finding]:
    """Report exact copies; see `unique_images`."""
    return [
        Finding(
            image,
            "exact_duplicate",
            1.0,
            _reason("the same file as", image, kept, classes, root),
            original=kept.example.path,
        )
        for image, kept in copies
    ]


def near_duplicates(
    images: Sequence[Image],
    qualities: Sequence[Quality],
    by_embedding: Neighbours,
    by_descriptor: Neighbours,
    spec: Preprocess,
    classes: Sequence[str],
    root: Path,
) -> list[Finding]:
    """Find copies that are not the same file.

    Of each pair, the one in the last of train, val, test is kept, in the same split the larger one.

    Args:
        images: N different, intact images.
        qualities: Their measures.
        by_embedding: The nearest neighbours by embedding.
        by_descriptor: The nearest neighbours by `near_duplicates.descriptor`.
        spec: How to decode them.
        classes: Class names.
        root: Folder that reasons name files relative to.

    Returns:
        One finding for each image to leave out.
    """
    candidates = _candidates(by_embedding, by_descriptor)
    partners: dict[int, dict[int, float]] = {}
    for pair, similarity in confirmed(candidates, [image.example for image in images], spec):
        partners.setdefault(pair.first, {})[pair.second] = similarity
        partners.setdefault(pair.second, {})[pair.first] = similarity

    def rank(index: int) -> tuple[int, int, str]:
        quality = qualities[index]
        return -SPLITS.index(images[index].split), -quality.width * quality.height, str(images[index].example.path)

    kept: set[int] = set()
    findings = []
    for index in sorted(partners, key=rank):
        originals = partners[index].keys() & kept
        if not originals:
            kept.add(index)
            continue
        original = min(originals, key=rank)
        reason = _reason("nearly the same as", images[index], images[original], classes, root)
        path = images[original].example.path
        findings.append(Finding(images[index], "near_duplicate", partners[index][original], reason, original=path))
    return findings


def _candidates(by_embedding: Neighbours, by_descriptor: Neighbours) -> list[Pair]:
    """Pairs that are similar by embedding or descriptor, the most similar first."""
    embedded, described = _similar(by_embedding, LEAST_COSINE), _similar(by_descriptor, LEAST_DESCRIPTOR_COSINE)
    similar = {pair: max(embedded.get(pair, 0.0), described.get(pair, 0.0)) for pair in {**embedded, **described}}
    if len(similar) > _MAX_CANDIDATES:
        log(f"only the {_MAX_CANDIDATES} most similar of {len(similar)} pairs are checked for being near-duplicates")
    most = sorted(similar, key=lambda pair: (-similar[pair], pair))[:_MAX_CANDIDATES]
    return [Pair(*pair, embedded.get(pair, 0.0)) for pair in most]


def _similar(neighbours: Neighbours, least: float) -> dict[tuple[int, int], float]:
    """Pairs of indices, the lower one first, that are similar enough."""
    return {
        (min(row, int(other)), max(row, int(other))): float(cosine)
        for row, (cosines, others) in enumerate(zip(*neighbours, strict=True))
        for cosine, other in zip(cosines, others, strict=True)
        if cosine >= least
    }


def _reason(how: str, image: Image, kept: Image, classes: Sequence[str], root: Path) -> str:
    path = kept.example.path.relative_to(root).as_posix()
    contradiction = "" if kept.example.label == image.example.label else f", labelled {classes[kept.example.label]}"
    return f"{how} {path}{contradiction}"
