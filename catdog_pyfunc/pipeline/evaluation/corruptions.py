"""Corruptions of images, as a bad camera, bad weather or a careless upload makes them, in published strengths.

Twelve of those of Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations"
(ICLR 2019), with the parameters of its ImageNet-C. Written anew on Pillow, NumPy and SciPy: the packages `imagenet-c` and
`imagecorruptions` fail with a current scikit-image. Fog is a sum of octaves instead of the paper's diamond-square fractal.
"""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy.signal import oaconvolve

from catdog_pyfunc.errors import InvalidImage
from catdog_pyfunc.preprocessing import DEFAULT_LIMITS, decode

Pixels = npt.NDArray[np.float32]  # (H, W, 3), 0..1
Corruption = Callable[[Image.Image, Any, np.random.Generator], Image.Image]
NONE = "none"
SEVERITIES = (1, 3, 5)
"""The paper's names for mild, middle and severe."""
_SIDE, _LONGEST = 256, 1024  # the published strengths are meant for images of this size


def corrupt(content: bytes, corruption: str, severity: int, seed: int = 0) -> bytes:
    """Corrupt an image file.

    What is random depends on the file's content and the seed only, not on other images or their order.

    Args:
        content: An image file.
        corruption: A name in `CORRUPTIONS`, or "none" to do all but corrupt: a fair comparison.
        severity: One of `SEVERITIES`; ignored for "none".
        seed: Seed of noise, fog and the direction of motion.

    Returns:
        A PNG of the image, upright, scaled to 256 pixels on its shorter side (or 1,024 on its longer, if that is less), and
        corrupted. A file that cannot be decoded is returned as it is.
    """
    try:
        image = _scaled(decode(content, DEFAULT_LIMITS, least_side=_SIDE))
    except InvalidImage:
        return content
    if corruption != NONE:
        apply, levels = CORRUPTIONS[corruption]
        image = apply(image, levels[SEVERITIES.index(severity)], generator(content, seed, corruption))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def corrupt_at_random(content: bytes, seed: int = 0) -> bytes:
    """Corrupt an image file in one of the 36 ways, drawn by its content and the seed; as `corrupt`."""
    rng = generator(content, seed, "draw")
    return corrupt(content, str(rng.choice(list(CORRUPTIONS))), int(rng.choice(SEVERITIES)), seed)


def generator(content: bytes, seed: int, purpose: str) -> np.random.Generator:
    """Random numbers that depend on a file's content, a seed and what they are for."""
    digest = hashlib.sha256(f"{seed} {purpose} ".encode() + content).digest()
    return np.random.default_rng(int.from_bytes(digest, "big"))


def _scaled(image: Image.Image) -> Image.Image:
    factor = min(_SIDE / min(image.size), _LONGEST / max(image.size))
    width, height = (max(1, round(factor * side)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC)


def _pixels(image: Image.Image) -> Pixels:
    return np.asarray(image, np.float32) / np.float32(255)


def _image(pixels: npt.NDArray[np.floating[Any]], mode: str = "RGB") -> Image.Image:
    return Image.frombytes(
        mode, (pixels.shape[1], pixels.shape[0]), np.rint(255 * np.clip(pixels, 0, 1)).astype(np.uint8).tobytes()
    )


def _gaussian_noise(image: Image.Image, deviation: float, rng: np.random.Generator) -> Image.Image:
    pixels = _pixels(image)
    return _image(pixels + deviation * rng.standard_normal(pixels.shape, np.float32))


def _shot_noise(image: Image.Image, photons: float, rng: np.random.Generator) -> Image.Image:
    return _image(rng.poisson(_pixels(image) * photons) / photons)


def _impulse_noise(image: Image.Image, fraction: float, rng: np.random.Generator) -> Image.Image:
    """Salt and pepper, in equal parts."""
    pixels = _pixels(image)
    drawn = rng.random(pixels.shape, np.float32)
    return _image(np.where(drawn < fraction, drawn < fraction / 2, pixels))


def _defocus_blur(image: Image.Image, radius: int, rng: np.random.Generator) -> Image.Image:
    offsets = np.arange(-radius, radius + 1)
    return _convolved(image, np.hypot(*np.meshgrid(offsets, offsets)) <= radius)


def _motion_blur(image: Image.Image, level: tuple[int, float], rng: np.random.Generator) -> Image.Image:
    """Trails that fade in a direction within 45° of horizontal."""
    radius, deviation = level
    angle = rng.uniform(-math.pi / 4, math.pi / 4)
    steps = np.arange(2 * radius + 1)
    kernel = np.zeros((4 * radius + 1, 4 * radius + 1))
    rows, columns = (np.rint(2 * radius + steps * part).astype(int) for part in (math.sin(angle), math.cos(angle)))
    np.add.at(kernel, (rows, columns), np.exp(-((steps / deviation) ** 2) / 2))
    return _convolved(image, kernel)


def _convolved(image: Image.Image, kernel: npt.NDArray[Any]) -> Image.Image:
    margin = kernel.shape[0] // 2
    padded = np.pad(_pixels(image), ((margin, margin), (margin, margin), (0, 0)), mode="edge")
    weights = (kernel / kernel.sum()).astype(np.float32)[..., None]
    return _image(oaconvolve(padded, weights, mode="valid", axes=(0, 1)))


def _zoom_blur(image: Image.Image, level: tuple[float, float], rng: np.random.Generator) -> Image.Image:
    """The mean of the image and of enlargements, as when the lens zooms during exposure."""
    width, height = image.size
    factors = np.arange(1, *level)
    total = _pixels(image)
    for factor in factors:
        left, upper = width * (1 - 1 / factor) / 2, height * (1 - 1 / factor) / 2
        box = (left, upper, width - left, height - upper)
        total = total + _pixels(image.resize(image.size, Image.Resampling.BILINEAR, box))
    return _image(total / (len(factors) + 1))


def _fog(image: Image.Image, level: tuple[float, float], rng: np.random.Generator) -> Image.Image:
    """Haze of octaves of noise, each finer and weaker than the last."""
    amount, decay = level
    pixels = _pixels(image)
    haze = np.zeros(pixels.shape[:2], np.float32)
    for octave in range(1, 9):
        coarse = Image.fromarray(rng.uniform(-1, 1, (2**octave, 2**octave)).astype(np.float32))
        haze += np.asarray(coarse.resize(image.size, Image.Resampling.BICUBIC)) / decay**octave
    haze = (haze - haze.min()) / max(float(np.ptp(haze)), 1e-6)
    brightest = float(pixels.max())
    return _image((pixels + amount * haze[..., None]) * brightest / (brightest + amount))


def _brightness(image: Image.Image, amount: float, rng: np.random.Generator) -> Image.Image:
    hsv = _pixels(image.convert("HSV"))
    return _image(hsv + np.array([0, 0, amount], np.float32), "HSV").convert("RGB")


def _contrast(image: Image.Image, factor: float, rng: np.random.Generator) -> Image.Image:
    pixels = _pixels(image)
    mean = pixels.mean(axis=(0, 1))
    return _image(mean + factor * (pixels - mean))


def _saturate(image: Image.Image, level: tuple[float, float], rng: np.random.Generator) -> Image.Image:
    """Nearly grey at severity 1, garish at 3 and 5."""
    factor, amount = level
    hsv = _pixels(image.convert("HSV"))
    return _image(hsv * np.array([1, factor, 1], np.float32) + np.array([0, amount, 0], np.float32), "HSV").convert("RGB")


def _pixelate(image: Image.Image, factor: float, rng: np.random.Generator) -> Image.Image:
    width, height = image.size
    small = image.resize((max(1, int(width * factor)), max(1, int(height * factor))), Image.Resampling.BOX)
    return small.resize(image.size, Image.Resampling.BOX)


def _jpeg_compression(image: Image.Image, quality: int, rng: np.random.Generator) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


CORRUPTIONS: dict[str, tuple[Corruption, tuple[Any, Any, Any]]] = {
    "gaussian_noise": (_gaussian_noise, (0.08, 0.18, 0.38)),
    "shot_noise": (_shot_noise, (60, 12, 3)),
    "impulse_noise": (_impulse_noise, (0.03, 0.09, 0.27)),
    "defocus_blur": (_defocus_blur, (3, 6, 10)),
    "motion_blur": (_motion_blur, ((10, 3), (15, 8), (20, 15))),
    "zoom_blur": (_zoom_blur, ((1.11, 0.01), (1.21, 0.02), (1.31, 0.03))),
    "fog": (_fog, ((1.5, 2.0), (2.5, 1.7), (3.0, 1.4))),
    "brightness": (_brightness, (0.1, 0.3, 0.5)),
    "contrast": (_contrast, (0.4, 0.2, 0.05)),
    "saturate": (_saturate, ((0.3, 0.0), (2.0, 0.0), (20.0, 0.2))),
    "pixelate": (_pixelate, (0.6, 0.4, 0.25)),
    "jpeg_compression": (_jpeg_compression, (25, 15, 7)),
}
"""Name → the function, and its parameter at each of `SEVERITIES`."""
