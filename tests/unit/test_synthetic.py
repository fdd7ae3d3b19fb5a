"""The synthetic sample: reproducible, kept, and not solved by a trivial rule."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from catdog_pyfunc.pipeline.data import synthetic


def thumbnails(root: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    files = sorted((root / split).glob("*/*.jpg"))
    small = [np.asarray(Image.open(file).resize((8, 8))).ravel() / 255 for file in files]
    return np.stack(small), np.array([file.parent.name == "dog" for file in files])


def test_the_same_seed_draws_the_same_image():
    one, again, other = (synthetic.draw("cat", np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert one == again
    assert one != other
    assert Image.open(io.BytesIO(one)).size == (160, 160)


def test_a_trivial_rule_fails(tmp_path: Path):
    """Ridge regression on colours and on 8x8 thumbnails stays far below a network's accuracy."""
    root = synthetic.make(tmp_path, {"train": 150, "val": 1, "test": 100})
    x, y = thumbnails(root, "train")
    x_test, y_test = thumbnails(root, "test")
    for columns in (slice(None), [0, 1, 2]):
        a, b = x[:, columns] - x[:, columns].mean(0), x_test[:, columns] - x[:, columns].mean(0)
        rule = np.linalg.solve(a.T @ a + 10 * np.eye(a.shape[1]), a.T @ (y - 0.5))
        assert ((b @ rule > 0) == y_test).mean() < 0.8


def test_the_sample_is_drawn_once(tmp_path: Path):
    counts = {"train": 2, "val": 1, "test": 1}
    first = synthetic.make(tmp_path, counts)
    stamps = {path: path.stat().st_mtime_ns for path in first.rglob("*.jpg")}
    assert synthetic.make(tmp_path, counts) == first
    assert stamps == {path: path.stat().st_mtime_ns for path in first.rglob("*.jpg")}
    assert len(stamps) == 8
