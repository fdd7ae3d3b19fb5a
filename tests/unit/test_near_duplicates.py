"""Nearest neighbours in blocks, what makes two images near-duplicates, and those across splits."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from catdog_pyfunc.pipeline.data.dataset import Dataset, read_folder
from catdog_pyfunc.pipeline.training import embeddings, near_duplicates
from catdog_pyfunc.pipeline.training.near_duplicates import Pair, confirmed, descriptor, find_leaks, nearest, similarity
from catdog_pyfunc.preprocessing import Pixels, Preprocess

SPEC = Preprocess(size=96, resize=99)


def photo(seed: int) -> Image.Image:
    """A few soft blobs: like a photo, it has more low frequencies than high ones."""
    noise = np.random.default_rng(seed).integers(0, 255, (7, 9, 3)).astype(np.uint8)
    return Image.fromarray(noise).resize((360, 280), Image.Resampling.BICUBIC)


def pixels(image: Image.Image) -> Pixels:
    return np.asarray(ImageOps.fit(image, (SPEC.size, SPEC.size)))


COPIES = {
    "half": photo(0).resize((180, 140)),
    "mirrored": ImageOps.mirror(photo(0)),
    "turned": photo(0).transpose(Image.Transpose.ROTATE_270),
    "cropped": photo(0).crop((18, 14, 342, 266)),
    "brighter": photo(0).point(lambda value: min(255, int(1.3 * value))),
}


def brute_force(queries: np.ndarray, values: np.ndarray) -> np.ndarray:
    unit = [vectors / np.linalg.norm(vectors, axis=1, keepdims=True) for vectors in (queries, values)]
    cosines: np.ndarray = unit[0] @ unit[1].T
    if queries is values:
        np.fill_diagonal(cosines, -1)
    return cosines


@pytest.mark.parametrize(("block", "batch"), [(16, 7), (7, 16), (100, 100)])
def test_nearest_in_blocks_is_nearest(block: int, batch: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(near_duplicates, "_BLOCK", block)
    monkeypatch.setattr(embeddings, "_BATCH", batch)
    values, others = np.random.default_rng(0).normal(size=(2, 50, 6)).astype(np.float32)
    for queries in (values, others):
        expected = brute_force(queries, values)
        cosines, indices = nearest(queries, values, 4)
        assert (indices == np.argsort(-expected, 1)[:, :4]).all()
        assert cosines == pytest.approx(np.take_along_axis(expected, indices, 1), abs=1e-6)


def test_there_are_as_many_neighbours_as_there_are_others():
    values = np.eye(3, dtype=np.float32)
    assert [array.shape for array in nearest(values, values, 10)] == [(3, 2), (3, 2)]
    alone = values[:1]
    assert nearest(alone, alone, 10)[0].shape == (1, 0)


def test_a_mirrored_or_turned_image_has_the_same_descriptor():
    square = pixels(photo(1))
    for turns in range(4):
        for one in (np.rot90(square, turns), np.rot90(square, turns)[:, ::-1]):
            assert descriptor(np.ascontiguousarray(one)) == pytest.approx(descriptor(square), abs=2e-3)
    assert descriptor(square) @ descriptor(pixels(photo(2))) < 0.97


@pytest.mark.parametrize("name", COPIES)
def test_a_copy_is_similar_and_another_image_is_not(name: str):
    original, copy, other = (pixels(image) for image in (photo(0), COPIES[name], photo(3)))
    assert min(similarity(original, copy), similarity(copy, original)) > 0.95
    assert similarity(original, other) < 0.8


def test_blank_images_are_no_copies():
    blank = np.full((96, 96, 3), 200, np.uint8)
    assert similarity(blank, blank) == 0


def test_without_similar_embeddings_the_pixels_must_agree_more(drawn: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(near_duplicates, "similarity", lambda first, second: 0.93)
    examples = read_folder(drawn).splits["val"]
    alike, unlike = Pair(0, 1, 0.9), Pair(0, 2, 0.0)
    assert confirmed([alike, unlike], examples, SPEC) == [(alike, 0.93)]


@pytest.fixture
def leaking(tmp_path: Path) -> Dataset:
    """Six different images, and a smaller copy of a training image in test."""
    for split, seeds in {"train": (10, 11), "val": (12, 13), "test": (14,)}.items():
        for seed in seeds:
            for label in ("cat", "dog"):
                save(photo(seed + 10 * (label == "dog")), tmp_path / split / label / f"{seed}.png")
    save(photo(10).resize((180, 140)), tmp_path / "test" / "cat" / "copy.png")
    return read_folder(tmp_path)


def save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = io.BytesIO()
    image.save(content, "PNG")
    path.write_bytes(content.getvalue())


def embedded(dataset: Dataset) -> dict[str, np.ndarray]:
    """Every two images are candidates."""
    return {split: np.ones((len(dataset.splits[split]), 3), np.float32) for split in dataset.splits}


def test_a_near_duplicate_across_splits_is_found(leaking: Dataset):
    values = {
        split: np.stack([descriptor(pixels(Image.open(one.path))) for one in leaking.splits[split]])
        for split in leaking.splits
    }
    leaks = find_leaks(leaking, values, SPEC, seed=0)
    assert [(one.path.name, other.path.name) for one, other in leaks.pairs] == [("copy.png", "10.png")]
    assert leaks.summary() == "1 of 7 images in val and test are near-duplicates of an image in another split"


def test_similar_embeddings_alone_make_no_near_duplicate(leaking: Dataset):
    without = replace(leaking, splits={**leaking.splits, "test": leaking.splits["test"][:1]})
    assert find_leaks(without, embedded(without), SPEC, seed=0).count == 0


def test_in_large_datasets_a_part_is_compared_and_the_summary_says_so(leaking: Dataset, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(
        near_duplicates, "_MAX_COMPARISONS", 8
    )  # two images of four in val and of three in test, with 4 in train
    leaks = find_leaks(leaking, embedded(leaking), SPEC, seed=0)
    assert (leaks.compared, leaks.total) == (4, 7)
    assert "of 4 of the 7 images" in leaks.summary()


def test_the_number_of_decoded_candidates_is_bounded(leaking: Dataset, monkeypatch: pytest.MonkeyPatch):
    checked: list[int] = []
    monkeypatch.setattr(near_duplicates, "_MAX_CANDIDATES", 2)
    monkeypatch.setattr(near_duplicates, "confirmed", lambda pairs, *rest: checked.append(len(pairs)) or [])
    find_leaks(leaking, embedded(leaking), SPEC, seed=0)
    assert checked == [2, 2, 2]
