"""Near-duplicates: copies of an image that were resized, compressed, brightened, mirrored, turned or cropped.

Candidates have similar embeddings, or similar `descriptor`s, which finds turned copies; `similarity` of pixels decides.
The limits lie between different photos of cats and dogs and copies of them (docs/audit.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy.fft import dctn

from catdog_pyfunc.cpu import available_cores
from catdog_pyfunc.pipeline.console import progress
from catdog_pyfunc.pipeline.data.corrupt import read_image
from catdog_pyfunc.pipeline.data.dataset import Dataset, Example
from catdog_pyfunc.pipeline.training.embeddings import batches
from catdog_pyfunc.preprocessing import Floats, Pixels, Preprocess

Integers = npt.NDArray[np.int64]
LEAST_COSINE = 0.85  # of two embeddings
LEAST_DESCRIPTOR_COSINE = 0.97
_LEAST_SIMILARITY, _LEAST_SIMILARITY_ALONE = 0.88, 0.97  # the second where embeddings are not similar
_BLOCK = 1024  # rows that are compared with 8,192 others at a time
_SILENT = 8  # blocks that take too little time for a line about them
_THUMBNAIL, _DESCRIPTOR_THUMBNAIL, _CELLS = 64, 32, 16  # sides, pixels
_FREQUENCIES = 8
# Parts of a thumbnail that may be all of another image; the first is all of it.
_BOXES = [
    (x, y, x + side, y + side) for side in (64, 60, 56, 52) for x in range(0, 65 - side, 4) for y in range(0, 65 - side, 4)
]
_MAX_COMPARISONS = 5 * 10**8  # between two splits in training: 15 s on two cores
_MAX_CANDIDATES = 1000  # that training decodes, twice each


@dataclass(frozen=True)
class Pair:
    """Two images that may be copies of each other.

    Attributes:
        first: Index of one.
        second: Index of the other.
        cosine: Of their embeddings.
    """

    first: int
    second: int
    cosine: float


@dataclass(frozen=True)
class Leaks:
    """Near-duplicates across the splits of a dataset.

    Attributes:
        pairs: An image of val or test, and its near-duplicate in train or val.
        compared: How many images of val and test were compared with the rest.
        total: How many there are.
    """

    pairs: tuple[tuple[Example, Example], ...]
    compared: int
    total: int

    @property
    def count(self) -> int:
        """Number of images of val and test that have a near-duplicate in another split."""
        return len({example.path for example, _ in self.pairs})

    def summary(self) -> str:
        """State the count, and how many were compared if not all."""
        some = "" if self.compared == self.total else f"{self.compared} of the "
        return f"{self.count} of {some}{self.total} images in val and test are near-duplicates of an image in another split"


def nearest(queries: Floats, values: Floats, count: int) -> tuple[Floats, Integers]:
    """Find the most similar vectors by cosine, exactly, in blocks.

    Args:
        queries: (Q, D), in memory or memory-mapped.
        values: (N, D); the same array as `queries` for the neighbours of each among the others.
        count: K; fewer if there are not as many.

    Returns:
        Cosines (Q, K), highest first, and indices (Q, K) into `values`.
    """
    count = min(count, len(values) - (queries is values))
    cosines = np.full((len(queries), count), -np.inf, np.float32)
    indices = np.zeros((len(queries), count), np.int64)
    starts = range(0, len(queries), _BLOCK) if count > 0 else ()
    for start in progress(starts, "comparing images", len(starts)) if len(starts) > _SILENT else starts:
        rows, done = slice(start, start + _BLOCK), 0
        block = _unit(queries[rows])
        for batch in batches(values):
            found = block @ _unit(batch).T  # (B, N')
            if queries is values:
                np.fill_diagonal(found[max(0, done - start) :, max(0, start - done) :], -np.inf)
            best = np.argpartition(-found, min(count, len(batch)) - 1)[:, :count]
            merged = np.concatenate([cosines[rows], np.take_along_axis(found, best, 1)], 1)
            numbers = np.concatenate([indices[rows], best + done], 1)
            order = np.argsort(-merged, 1, kind="stable")[:, :count]
            cosines[rows], indices[rows] = np.take_along_axis(merged, order, 1), np.take_along_axis(numbers, order, 1)
            done += len(batch)
    return cosines, indices


def descriptor(pixels: Pixels) -> Floats:
    """Describe an image such that a mirrored or turned one has the same descriptor.

    Mirroring changes signs of a discrete cosine transform's coefficients, and transposing swaps (u, v) with (v, u): sums and
    differences of the absolute values of the lowest frequencies stay.

    Args:
        pixels: (H, W, 3) uint8, square.

    Returns:
        (63,) float32, of length 1.
    """
    gray = _gray(pixels, _DESCRIPTOR_THUMBNAIL).astype(np.float32)
    spectrum = np.abs(dctn(gray, norm="ortho")[:_FREQUENCIES, :_FREQUENCIES])
    sums = (spectrum + spectrum.T)[np.triu_indices(_FREQUENCIES)][1:]  # without the mean brightness
    differences = np.abs(spectrum - spectrum.T)[np.triu_indices(_FREQUENCIES, 1)]
    described: Floats = _unit(np.concatenate([sums, differences])[None])[0]
    return described


def similarity(first: Pixels, second: Pixels) -> float:
    """Correlate two images where they fit best: mirrored, turned, and one of them cropped by up to a fifth.

    Args:
        first: (H, W, 3) uint8, square.
        second: (H, W, 3) uint8, square.

    Returns:
        The highest correlation of their 16x16 grey cells, at most 1.
    """
    parts, others = _parts(_gray(first, _THUMBNAIL)), _parts(_gray(second, _THUMBNAIL))  # (P, 256); the first is all
    return float(max((others @ _orientations(parts[0]).T).max(), (parts @ _orientations(others[0]).T).max()))


def confirmed(pairs: Sequence[Pair], examples: Sequence[Example], spec: Preprocess) -> list[tuple[Pair, float]]:
    """Decode both images of each pair, and keep those that are near-duplicates.

    Args:
        pairs: Candidates, by their places in `examples`.
        examples: Intact images.
        spec: How to decode them.

    Returns:
        Pairs and their similarities.
    """

    def measure(pair: Pair) -> float:
        first, second = (read_image(examples[index], spec) for index in (pair.first, pair.second))
        return 0.0 if isinstance(first, str) or isinstance(second, str) else similarity(first, second)

    with ThreadPoolExecutor(available_cores()) as pool:
        measured = list(progress(pool.map(measure, pairs), "checking near-duplicates", len(pairs)))
    return [(pair, value) for pair, value in zip(pairs, measured, strict=True) if value >= _least(pair)]


def find_leaks(dataset: Dataset, embeddings: Mapping[str, Floats], spec: Preprocess, seed: int) -> Leaks:
    """Find near-duplicates across splits, by embeddings: those of val in train, and those of test in train and val.

    The time is bounded: in large datasets a random part of val and test is compared, and at most 1,000 candidates of two
    splits are decoded. Turned copies are not found.

    Args:
        dataset: Intact images.
        embeddings: "train", "val", "test" → (N, D).
        spec: How the images were embedded.
        seed: Seed of the random part.

    Returns:
        The pairs, and how much was compared.
    """
    compared, pairs = 0, []
    for split, other in (("val", "train"), ("test", "train"), ("test", "val")):
        rows = _sample(len(embeddings[split]), max(1, _MAX_COMPARISONS // len(embeddings[other])), seed)
        compared += len(rows) if other == "train" else 0
        queries = embeddings[split][rows] if len(rows) < len(embeddings[split]) else embeddings[split]
        cosines, indices = nearest(queries, embeddings[other], 1)
        examples = (*dataset.splits[split], *dataset.splits[other])
        offset = len(dataset.splits[split])
        candidates = [
            Pair(int(rows[k]), offset + int(indices[k, 0]), float(cosines[k, 0]))
            for k in np.argsort(-cosines[:, 0])[:_MAX_CANDIDATES]
            if cosines[k, 0] >= LEAST_COSINE
        ]
        pairs += [(examples[pair.first], examples[pair.second]) for pair, _ in confirmed(candidates, examples, spec)]
    return Leaks(tuple(pairs), compared, len(embeddings["val"]) + len(embeddings["test"]))


def _sample(count: int, limit: int, seed: int) -> Integers:
    if count <= limit:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).choice(count, limit, replace=False))


def _least(pair: Pair) -> float:
    return _LEAST_SIMILARITY if pair.cosine >= LEAST_COSINE else _LEAST_SIMILARITY_ALONE


def _unit(vectors: Floats) -> Floats:
    unit: Floats = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return unit


def _gray(pixels: Pixels, side: int) -> Pixels:
    return np.asarray(Image.fromarray(pixels).convert("L").resize((side, side), Image.Resampling.BOX))


def _parts(gray: Pixels) -> Floats:
    """(P, 256): all of a thumbnail, then windows in it, as cells ready to be correlated."""
    image = Image.fromarray(gray)
    return _standardised(image.resize((_CELLS, _CELLS), Image.Resampling.BOX, box=box) for box in _BOXES)


def _orientations(cells: Floats) -> Floats:
    """(8, 256): cells mirrored and turned."""
    square = cells.reshape(_CELLS, _CELLS)
    return np.stack([np.rot90(one, turns).ravel() for one in (square, square[:, ::-1]) for turns in range(4)])


def _standardised(images: Iterable[Image.Image]) -> Floats:
    cells = np.stack([np.asarray(image, np.float32).ravel() for image in images])
    return _unit(cells - cells.mean(1, keepdims=True))
