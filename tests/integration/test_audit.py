"""What an audit finds in real photos: planted label errors and copies, with the figures that docs/audit.md has.

`-s` prints them.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from catdog_pyfunc.pipeline.auditing.audit import find
from catdog_pyfunc.pipeline.auditing.findings import Finding
from catdog_pyfunc.pipeline.auditing.findings import Image as Audited
from catdog_pyfunc.pipeline.auditing.label_errors import label_errors
from catdog_pyfunc.pipeline.cache import cache_dir
from catdog_pyfunc.pipeline.data.dataset import Dataset, Example, read_folder
from catdog_pyfunc.pipeline.training.backbones import Backbone, load_backbone
from catdog_pyfunc.pipeline.training.fit import embed_images

pytestmark = pytest.mark.slow
SEEDS, FLIPPED, COPIED = 5, 60, 100
COPIES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "half": lambda image: image.resize((image.width // 2, image.height // 2)),
    "quality 30": lambda image: image,
    "mirrored": ImageOps.mirror,
    "cropped": lambda image: image.crop(
        (image.width // 20, image.height // 20, image.width - image.width // 20, image.height - image.height // 20)
    ),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.3),
    "turned": lambda image: image.transpose(Image.Transpose.ROTATE_90),
}


@pytest.fixture(scope="module")
def backbone(real_weights: Path) -> Backbone:
    return load_backbone("mobilenet_v2", str(real_weights), 2, 0)


@pytest.fixture(scope="module")
def train(real_photos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Example, ...]:
    """2,000 photos, in random order."""
    examples = read_folder(real_photos).splits["train"]
    return tuple(examples[k] for k in np.random.default_rng(0).permutation(len(examples)))


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for all tests here."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "audit-cache"))
    return cache_dir() / "embeddings.sqlite"


def test_planted_label_errors_are_found(backbone: Backbone, train: tuple[Example, ...], cache: Path):
    embeddings = embed_images(backbone, train, cache).values
    figures = []
    for seed in range(SEEDS):
        flipped = set(np.random.default_rng(seed).choice(len(train), FLIPPED, replace=False).tolist())
        labelled = [replace(one, label=1 - one.label) if k in flipped else one for k, one in enumerate(train)]
        found = label_errors([Audited("train", example) for example in labelled], embeddings, ("cat", "dog"))
        right = {finding.image.example.path for finding in found} & {train[k].path for k in flipped}
        figures.append((len(right) / FLIPPED, len(right) / len(found)))
        print(f"seed {seed}: recall {figures[-1][0]:.3f}, precision {figures[-1][1]:.3f}")
    recall, precision = np.mean(figures, 0)
    assert recall >= 0.95, figures
    assert precision >= 0.85, figures


def test_copies_are_found_and_different_photos_are_not(
    backbone: Backbone, train: tuple[Example, ...], cache: Path, tmp_path: Path
):
    planted: dict[str, set[Path]] = {}
    copies = []
    for name, change in COPIES.items():
        folder = tmp_path / name
        folder.mkdir()
        planted[name] = {folder / example.path.name for example in train[:COPIED]}
        for example in train[:COPIED]:
            with Image.open(example.path) as image:
                content = io.BytesIO()
                change(image.convert("RGB")).save(content, "JPEG", quality=30 if name == "quality 30" else 90)
            path = folder / example.path.name
            path.write_bytes(content.getvalue())
            copies.append(Example(path, example.label, f"{name}/{example.digest}"))
    clean = duplicates(backbone, Dataset("/", ("cat", "dog"), {"train": train, "val": (), "test": ()}))
    print("pairs among the photos as they are:", clean)
    assert len(clean) <= 1
    dataset = Dataset("/", ("cat", "dog"), {"train": tuple(copies), "val": (), "test": train})
    found = {finding.image.example.path for finding in duplicates(backbone, dataset)}
    recall = {name: len(paths & found) / COPIED for name, paths in planted.items()}
    print("copies found:", recall)
    assert min(recall.values()) >= 0.98, recall


def duplicates(backbone: Backbone, dataset: Dataset) -> list[Finding]:
    return [finding for finding in find(dataset, backbone)[0] if finding.kind == "near_duplicate"]
