"""What is measured on the pixels: brightness, blur, size and shape, and the descriptor that finds turned copies."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import PIL.Image
from scipy.ndimage import uniform_filter1d

from catdog_pyfunc.cpu import available_cores
from catdog_pyfunc.pipeline.auditing.findings import Finding, Image
from catdog_pyfunc.pipeline.console import progress
from catdog_pyfunc.pipeline.training.near_duplicates import descriptor
from catdog_pyfunc.preprocessing import Floats, Preprocess, preprocess

# Of 2,000 photos of Kaggle's Dogs vs. Cats the darkest has 0.43, the brightest 0.60, the most blurred 0.56.
_DARK, _BRIGHT, _BLURRED = 0.3, 0.7, 0.6
_ODD_SHAPE = 3.0  # longer side / shorter side: the network sees less than a third of the image
_BLUR_WINDOW = 11  # pixels, as in the paper


@dataclass(frozen=True)
class Quality:
    """Measures of one image.

    Attributes:
        width: Pixels.
        height: Pixels.
        brightest: Brightness, 0 to 1, that 1 % of the pixels exceed.
        darkest: Brightness that 5 % of the pixels do not reach.
        blur: See `blur`.
        descriptor: See `near_duplicates.descriptor`.
    """

    width: int
    height: int
    brightest: float
    darkest: float
    blur: float
    descriptor: Floats


def measure(images: Sequence[Image], spec: Preprocess) -> list[Quality]:
    """Decode and measure intact images on all cores.

    Args:
        images: The images.
        spec: How the network sees them, which is how brightness and blur are measured.

    Returns:
        One `Quality` per image.
    """
    with ThreadPoolExecutor(available_cores()) as pool:
        measured = pool.map(lambda image: _measure(image, spec), images)
        return list(progress(measured, "measuring images", len(images)))


def judge(image: Image, quality: Quality, spec: Preprocess) -> Iterator[Finding]:
    """Find what is wrong with one image.

    Args:
        image: The image.
        quality: Its measures.
        spec: How the network sees it.

    Yields:
        A finding for each measure beyond its limit.
    """
    shorter, longer = sorted((quality.width, quality.height))
    size = f"{quality.width}x{quality.height} pixels"
    if quality.brightest < _DARK:
        yield Finding(image, "dark", 1 - quality.brightest, f"99 % of the pixels are darker than {quality.brightest:.0%}")
    if quality.darkest > _BRIGHT:
        yield Finding(image, "bright", quality.darkest, f"95 % of the pixels are brighter than {quality.darkest:.0%}")
    if quality.blur > _BLURRED:
        yield Finding(image, "blurred", quality.blur, f"blur {quality.blur:.2f} of 1")
    if 2 * shorter < spec.size:
        yield Finding(image, "tiny", 1 - shorter / spec.size, f"{size}; the network sees {spec.size}x{spec.size}")
    if longer > _ODD_SHAPE * shorter:
        yield Finding(image, "odd_shape", 1 - shorter / longer, f"{size}; the network sees the square in the middle")


def blur(gray: Floats) -> float:
    """Measure blur without a reference: how little of an image's local variation goes when it is blurred once more.

    Crété et al., "The blur effect: perception and estimation with a new no-reference perceptual blur metric", SPIE 2007.

    Args:
        gray: (H, W)

    Returns:
        0 (sharp) to 1 (nothing but blur).
    """
    return max(_blur_along(gray, axis) for axis in (0, 1))


def _blur_along(gray: Floats, axis: int) -> float:
    blurred = uniform_filter1d(gray, _BLUR_WINDOW, axis=axis)
    variation, left = (np.abs(np.diff(one, axis=axis)) for one in (gray, blurred))
    total = float(variation.sum())
    return 1 - float(np.maximum(variation - left, 0).sum()) / total if total else 0.0


def _measure(image: Image, spec: Preprocess) -> Quality:
    content = image.example.path.read_bytes()
    pixels = preprocess(content, spec)
    gray = np.asarray(PIL.Image.fromarray(pixels).convert("L"), np.float32) / np.float32(255)
    darkest, brightest = np.quantile(gray, [0.05, 0.99])
    with PIL.Image.open(io.BytesIO(content)) as opened:
        width, height = opened.size
    return Quality(width, height, float(brightest), float(darkest), blur(gray), descriptor(pixels))
