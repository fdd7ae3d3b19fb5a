"""Figures and galleries: drawn for whatever an evaluation may hold, and saying what they show."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from catdog_pyfunc.classifier import Prediction
from catdog_pyfunc.pipeline.evaluation import plots
from catdog_pyfunc.pipeline.evaluation.evaluation import Evaluation, LabelledImage, evaluate
from catdog_pyfunc.pipeline.evaluation.galleries import MOST, gallery, small_png

CHARTS = (plots.confusion_matrix, plots.roc, plots.reliability, plots.confidence)


def evaluated(classes: Sequence[str], sure: float, broken: int = 0, n: int = 60) -> Evaluation:
    rng = np.random.default_rng(0)
    labels = [classes[k % len(classes)] for k in range(n)]
    predictions = []
    for number, label in enumerate(labels):
        row = rng.dirichlet(np.ones(len(classes))) * (1 - sure)
        row[classes.index(label)] += sure
        best = int(row.argmax())
        told = Prediction(classes[best], float(row[best]), dict(zip(classes, row.tolist(), strict=True)))
        predictions.append(Prediction(error="is a broken picture; send an undamaged file") if number < broken else told)
    images = [LabelledImage(f"{number}.jpg", label, str(number).encode) for number, label in enumerate(labels)]
    return evaluate(lambda asked, explain: [predictions[int(content)] for content in asked], images, latency=False)


def texts(figure: Figure) -> str:
    return "\n".join(text.get_text() for text in figure.findobj(Text))


def drawn(figure: Figure) -> Image.Image:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return Image.open(buffer)


@pytest.mark.parametrize(
    "evaluation",
    [
        evaluated(("cat", "dog"), 0.3),
        evaluated(("cat", "dog"), 1.0),
        evaluated(("cat", "dog"), 0.5, broken=60),
        evaluated(("cat", "dog"), 0.0, n=1),
        evaluated(("ant", "bee", "cow"), 0.2, broken=2),
        evaluated([f"a class with a long name, number {k}" for k in range(25)], 0.3, n=100),
    ],
    ids=["two", "perfect", "unreadable", "one", "three", "many"],
)
def test_every_chart_can_be_drawn(evaluation: Evaluation):
    for chart in CHARTS:
        picture = drawn(chart(evaluation))
        assert min(picture.size) > 300
        assert len(picture.convert("L").getcolors()) > 10


def test_charts_say_their_figures():
    evaluation = evaluated(("cat", "dog"), 0.3, broken=2)
    matrix, roc, reliability, confidence = (texts(chart(evaluation)) for chart in CHARTS)
    assert f"accuracy {evaluation.accuracy.value:.4f}" in matrix
    assert "2 could not be read" in matrix
    assert "AUROC" in roc
    assert "dog against cat" in roc
    assert "expected calibration error" in reliability
    assert f"wrong ({len(evaluation.mistakes) - 2})" in confidence


def photographs(count: int, pictures: Sequence[bytes]) -> list[tuple[LabelledImage, Prediction]]:
    def one(number: int) -> tuple[LabelledImage, Prediction]:
        return LabelledImage(f"cat/photo-{number}.jpg", "cat", lambda: pictures[number % len(pictures)]), Prediction(
            "dog", 0.9
        )

    return [one(number) for number in range(count)]


def explaining(heat: bytes | None, asked: list[int]):
    def predict(pictures: Sequence[bytes], explain: bool) -> list[Prediction]:
        asked.append(len(pictures))
        assert explain
        return [Prediction("dog", 0.9, heatmap=heat)] * len(pictures)

    return predict


@pytest.fixture
def heat() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (96, 96), "red").save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(("given", "shown"), [(0, 0), (1, 1), (5, 5), (30, MOST)])
def test_a_gallery_has_a_tile_a_picture_and_asks_for_no_other_heat_map(
    given: int, shown: int, pictures: list[bytes], heat: bytes
):
    asked: list[int] = []
    figure = gallery(photographs(given, pictures), explaining(heat, asked), "The worst", "There are none")
    assert len(figure.axes) == shown
    assert asked == ([shown] if shown else [])
    said = texts(figure)
    assert (f"The worst ({shown} of {given})" if shown else "There are none") in said
    assert said.count("dog 0.900") == shown
    assert said.count("is cat") == shown


def test_heat_maps_stand_beside_the_photos_where_there_are_any(pictures: list[bytes], heat: bytes):
    def reds(figure: Figure) -> int:
        pixels = np.asarray(small_png(figure).convert("RGB")).astype(int)
        return int(((pixels[..., 0] > 240) & (pixels[..., 1] < 15) & (pixels[..., 2] < 15)).sum())

    with_heat = gallery(photographs(2, pictures), explaining(heat, []), "The worst", "")
    assert reds(with_heat) > 2 * 160 * 160
    assert reds(gallery(photographs(2, pictures), explaining(None, []), "The worst", "")) == 0


def test_a_gallery_of_photos_is_small_on_white_paper(heat: bytes):
    rng = np.random.default_rng(0)
    noise = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (60, 80, 3), np.uint8)).resize((400, 300), Image.Resampling.BICUBIC).save(
        noise, "JPEG"
    )
    picture = small_png(gallery(photographs(MOST, [noise.getvalue()]), explaining(heat, []), "The worst", ""))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    assert len(buffer.getvalue()) < 600_000
    assert picture.convert("RGB").getpixel((2, 2)) == (255, 255, 255)


def test_a_picture_that_cannot_be_read_says_why(pictures: list[bytes], heat: bytes):
    broken = LabelledImage("cat/broken.jpg", "cat", lambda: b"%PDF-1.7"), Prediction(error="is no picture; send JPEG")
    figure = gallery([broken], explaining(None, []), "The worst", "")
    assert "is no picture; send JPEG" in texts(figure)
    assert "unreadable" in texts(figure)


def test_right_and_rejected_answers_are_told_apart(pictures: list[bytes]):
    correct = LabelledImage("cat/a.jpg", "cat", lambda: pictures[0]), Prediction("cat", 0.6, in_domain=False)
    figure = gallery([correct], explaining(None, []), "The least sure", "")
    (said,) = (text for text in figure.findobj(Text) if "rejected" in text.get_text())
    assert said.get_text() == "cat 0.600, rejected"
    assert said.get_color() == plots.RIGHT
