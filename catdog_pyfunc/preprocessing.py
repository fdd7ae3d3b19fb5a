"""A picture's bytes → (size, size, 3) uint8. The one definition, for training and for serving."""

from __future__ import annotations

import contextlib
import io
import struct
import threading
import zlib
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from catdog_pyfunc.errors import InvalidImage, InvalidSetting, first_line
from catdog_pyfunc.images import FORMATS

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

# What Pillow and its codecs raise on broken files, besides OSError.
_DECODING_ERRORS = (
    *(OSError, EOFError, ValueError, TypeError, LookupError, AttributeError, SyntaxError),
    *(ArithmeticError, MemoryError, RuntimeError, struct.error, zlib.error, Image.DecompressionBombError),
)


@dataclass(frozen=True)
class Limits:
    """What is refused before decoding.

    Attributes:
        max_bytes: Largest file, bytes.
        max_pixels: Largest picture, width times height as the header gives them.
    """

    max_bytes: int = 20_000_000
    max_pixels: int = 100_000_000


DEFAULT_LIMITS = Limits()
# A picture this large takes up to 800 MB while it is decoded; so one at a time, and none whose file could hold but a blank.
_LARGE = 25_000_000  # pixels
_MOST_PIXELS_A_BYTE = 200  # a blank baseline JPEG has about 100
_ONE_LARGE_AT_A_TIME = threading.Lock()


@dataclass(frozen=True)
class Preprocess:
    """How pictures are brought to the network; stored with the weights.

    Attributes:
        size: Side of the square that the network sees, pixels.
        resize: What the shorter side is brought to before the centre square is cut, pixels; at least `size`.
        mean: Per channel (R, G, B), of values in 0..1; applied inside the network's graph.
        std: Likewise.
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
        """The fields, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Preprocess:
        """The reverse of `to_dict`."""
        size, resize, interpolation = int(fields["size"]), int(fields["resize"]), str(fields["interpolation"])
        return cls(size, resize, tuple(fields["mean"]), tuple(fields["std"]), interpolation)


def decode(image: bytes, limits: Limits, least_side: int | None = None) -> Image.Image:
    """Decode one picture, upright and in RGB.

    Args:
        image: The file's bytes.
        limits: Checked on the bytes and on the header, before any pixel is decoded.
        least_side: If given, a large picture comes at a whole fraction of its size (a JPEG is even decoded so: libjpeg's
            scaled decoding), with both sides still at least this long.

    Returns:
        An RGB picture: EXIF orientation applied, transparency over white, first frame of an animation.

    Raises:
        InvalidImage: Not a readable picture, or beyond a limit.
    """
    if len(image) > limits.max_bytes:
        raise InvalidImage(f"has {len(image):,} bytes, more than {limits.max_bytes:,}; send a smaller file")
    try:
        with Image.open(io.BytesIO(image), formats=FORMATS) as picture:
            width, height = picture.size
            if width * height > limits.max_pixels:
                raise InvalidImage(f"has {width}x{height} pixels, more than {limits.max_pixels:,}; send a smaller picture")
            large = width * height > _LARGE
            if large and width * height > _MOST_PIXELS_A_BYTE * len(image):
                raise InvalidImage(
                    f"has {width}x{height} pixels in {len(image):,} bytes, as no photo does; send a smaller picture"
                )
            with _ONE_LARGE_AT_A_TIME if large else contextlib.nullcontext():
                return _decoded(picture, least_side)
    except InvalidImage:
        raise
    except UnidentifiedImageError:
        raise InvalidImage(
            f"is not a picture this model reads: starts with {image[:8]!r}; send JPEG, PNG, WebP, GIF, BMP or TIFF"
        ) from None
    except _DECODING_ERRORS as broken:
        raise InvalidImage(f"is a broken picture ({first_line(broken, 120)}); send an undamaged file") from None


def preprocess(image: bytes, spec: Preprocess, limits: Limits = DEFAULT_LIMITS) -> Pixels:
    """Decode one picture exactly as the network saw it in training.

    Args:
        image: The file's bytes.
        spec: Size, crop and resampling filter, as stored with the weights.
        limits: Largest file and picture.

    Returns:
        (size, size, 3) uint8, RGB, upright.

    Raises:
        InvalidImage: Not a readable picture, or beyond a limit.
    """
    picture = decode(image, limits, least_side=spec.resize)
    width, height = picture.size
    # Resizing and cutting in one step: only the square that is kept is ever computed.
    side = min(width, height) * spec.size / spec.resize
    box = ((width - side) / 2, (height - side) / 2, (width + side) / 2, (height + side) / 2)
    resampling = Image.Resampling[spec.interpolation.upper()]
    return np.asarray(picture.resize((spec.size, spec.size), resampling, box=box))


def _decoded(picture: Image.Image, least_side: int | None) -> Image.Image:
    if least_side is not None:
        picture.draft("RGB", (least_side, least_side))
    picture.load()
    ImageOps.exif_transpose(picture, in_place=True)
    picture = _rgb(picture)
    factor = min(picture.size) // least_side if least_side else 1
    return picture.reduce(factor) if factor > 1 else picture


def _rgb(picture: Image.Image) -> Image.Image:
    if picture.mode in ("I;16", "I;16L", "I;16B", "I"):  # 16 bits a pixel: convert() would clip, not scale
        grey = np.asarray(picture).astype(np.float32) / 257.0
        picture = Image.fromarray(np.clip(grey, 0, 255).astype(np.uint8))
    if picture.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    return picture if picture.mode == "RGB" else picture.convert("RGB")
