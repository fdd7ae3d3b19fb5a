"""The images that are sent to every server: JPEGs of 500x375 pixels and of 12 megapixels."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from catdog_pyfunc.cpu import available_cores
from catdog_pyfunc.pipeline.console import progress

SIZES = {"500x375": (500, 375), "12 MP": (4000, 3000)}
COUNTS = {"500x375": 32, "12 MP": 8}


def make_images(folder: Path, seed: int = 0) -> dict[str, list[bytes]]:
    """Crop and resize photos to the two sizes.

    Args:
        folder: Any folder that contains JPEG files, at any depth.
        seed: Determines the selection and the noise.

    Returns:
        Size → files. Sensor noise is added to the large ones, since an enlarged photo without it would decode in a fraction
        of a real one's time (2.4 MB per file, like a phone's).
    """
    rng = np.random.default_rng(seed)
    paths = sorted(folder.rglob("*.jpg"))
    if not paths:
        raise SystemExit(f"{folder} contains no .jpg file: give a folder of photos")
    chosen = [paths[k] for k in rng.permutation(len(paths))[: max(COUNTS.values())]]
    return {name: [_cut(path, size, rng) for path in chosen[: COUNTS[name]]] for name, size in SIZES.items()}


def draw_images(folder: Path) -> Path:
    """Generate images, for when no photos are given."""
    from catdog_pyfunc.pipeline.data import synthetic

    return synthetic.make(folder, {"train": 16, "val": 1, "test": 1})


def re_encode(photos: Path, folder: Path, count: int, seed: int = 0) -> None:
    """Make many images of a few: each is cropped and compressed another way, and costs as much to decode as its original.

    Args:
        photos: Class folders, at any depth.
        folder: Gets the class folders; what is there already stays.
        count: Number of images.
        seed: Determines crops and qualities.
    """
    paths = sorted(photos.rglob("*.jpg"))
    if not paths:
        raise SystemExit(f"{photos} contains no .jpg file: give a folder of photos")

    def write(number: int) -> None:
        path, rng = paths[number % len(paths)], np.random.default_rng((seed, number))
        target = folder / path.parent.name / f"{number:07}.jpg"
        if target.exists():
            return
        left, top, right, bottom = rng.integers(0, 12, 4).tolist()
        unfinished = target.with_suffix(".tmp")
        with Image.open(path) as image:
            cropped = image.convert("RGB").crop((left, top, image.width - right, image.height - bottom))
            cropped.save(unfinished, "JPEG", quality=int(rng.integers(75, 92)))
        unfinished.replace(target)

    for name in {path.parent.name for path in paths}:
        (folder / name).mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(available_cores()) as pool:
        for _ in progress(pool.map(write, range(count)), "re-encoding images", count):
            pass


def _cut(path: Path, size: tuple[int, int], rng: np.random.Generator) -> bytes:
    with Image.open(path) as opened:
        image = ImageOps.fit(opened.convert("RGB"), size, Image.Resampling.BICUBIC)
    if max(size) > 1000:
        noise = rng.normal(0, 6, (size[1], size[0], 1))
        image = Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()
