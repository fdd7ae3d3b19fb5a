"""The synthetic sample dataset: cats and dogs drawn by a seeded generator, so that a first run needs no download.

Pose, size, colour, fur, background, lighting and occlusion have the same distributions for both classes. They differ only
where the animals differ: ears, muzzle, eyes, whiskers, tail.
"""

from __future__ import annotations

import contextlib
import io
import math
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageEnhance, ImageFilter

from catdog_pyfunc.pipeline.console import progress

Colour = tuple[int, int, int]
Point = tuple[float, float]

CLASSES = ("cat", "dog")
SIZE = 160  # side of an image in pixels
_CANVAS = 2 * SIZE  # drawn at twice the size and reduced, for smooth edges
_VERSION = 1  # part of every seed and of the folder's name: increase it when the drawing changes
_SPLIT_SEEDS = {"train": 0, "val": 1, "test": 2}
_FURS: Sequence[Colour] = (
    (226, 168, 96), (120, 84, 58), (60, 56, 58), (236, 228, 214), (160, 160, 168), (196, 130, 70), (92, 66, 48),
    (210, 190, 160),
)  # fmt: skip
_IRISES: Sequence[Colour] = ((120, 170, 60), (200, 150, 40), (70, 130, 190), (96, 60, 30))


class _Pose:
    """Maps the animal's coordinates (head centred at 0 with radius 1, y down) to canvas pixels."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.scale = _CANVAS * rng.uniform(0.18, 0.26)
        self.angle = rng.uniform(-0.35, 0.35)
        self.mirror = -1.0 if rng.random() < 0.5 else 1.0
        self.turn = rng.uniform(-0.25, 0.25)  # sideways offset of the face, in head radii
        self.centre = (_CANVAS * rng.uniform(0.34, 0.66), _CANVAS * rng.uniform(0.32, 0.5))

    def at(self, x: float, y: float) -> Point:
        x *= self.mirror
        c, s = math.cos(self.angle), math.sin(self.angle)
        return self.centre[0] + self.scale * (x * c - y * s), self.centre[1] + self.scale * (x * s + y * c)

    def ellipse(self, x: float, y: float, rx: float, ry: float, tilt: float = 0.0) -> list[Point]:
        c, s = math.cos(tilt), math.sin(tilt)
        turns = (2 * math.pi * k / 40 for k in range(40))
        circle = ((rx * math.cos(t), ry * math.sin(t)) for t in turns)
        return [self.at(x + u * c - v * s, y + u * s + v * c) for u, v in circle]

    def polygon(self, *points: Point) -> list[Point]:
        return [self.at(x, y) for x, y in points]

    def width(self, radii: float) -> int:
        return max(1, round(self.scale * radii))


def _shade(colour: Colour, factor: float) -> Colour:
    red, green, blue = (min(255, max(0, round(channel * factor))) for channel in colour)
    return red, green, blue


def _any_colour(rng: np.random.Generator) -> Colour:
    red, green, blue = rng.integers(20, 236, 3)
    return int(red), int(green), int(blue)


def _background(rng: np.random.Generator) -> Image.Image:
    top, bottom = (np.array(_any_colour(rng), dtype=np.float32) for _ in range(2))
    ramp = np.linspace(0.0, 1.0, _CANVAS, dtype=np.float32)[:, None, None]
    pixels = np.broadcast_to(top * (1 - ramp) + bottom * ramp, (_CANVAS, _CANVAS, 3)).astype(np.uint8)
    canvas = Image.fromarray(pixels)
    draw = ImageDraw.Draw(canvas)
    for _ in range(rng.integers(2, 9)):
        x, y = rng.uniform(0, _CANVAS, 2)
        size = _CANVAS * rng.uniform(0.05, 0.3)
        kind = rng.integers(0, 4)
        colour = _any_colour(rng)
        if kind == 0:
            draw.ellipse((x - size, y - size / 2, x + size, y + size / 2), fill=colour)
        elif kind == 1:
            draw.rectangle((x, y, x + size, y + size * rng.uniform(0.3, 2)), fill=colour)
        elif kind == 2:  # corners as sharp as a cat's ear, so that a triangle does not reveal the class
            draw.polygon([(x, y), (x + size, y), (x + size / 2, y - size * rng.uniform(0.6, 1.4))], fill=colour)
        else:
            draw.line((x, y, *rng.uniform(0, _CANVAS, 2)), fill=colour, width=int(rng.integers(3, 22)))
    return canvas.filter(ImageFilter.BoxBlur(rng.uniform(0, 6)))


def _fur_marks(rng: np.random.Generator, pose: _Pose, draw: ImageDraw.ImageDraw, fur: Colour) -> None:
    """Plain, spotted, patched or striped, with the same probabilities for both classes."""
    mark = _shade(fur, rng.choice([0.6, 0.75, 1.3]))
    kind = rng.integers(0, 4)
    if kind == 1:
        for _ in range(rng.integers(4, 12)):
            x, y = rng.uniform(-0.7, 0.7, 2)
            draw.polygon(pose.ellipse(x, y, 0.1, 0.08), fill=mark)
    elif kind == 2:
        draw.polygon(pose.ellipse(rng.uniform(-0.5, 0.5), -0.3, 0.38, 0.45, rng.uniform(-1, 1)), fill=mark)
    elif kind == 3:
        for x in (-0.3, 0.0, 0.3):
            draw.line([pose.at(x, -0.85), pose.at(x * 0.8, -0.45)], fill=mark, width=pose.width(0.09))


def _body(rng: np.random.Generator, pose: _Pose, draw: ImageDraw.ImageDraw, fur: Colour, tail: float) -> None:
    lean = rng.uniform(-0.5, 0.5)
    side = 1.0 if lean < 0 else -1.0
    root = (lean + side * 0.8, 2.4)
    bend = rng.uniform(0.7, 1.3)
    curve = [(root[0] + side * bend * t, root[1] - 1.9 * t * t * bend) for t in np.linspace(0, 1, 12)]
    draw.line(pose.polygon(*curve), fill=_shade(fur, 0.85), width=pose.width(tail), joint="curve")
    draw.polygon(pose.ellipse(lean, 1.9, rng.uniform(0.8, 1.1), rng.uniform(1.2, 1.5), lean / 3), fill=_shade(fur, 0.9))


def _eyes(rng: np.random.Generator, pose: _Pose, draw: ImageDraw.ImageDraw, pupil: tuple[float, float]) -> None:
    iris = _IRISES[int(rng.integers(len(_IRISES)))]
    size = rng.uniform(0.15, 0.2)
    for x in (-0.4, 0.4):
        x += pose.turn
        draw.polygon(pose.ellipse(x, -0.12, size, size * pupil[1] * 1.25), fill=iris)
        draw.polygon(pose.ellipse(x, -0.12, size * pupil[0], size * pupil[1]), fill=(16, 14, 14))


def _cat(rng: np.random.Generator, pose: _Pose, draw: ImageDraw.ImageDraw, fur: Colour) -> None:
    _body(rng, pose, draw, fur, tail=0.16)
    height, spread = rng.uniform(1.35, 1.7), rng.uniform(0.62, 0.85)
    for side in (-1, 1):
        outer = ((side * 0.18, -0.78), (side * 0.95, -0.35), (side * spread, -height))
        inner = ((side * 0.38, -0.8), (side * 0.8, -0.52), (side * spread * 0.98, -height * 0.86))
        draw.polygon(pose.polygon(*outer), fill=_shade(fur, 0.85))
        draw.polygon(pose.polygon(*inner), fill=(214, 150, 150))
    draw.polygon(pose.ellipse(0, 0, rng.uniform(0.98, 1.1), rng.uniform(0.84, 0.95)), fill=fur)
    _fur_marks(rng, pose, draw, fur)
    _eyes(rng, pose, draw, pupil=(rng.uniform(0.25, 0.5), 0.8))
    x = pose.turn * 1.2
    for side in (-1, 1):
        draw.polygon(pose.ellipse(x + side * 0.16, 0.45, 0.2, 0.15), fill=_shade(fur, 1.2))
    draw.polygon(pose.polygon((x - 0.11, 0.22), (x + 0.11, 0.22), (x, 0.36)), fill=(200, 110, 120))
    if rng.random() < 0.8:
        tone = (245, 245, 245) if sum(fur) < 420 else (50, 50, 50)
        for side in (-1, 1):
            for slope in (-0.12, 0.02, 0.16):
                ends = [pose.at(x + side * 0.28, 0.42), pose.at(x + side * 1.25, 0.42 + slope * 2)]
                draw.line(ends, fill=tone, width=pose.width(0.025))


def _dog(rng: np.random.Generator, pose: _Pose, draw: ImageDraw.ImageDraw, fur: Colour) -> None:
    _body(rng, pose, draw, fur, tail=0.3)
    ear = _shade(fur, rng.choice([0.6, 0.75, 0.9]))
    length, tilt = rng.uniform(0.55, 0.8), rng.uniform(0.1, 0.5)
    pricked = rng.random() < 0.15  # rounded and upright, like a terrier's
    if pricked:
        for side in (-1, 1):
            draw.polygon(pose.ellipse(side * 0.68, -0.85, 0.27, 0.5, side * 0.3), fill=ear)
    draw.polygon(pose.ellipse(0, 0, rng.uniform(0.85, 0.95), rng.uniform(0.95, 1.08)), fill=fur)
    _fur_marks(rng, pose, draw, fur)
    if not pricked:
        for side in (-1, 1):
            draw.polygon(pose.ellipse(side * 0.92, -0.05, 0.3, length, -side * tilt), fill=ear)
    _eyes(rng, pose, draw, pupil=(0.75, 0.8))
    x = pose.turn * 1.5
    if rng.random() < 0.35:
        draw.polygon(pose.ellipse(x + 0.05, 0.98, 0.15, 0.28), fill=(226, 110, 120))
    draw.polygon(pose.ellipse(x, 0.52, rng.uniform(0.42, 0.52), rng.uniform(0.4, 0.5)), fill=_shade(fur, 1.2))
    draw.polygon(pose.ellipse(x, 0.3, 0.22, 0.16), fill=(34, 28, 30))
    draw.line([pose.at(x, 0.44), pose.at(x, 0.7)], fill=(60, 44, 44), width=pose.width(0.04))


def _occlude(rng: np.random.Generator, canvas: Image.Image) -> None:
    """A branch, a fence post or a leaf in front, over a sixth of the image at most."""
    draw = ImageDraw.Draw(canvas)
    x, y = rng.uniform(0.2, 0.8, 2) * _CANVAS
    if rng.random() < 0.5:
        turn = rng.uniform(0, math.pi)
        dx, dy = _CANVAS * math.cos(turn), _CANVAS * math.sin(turn)
        draw.line((x - dx, y - dy, x + dx, y + dy), fill=_any_colour(rng), width=int(rng.integers(8, 34)))
    else:
        rx, ry = rng.uniform(0.05, 0.12, 2) * _CANVAS
        draw.ellipse((x - rx, y - ry, x + rx, y + ry), fill=_any_colour(rng))


def _light(rng: np.random.Generator, canvas: Image.Image) -> Image.Image:
    """Light from one direction, a tint, exposure, contrast, a little blur and sensor noise."""
    turn = rng.uniform(0, 2 * math.pi)
    axis = np.linspace(-0.5, 0.5, SIZE, dtype=np.float32)
    fall = axis[None, :] * math.cos(turn) + axis[:, None] * math.sin(turn)
    tint = rng.uniform(0.88, 1.0, 3)
    shade = 255 * (0.8 + rng.uniform(0, 0.5) * fall)[..., None] * tint
    image = canvas.resize((SIZE, SIZE), Image.Resampling.BOX)
    image = ImageChops.multiply(image, Image.fromarray(np.clip(shade, 0, 255).astype(np.uint8)))
    image = ImageEnhance.Brightness(image).enhance(rng.uniform(0.75, 1.4))
    image = ImageEnhance.Contrast(image).enhance(rng.uniform(0.75, 1.25))
    image = image.filter(ImageFilter.BoxBlur(rng.uniform(0, 0.7)))
    noise = rng.normal(0, rng.uniform(1, 6), (SIZE, SIZE, 3))
    return Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))


def draw(label: str, rng: np.random.Generator) -> bytes:
    """Draw one animal.

    Args:
        label: "cat" or "dog".
        rng: Source of every random choice; the same state gives the same bytes with the same version of Pillow.

    Returns:
        A JPEG of 160x160 pixels.
    """
    animal = {"cat": _cat, "dog": _dog}[label]
    canvas = _background(rng)
    pose = _Pose(rng)
    fur = _shade(_FURS[int(rng.integers(len(_FURS)))], rng.uniform(0.8, 1.15))
    animal(rng, pose, ImageDraw.Draw(canvas), fur)
    if rng.random() < 0.4:
        _occlude(rng, canvas)
    buffer = io.BytesIO()
    _light(rng, canvas).save(buffer, "JPEG", quality=int(rng.integers(70, 95)))
    return buffer.getvalue()


def make(folder: Path, per_class: dict[str, int] | None = None) -> Path:
    """Draw the sample dataset, unless it exists already.

    Args:
        folder: Parent folder. The dataset is a sub-folder named by version and counts, with `train`, `val` and `test` in it.
        per_class: Split → images per class; by default 600, 100 and 200.

    Returns:
        The sub-folder.
    """
    counts = per_class or {"train": 600, "val": 100, "test": 200}
    target = folder / f"v{_VERSION}-{'-'.join(str(counts[split]) for split in _SPLIT_SEEDS)}"
    if target.is_dir():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".sample-", dir=folder))
    try:
        jobs = [(split, label, k) for split in _SPLIT_SEEDS for label in CLASSES for k in range(counts[split])]
        for split, label, k in progress(jobs, "drawing the sample", len(jobs)):
            file = scratch / split / label / f"{label}-{k:04d}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            rng = np.random.default_rng([_VERSION, _SPLIT_SEEDS[split], CLASSES.index(label), k])
            file.write_bytes(draw(label, rng))
        scratch.chmod(0o755)
        with contextlib.suppress(OSError):  # another process has drawn the same images in the meantime
            scratch.rename(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target
