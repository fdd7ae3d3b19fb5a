"""The photos that every server is asked about: 500x375 and 12 megapixels, JPEG."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

SIZES = {"500x375": (500, 375), "12 MP": (4000, 3000)}
COUNTS = {"500x375": 32, "12 MP": 8}


def make(folder: Path, seed: int = 0) -> dict[str, list[bytes]]:
    """Cut photos to the two sizes.

    Args:
        folder: Any folder with JPEG files somewhere below.
        seed: Of the choice and of the noise.

    Returns:
        Size's name → files. The large ones get a sensor's noise: without, an enlarged photo would hardly fill its pixels,
        and cost a fraction of a real one's decoding (2.4 MB a file, as a phone's).
    """
    rng = np.random.default_rng(seed)
    paths = sorted(folder.rglob("*.jpg"))
    if not paths:
        raise SystemExit(f"{folder} holds no .jpg file: give a folder of photos")
    chosen = [paths[k] for k in rng.permutation(len(paths))[: max(COUNTS.values())]]
    return {name: [_cut(path, size, rng) for path in chosen[: COUNTS[name]]] for name, size in SIZES.items()}


def draw(folder: Path) -> Path:
    """Draw photos, where there are none."""
    from catdog_pyfunc.pipeline.data import synthetic

    return synthetic.make(folder, {"train": 16, "val": 1, "test": 1})


def _cut(path: Path, size: tuple[int, int], rng: np.random.Generator) -> bytes:
    with Image.open(path) as opened:
        picture = ImageOps.fit(opened.convert("RGB"), size, Image.Resampling.BICUBIC)
    if max(size) > 1000:
        noise = rng.normal(0, 6, (size[1], size[0], 1))
        picture = Image.fromarray(np.clip(np.asarray(picture) + noise, 0, 255).astype(np.uint8))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()
