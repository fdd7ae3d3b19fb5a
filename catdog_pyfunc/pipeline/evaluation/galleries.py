"""Pictures to look at: each photo beside its heat map, with truth, answer and confidence."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageOps

from catdog_pyfunc.classifier import Prediction
from catdog_pyfunc.errors import InvalidImage
from catdog_pyfunc.images import decode_payload
from catdog_pyfunc.pipeline.evaluation.evaluation import LabelledImage
from catdog_pyfunc.pipeline.evaluation.plots import RIGHT, WRONG
from catdog_pyfunc.pipeline.evaluation.predictors import Predictor
from catdog_pyfunc.preprocessing import DEFAULT_LIMITS, decode

MOST = 12
_COLUMNS = 4
_WITH_HEAT, _ALONE = 168, 232  # side of a photo, pixels
_GAP, _MARGIN, _CAPTION, _HEADER = 4, 18, 40, 54  # pixels
_DPI = 100


def gallery(pairs: Sequence[tuple[LabelledImage, Prediction]], predict: Predictor, title: str, empty: str) -> Figure:
    """Show the first pictures.

    Args:
        pairs: Pictures and what the model answered; at most 12 are shown.
        ask: The model, asked again for the heat maps of these; one that has none shows the photos alone.
        title: Stands above, with how many of how many.
        empty: Stands there if there are none.

    Returns:
        One axes a picture.
    """
    shown = list(pairs[:MOST])
    contents = [photo.read() for photo, _ in shown]
    answers = predict(contents, True) if shown else []
    side = _WITH_HEAT if any(answer.heatmap for answer in answers) else _ALONE
    width = 2 * side + _GAP if side == _WITH_HEAT else side
    columns, rows = min(_COLUMNS, max(2, len(shown))), -(-len(shown) // _COLUMNS)
    across, down = _MARGIN + columns * (width + _MARGIN), _HEADER + rows * (side + _CAPTION + _MARGIN)
    figure = Figure(figsize=(across / _DPI, down / _DPI), dpi=_DPI)
    for place, ((photo, prediction), content, answer) in enumerate(zip(shown, contents, answers, strict=True)):
        left = _MARGIN + place % columns * (width + _MARGIN)
        bottom = down - _HEADER - side - place // columns * (side + _CAPTION + _MARGIN)
        axes = figure.add_axes((left / across, bottom / down, width / across, side / down))
        axes.axis("off")
        axes.imshow(_tile(content, answer.heatmap, side, width), interpolation="none", aspect="auto")
        if prediction.error:
            reason = textwrap.shorten(prediction.error, 130, placeholder=" …")
            axes.text(width / 2, side / 2, textwrap.fill(reason, width // 8), fontsize=8, ha="center", va="center")
        _caption(figure, left / across, (left + width) / across, bottom, down, photo, prediction)
    text = f"{title} ({len(shown)} of {len(pairs)})" if shown else empty
    figure.text(_MARGIN / across, 1 - 18 / down, text, fontsize=12, weight="bold", va="top")
    return figure


def small_png(figure: Figure) -> Image.Image:
    """Draw a gallery in 256 colours: a third of the bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    drawn = Image.open(buffer).convert("RGB")
    palette = drawn.quantize(255)
    palette.putpalette([*(palette.getpalette() or [])[: 3 * 255], 255, 255, 255])
    places = np.array(drawn.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG))
    places[(np.asarray(drawn) == 255).all(axis=2)] = 255  # white as paper: Pillow takes what is near to it
    small = Image.fromarray(places)
    small.putpalette(palette.getpalette() or [])
    return small


def _caption(
    figure: Figure, left: float, right: float, bottom: int, down: int, photo: LabelledImage, answer: Prediction
) -> None:
    first, second = (bottom - 16) / down, (bottom - 31) / down  # baselines
    colour = RIGHT if answer.label == photo.label else WRONG
    said = "unreadable" if answer.confidence is None else f"{_short(answer.label or '', 18)} {answer.confidence:.3f}"
    if answer.in_domain is False:
        said += ", rejected"
    figure.text(left, first, f"is {_short(photo.label, 18)}", fontsize=9.5)
    figure.text(right, first, said, fontsize=9.5, ha="right", color=colour, weight="bold")
    figure.text(left, second, _short(photo.name, 36), fontsize=7.5, color="#777777")


def _tile(content: object, heat: bytes | None, side: int, width: int) -> Image.Image:
    tile = Image.new("RGB", (width, side), "white")
    try:
        picture = decode(decode_payload(content), DEFAULT_LIMITS, least_side=side)
    except InvalidImage:
        return Image.new("RGB", (width, side), "#eeeeee")
    tile.paste(ImageOps.pad(picture, (side, side), Image.Resampling.LANCZOS, color="#eeeeee"))
    if heat:
        with Image.open(io.BytesIO(heat)) as laid_over:
            tile.paste(laid_over.convert("RGB").resize((side, side), Image.Resampling.LANCZOS), (side + _GAP, 0))
    return tile


def _short(text: str, most: int) -> str:
    """Cut in the middle: a file's name is told apart by its end."""
    return text if len(text) <= most else f"{text[: most // 2 - 1]}…{text[-(most - most // 2) :]}"
