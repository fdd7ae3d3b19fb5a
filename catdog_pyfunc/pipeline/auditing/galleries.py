"""One gallery per kind of finding: the most suspected images, with what is suspected and why."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image as PillowImage

from catdog_pyfunc.pipeline.auditing.findings import KINDS, Finding
from catdog_pyfunc.pipeline.evaluation.galleries import MAX_SHOWN, shortened, tile
from catdog_pyfunc.pipeline.evaluation.plots import CORRECT, WRONG

_COLUMNS = 4
_SIDE, _GAP, _MARGIN, _CAPTION, _HEADER, _DPI = 200, 4, 18, 60, 54, 100  # pixels


def gallery(findings: Sequence[Finding], classes: Sequence[str], root: Path) -> Figure:
    """Draw the first findings of one kind; a copy stands left of its original.

    Args:
        findings: At least one, all of the same kind; at most 12 are drawn.
        classes: Class names.
        root: Folder that file names are relative to.

    Returns:
        A figure with one axes per finding.
    """
    shown = findings[:MAX_SHOWN]
    width_of_tile = 2 * _SIDE + _GAP if shown[0].original else _SIDE
    columns = min(_COLUMNS // (2 if shown[0].original else 1), max(2, len(shown)))
    rows = -(-len(shown) // columns)
    width, height = _MARGIN + columns * (width_of_tile + _MARGIN), _HEADER + rows * (_SIDE + _CAPTION + _MARGIN)
    figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI)
    for place, finding in enumerate(shown):
        left = _MARGIN + place % columns * (width_of_tile + _MARGIN)
        bottom = height - _HEADER - _SIDE - place // columns * (_SIDE + _CAPTION + _MARGIN)
        axes = figure.add_axes((left / width, bottom / height, width_of_tile / width, _SIDE / height))
        axes.axis("off")
        axes.imshow(_pair(finding, width_of_tile), interpolation="none", aspect="auto")
        _caption(figure, finding, classes, root, (left, bottom, width_of_tile))
    title = f"{KINDS[shown[0].kind]} ({len(shown)} of {len(findings)})"
    figure.text(_MARGIN / width, 1 - 18 / height, title, fontsize=12, weight="bold", va="top")
    return figure


def _pair(finding: Finding, width: int) -> PillowImage.Image:
    paths = [finding.image.example.path, *([finding.original] if finding.original else [])]
    drawn = PillowImage.new("RGB", (width, _SIDE), "white")
    for place, path in enumerate(paths):
        drawn.paste(tile(path.read_bytes(), _SIDE), (place * (_SIDE + _GAP), 0))
    return drawn


def _caption(figure: Figure, finding: Finding, classes: Sequence[str], root: Path, place: tuple[int, int, int]) -> None:
    left, bottom, width = place
    height = figure.get_figheight() * _DPI

    def text(line: int, content: str, **style: object) -> None:
        figure.text(left / figure.get_figwidth() / _DPI, (bottom - 14 - 13 * line) / height, content, **style)  # type: ignore[arg-type]

    label = f"label: {shortened(classes[finding.image.example.label], 16)}"
    if finding.suggestion:
        label += f", rather {shortened(finding.suggestion, 16)}?"
    text(0, label, fontsize=9, weight="bold", color=WRONG if finding.suggestion else CORRECT)
    text(1, shortened(finding.image.example.path.relative_to(root).as_posix(), width // 6), fontsize=7.5, color="#777777")
    reason = textwrap.wrap(finding.reason, int(width / 5.5))[:2]
    for line, part in enumerate(reason, start=2):
        text(line, part, fontsize=7.5)
