"""An image file's bytes → (size, size, 3) uint8: the one definition, for training and for serving."""

from __future__ import annotations

import contextlib
import io
import struct
import threading
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from catdog_pyfunc.errors import InvalidImage, InvalidSetting, first_line
from catdog_pyfunc.images import FORMATS

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

# Everything that Pillow and its codecs raise on corrupt files.
_CODEC_ERRORS = (
    *(OSError, EOFError, ValueError, TypeError, LookupError, AttributeError, SyntaxError),
    *(ArithmeticError, MemoryError, RuntimeError, struct.error, zlib.error, Image.DecompressionBombError),
)


@dataclass(frozen=True)
class Limits:
    """The largest file and image that are decoded; anything larger is rejected before decoding.

    Attributes:
        max_bytes: Size of the file, bytes.
        max_pixels: Width times height, as the file's header states them.
    """

    max_bytes: int = 20_000_000
    max_pixels: int = 100_000_000


DEFAULT_LIMITS = Limits()
# Decoding an image this large takes up to 800 MB of memory: so only one at a time, and none whose file is too small for it.
_LARGE = 25_000_000  # pixels
_MAX_PIXELS_PER_BYTE = 200  # a blank baseline JPEG has about 100
_ONE_LARGE_AT_A_TIME = threading.Lock()


@dataclass(frozen=True)
class Preprocess:
    """How an image is turned into the network's input; stored with the weights.

    Attributes:
        size: Side of the square that the network sees, pixels.
        resize: Length of the shorter side after resizing, before the centre square is cropped, pixels; at least `size`.
        mean: Mean of each channel (R, G, B) for values in 0..1; subtracted inside the network's graph.
        std: Standard deviation of each channel, for the same values; also applied inside the graph.
        interpolation: Resampling filter, by Pillow's name in lower case: "bilinear", "bicubic", "nearest", …
    """

    size: int = 224
    resize: int = 256
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        names = [filter_.name.lower() for filter_ in Image.Resampling]
        if self.interpolation not in names:
            raise InvalidSetting(f"interpolation is {self.interpolation!r}; give one of {', '.join(names)}")

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Preprocess:
        """Restore what `to_dict` returned."""
        size, resize, interpolation = int(fields["size"]), int(fields["resize"]), str(fields["interpolation"])
        return cls(size, resize, tuple(fields["mean"]), tuple(fields["std"]), interpolation)


def decode(image: bytes, limits: Limits, least_side: int | None = None) -> Image.Image:
    """Decode one image, upright and in RGB.

    Args:
        image: The file's bytes.
        limits: Checked against the bytes and the header, before any pixel is decoded.
        least_side: If given, a large image is reduced by a whole factor, with both sides still at least this long, pixels. A
            JPEG is even decoded at a reduced size (libjpeg's scaled decoding).

    Returns:
        An RGB image: EXIF orientation applied, transparency over white, first frame of an animation.

    Raises:
        InvalidImage: Not a readable image, or beyond a limit.
    """
    if len(image) > limits.max_bytes:
        raise InvalidImage(f"has {len(image):,} bytes, more than {limits.max_bytes:,}; send a smaller file")
    with _codec_errors_as_invalid(image):
        opened = Image.open(io.BytesIO(image), formats=FORMATS)
    with opened, _memory_for(opened.size, len(image), limits):
        with _codec_errors_as_invalid(image):
            if least_side is not None:
                opened.draft("RGB", (least_side, least_side))
            opened.load()
            ImageOps.exif_transpose(opened, in_place=True)
        rgb = _to_rgb(opened, image)
        factor = min(rgb.size) // least_side if least_side else 1
        return rgb.reduce(factor) if factor > 1 else rgb


def preprocess(image: bytes, spec: Preprocess, limits: Limits = DEFAULT_LIMITS) -> Pixels:
    """Decode one image exactly as the network saw it in training.

    Args:
        image: The file's bytes.
        spec: Size, crop and resampling filter, as stored with the weights.
        limits: Largest file and image.

    Returns:
        (size, size, 3) uint8, RGB, upright.

    Raises:
        InvalidImage: Not a readable image, or beyond a limit.
    """
    decoded = decode(image, limits, least_side=spec.resize)
    width, height = decoded.size
    # Resizing and cropping in one step computes only the square that is kept.
    side = min(width, height) * spec.size / spec.resize
    box = ((width - side) / 2, (height - side) / 2, (width + side) / 2, (height + side) / 2)
    resampling = Image.Resampling[spec.interpolation.upper()]
    return np.asarray(decoded.resize((spec.size, spec.size), resampling, box=box))


@contextlib.contextmanager
def _codec_errors_as_invalid(image: bytes) -> Iterator[None]:
    """Turn what Pillow raises on a corrupt file into `InvalidImage`.

    Only calls into Pillow belong inside: an exception from this project's own code is a bug, not a corrupt image.
    """
    try:
        yield
    except UnidentifiedImageError:
        raise InvalidImage(
            f"is not an image this model reads: starts with {image[:8]!r}; send JPEG, PNG, WebP, GIF, BMP or TIFF"
        ) from None
    except _CODEC_ERRORS as error:
        raise InvalidImage(f"is corrupt ({first_line(error, 120)}); send an undamaged file") from None


def _memory_for(size: tuple[int, int], file_bytes: int, limits: Limits) -> contextlib.AbstractContextManager[object]:
    """Check an image's size against the limits; the context in which it may be decoded."""
    width, height = size
    pixels = width * height
    if pixels > limits.max_pixels:
        raise InvalidImage(f"has {width}x{height} pixels, more than {limits.max_pixels:,}; send a smaller image")
    if pixels <= _LARGE:
        return contextlib.nullcontext()
    if pixels > _MAX_PIXELS_PER_BYTE * file_bytes:
        raise InvalidImage(
            f"has {width}x{height} pixels in {file_bytes:,} bytes, far too few for a photo; send a smaller image"
        )
    return _ONE_LARGE_AT_A_TIME


def _to_rgb(decoded: Image.Image, image: bytes) -> Image.Image:
    if decoded.mode in ("I;16", "I;16L", "I;16B", "I"):  # 16 bits per pixel, which Pillow would clip instead of scale
        gray = np.asarray(decoded).astype(np.float32) / 257.0
        return Image.fromarray(np.clip(gray, 0, 255).astype(np.uint8)).convert("RGB")
    with _codec_errors_as_invalid(image):  # a palette or its transparency may be corrupt, too
        if decoded.mode in ("RGBA", "LA", "PA") or "transparency" in decoded.info:
            rgba = decoded.convert("RGBA")
            return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
        return decoded if decoded.mode == "RGB" else decoded.convert("RGB")
