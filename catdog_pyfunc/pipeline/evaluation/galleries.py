"""Galleries: images beside their heat maps, with label, prediction and confidence."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageOps

from catdog_pyfunc.classifier import Prediction
from catdog_pyfunc.errors import InvalidImage, ModelFailed
from catdog_pyfunc.images import decode_payload
from catdog_pyfunc.pipeline.evaluation.evaluation import LabelledImage, Result
from catdog_pyfunc.pipeline.evaluation.plots import CORRECT, WRONG
from catdog_pyfunc.pipeline.evaluation.predictors import Predictor
from catdog_pyfunc.preprocessing import DEFAULT_LIMITS, decode

MAX_SHOWN = 12
_COLUMNS = 4
_SIDE, _SIDE_WITHOUT_HEATMAP = 168, 232  # of an image, pixels
_GAP, _MARGIN, _CAPTION, _HEADER = 4, 18, 40, 54  # pixels
_DPI = 100
_BACKGROUND, _GREY = "#eeeeee", "#777777"


def gallery(results: Sequence[Result], predict: Predictor, title: str, empty: str) -> Figure:
    """Draw the first images of a list.

    Args:
        results: Images and their predictions; at most 12 are drawn.
        predict: The model, called again for the heat maps of these images; if it returns none, the images stand alone.
        title: Title, completed by how many of how many images are shown.
        empty: Title if there are no images.

    Returns:
        A figure with one axes per image.

    Raises:
        ModelFailed: The model fails on these images, or returns a heat map that is not an image.
    """
    shown = results[:MAX_SHOWN]
    contents = [image.read() for image, _ in shown]
    heatmaps = [explained.heatmap for explained in predict(contents, True)] if shown else []
    side = _SIDE if any(heatmaps) else _SIDE_WITHOUT_HEATMAP
    tile_width = 2 * side + _GAP if any(heatmaps) else side
    columns, rows = min(_COLUMNS, max(2, len(shown))), -(-len(shown) // _COLUMNS)
    width, height = _MARGIN + columns * (tile_width + _MARGIN), _HEADER + rows * (side + _CAPTION + _MARGIN)
    figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI)
    for place, ((image, prediction), content, heatmap) in enumerate(zip(shown, contents, heatmaps, strict=True)):
        left = _MARGIN + place % columns * (tile_width + _MARGIN)
        bottom = height - _HEADER - side - place // columns * (side + _CAPTION + _MARGIN)
        axes = figure.add_axes((left / width, bottom / height, tile_width / width, side / height))
        axes.axis("off")
        axes.imshow(_with_heatmap(content, heatmap, side, tile_width), interpolation="none", aspect="auto")
        if prediction.error:
            reason = textwrap.shorten(prediction.error, 130, placeholder=" …")
            axes.text(tile_width / 2, side / 2, textwrap.fill(reason, tile_width // 8), fontsize=8, ha="center", va="center")
        _caption(figure, left / width, (left + tile_width) / width, bottom, height, image, prediction)
    text = f"{title} ({len(shown)} of {len(results)})" if shown else empty
    figure.text(_MARGIN / width, 1 - 18 / height, text, fontsize=12, weight="bold", va="top")
    return figure


def small_png(figure: Figure) -> Image.Image:
    """Render a gallery in 256 colours, which takes a third of the bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    rendered = Image.open(buffer).convert("RGB")
    palette = rendered.quantize(255)
    palette.putpalette([*(palette.getpalette() or [])[: 3 * 255], 255, 255, 255])
    indices = np.array(rendered.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG))
    indices[(np.asarray(rendered) == 255).all(axis=2)] = 255  # white stays white: Pillow takes the nearest colour
    small = Image.fromarray(indices)
    small.putpalette(palette.getpalette() or [])
    return small


def _with_heatmap(content: object, heatmap: bytes | None, side: int, width: int) -> Image.Image:
    """An image, and to its right the heat map, if there is one."""
    drawn = Image.new("RGB", (width, side), "white" if heatmap else _BACKGROUND)
    drawn.paste(tile(content, side))
    if heatmap:
        try:
            overlay = decode(heatmap, DEFAULT_LIMITS)
        except InvalidImage as invalid:
            raise ModelFailed(f"the model returned a heatmap that {invalid}") from None
        drawn.paste(overlay.resize((side, side), Image.Resampling.LANCZOS), (side + _GAP, 0))
    return drawn


def _caption(
    figure: Figure, left: float, right: float, bottom: int, height: int, image: LabelledImage, prediction: Prediction
) -> None:
    first, second = (bottom - 16) / height, (bottom - 31) / height  # baselines
    colour = CORRECT if prediction.label == image.label else WRONG if image.label else _GREY
    predicted = "unreadable"
    if prediction.label is not None:
        predicted = f"{shortened(prediction.label, 18)} {prediction.confidence:.3f}"
    if prediction.in_domain is False:
        predicted += ", rejected"
    if image.label:
        figure.text(left, first, f"label: {shortened(image.label, 18)}", fontsize=9.5)
    figure.text(right, first, predicted, fontsize=9.5, ha="right", color=colour, weight="bold")
    figure.text(left, second, shortened(image.name, 36), fontsize=7.5, color=_GREY)


def tile(content: object, side: int) -> Image.Image:
    """Fit an image, from one cell of a request, into a square; a corrupt one is grey."""
    try:
        image = decode(decode_payload(content), DEFAULT_LIMITS, least_side=side)
    except InvalidImage:
        return Image.new("RGB", (side, side), _BACKGROUND)
    return ImageOps.pad(image, (side, side), Image.Resampling.LANCZOS, color=_BACKGROUND)


def shortened(text: str, limit: int) -> str:
    """Cut in the middle, as the end tells files apart."""
    return text if len(text) <= limit else f"{text[: limit // 2 - 1]}…{text[-(limit - limit // 2) :]}"
