"""Plots and galleries: drawn for whatever an evaluation may hold, and showing what they should."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import pytest
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image
from sklearn.metrics import auc

from catdog_pyfunc.classifier import Prediction
from catdog_pyfunc.errors import ModelFailed
from catdog_pyfunc.pipeline.evaluation import plots
from catdog_pyfunc.pipeline.evaluation.evaluation import Evaluation, LabelledImage, evaluate
from catdog_pyfunc.pipeline.evaluation.galleries import MAX_SHOWN, gallery, small_png

PLOTS = (plots.confusion_matrix, plots.roc, plots.reliability, plots.confidence)
CORRUPT = Prediction(error="is a corrupt image; send an undamaged file")


def evaluated(classes: Sequence[str], sure: float, corrupt: int = 0, n: int = 60) -> Evaluation:
    rng = np.random.default_rng(0)
    labels = [classes[k % len(classes)] for k in range(n)]
    predictions = []
    for number, label in enumerate(labels):
        row = rng.dirichlet(np.ones(len(classes))) * (1 - sure)
        row[classes.index(label)] += sure
        best = int(row.argmax())
        prediction = Prediction(classes[best], float(row[best]), dict(zip(classes, row.tolist(), strict=True)))
        predictions.append(CORRUPT if number < corrupt else prediction)
    images = [LabelledImage(f"{number}.jpg", label, str(number).encode) for number, label in enumerate(labels)]
    return evaluate(lambda contents, explain: [predictions[int(content)] for content in contents], images, latency=False)


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text)]


def lines(figure: Figure) -> dict[str, np.ndarray]:
    return {str(line.get_label()): line.get_xydata() for line in figure.axes[0].get_lines()}


@pytest.mark.parametrize(
    "evaluation",
    [
        evaluated(("cat", "dog"), 0.3),
        evaluated(("cat", "dog"), 1.0),
        evaluated(("cat", "dog"), 0.5, corrupt=60),
        evaluated(("cat", "dog"), 0.0, n=1),
        evaluated(("ant", "bee", "cow"), 0.2, corrupt=2),
        evaluated([f"a class with a long name, number {k}" for k in range(25)], 0.3, n=100),
    ],
    ids=["two", "perfect", "unreadable", "one", "three", "many"],
)
def test_every_plot_can_be_drawn(evaluation: Evaluation):
    for plot in PLOTS:
        buffer = io.BytesIO()
        plot(evaluation).savefig(buffer, format="png")
        rendered = Image.open(buffer)
        assert min(rendered.size) > 300
        assert len(rendered.convert("L").getcolors()) > 10


@pytest.mark.parametrize("plot", PLOTS)
def test_a_metric_that_is_not_known_is_not_printed(plot: object):
    evaluation = evaluated(("cat", "dog"), 0.5, corrupt=60).restricted_to({"cat"})
    assert not any("nan" in text for text in texts(plot(evaluation)))  # type: ignore[operator]


def test_the_confusion_matrix_has_a_row_per_label_and_a_column_per_prediction():
    evaluation = evaluated(("ant", "bee", "cow"), 0.2, corrupt=2)
    figure = plots.confusion_matrix(evaluation)
    axes, bar = figure.axes
    assert (axes.get_ylabel(), axes.get_xlabel(), bar.get_ylabel()) == (
        "label",
        "prediction",
        "fraction of the label's images",
    )
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["ant", "bee", "cow"]
    cells = {text.get_position(): (text.get_text(), text.get_color()) for text in axes.texts}
    for (row, column), count in np.ndenumerate(evaluation.confusion):
        fraction = count / evaluation.confusion[row].sum()
        assert cells[column, row] == (f"{count}\n{100 * fraction:.1f} %", "white" if fraction > 0.5 else "black")
    assert f"accuracy {evaluation.accuracy.value:.4f} (95 %: " in axes.get_title()
    assert axes.get_title().endswith("n = 60\nunreadable images, counted as wrong: 2")
    assert "unreadable" not in plots.confusion_matrix(evaluated(("cat", "dog"), 0.3)).axes[0].get_title()


def test_a_confusion_matrix_of_many_classes_has_shades_only():
    assert not plots.confusion_matrix(evaluated([str(k) for k in range(21)], 0.3)).axes[0].texts
    counts = plots.confusion_matrix(evaluated([str(k) for k in range(6)], 0.3)).axes[0].texts
    assert len(counts) == 36
    assert not any("%" in text.get_text() for text in counts)


def test_the_area_under_the_roc_curve_is_the_auroc():
    evaluation = evaluated(("cat", "dog"), 0.3, corrupt=2)
    figure = plots.roc(evaluation)
    curve = lines(figure)["dog"]
    assert set(lines(figure)) == {"dog", "_child0"}  # the diagonal
    assert auc(*curve.T) == pytest.approx(evaluation.estimates["auroc"].value)
    assert curve[0].tolist() == [0, 0]
    assert curve[-1].tolist() == [1, 1]
    assert {"ROC curve, dog vs. cat", "true positive rate", "false positive rate"} <= set(texts(figure))
    assert figure.axes[0].get_title().startswith(f"AUROC {evaluation.estimates['auroc'].value:.4f} (95 %: ")


def test_of_more_classes_each_has_its_roc_curve():
    evaluation = evaluated(("ant", "bee", "cow"), 0.2)
    figure = plots.roc(evaluation)
    curves = [lines(figure)[name] for name in evaluation.classes]
    assert np.mean([auc(*curve.T) for curve in curves]) == pytest.approx(evaluation.estimates["auroc"].value)
    assert "ROC curve, each class vs. the rest" in texts(figure)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["ant", "bee", "cow"]


def test_a_class_without_images_has_no_roc_curve():
    whole = evaluated(("ant", "bee", "cow"), 0.2)
    labels_without_cow = [image for image in whole.images if image.label != "cow"]
    known = dict(zip(whole.images, whole.predictions, strict=True))
    evaluation = evaluate(
        lambda contents, explain: [known[image] for image in labels_without_cow], labels_without_cow, latency=False
    )
    assert evaluation.classes == ("ant", "bee", "cow")
    assert set(lines(plots.roc(evaluation))) == {"ant", "bee", "_child0"}


def test_a_good_roc_curve_has_its_corner_enlarged():
    figure = plots.roc(evaluated(("cat", "dog"), 0.9))
    (corner,) = figure.axes[0].child_axes
    assert (corner.get_xlim(), corner.get_ylim()) == ((0, 0.1), (0.9, 1.002))
    assert len(corner.get_lines()) == 1
    assert plots.roc(evaluated(("cat", "dog"), 0.3)).axes[0].child_axes == []


def test_the_reliability_diagram_shows_accuracy_over_confidence():
    evaluation = evaluated(("cat", "dog"), 0.3)
    figure = plots.reliability(evaluation)
    (points,) = (c for c in figure.axes[0].containers if isinstance(c, ErrorbarContainer))
    bins = evaluation.calibration
    assert points.lines[0].get_xydata().tolist() == np.stack([bins.confidence, bins.accuracy], 1).tolist()
    counts = [text.get_text() for text in figure.axes[0].texts]
    assert counts == [str(count) for count in bins.counts]
    assert lines(figure)["perfect calibration"].tolist() == [[0.5, 0.5], [1, 1]]
    assert figure.axes[0].get_title().startswith("expected calibration error 0.")
    for (bottom, top), accuracy in zip(
        (segment[:, 1] for segment in points.lines[2][0].get_segments()), bins.accuracy, strict=True
    ):
        assert bottom <= accuracy <= top
        assert bottom < top


def test_the_histogram_counts_correct_and_wrong_predictions():
    evaluation = evaluated(("cat", "dog"), 0.3, corrupt=2)
    figure = plots.confidence(evaluation)
    wrong = len(evaluation.mistakes) - 2
    legend = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert legend == [f"correct ({58 - wrong})", f"wrong ({wrong})"]
    heights = [sum(bar.get_height() for bar in bars) for bars in figure.axes[0].containers]
    assert heights == [58 - wrong, wrong]
    assert figure.axes[0].get_yscale() == "log"
    assert figure.axes[0].get_title().startswith(f"log-loss {evaluation.estimates['log_loss'].value:.4f}")


def test_an_axis_of_confidence_begins_at_the_lowest_found():
    unlikely = Prediction("cat", 0.25)
    evaluation = evaluate(lambda contents, explain: [unlikely], [LabelledImage("a", "cat", bytes)], latency=False)
    assert plots.reliability(evaluation).axes[0].get_xlim()[0] == pytest.approx(0.18)


def png(colour: str, size: tuple[int, int] = (96, 96)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


GREEN, RED = png("#00ff00", (80, 60)), png("#ff0000")


def results(count: int, label: str = "cat", content: bytes = GREEN) -> list[tuple[LabelledImage, Prediction]]:
    return [(LabelledImage(f"cat/{k}.jpg", label, lambda: content), Prediction("dog", 0.9)) for k in range(count)]


def explaining(heatmap: bytes | None, calls: list[int] | None = None):
    def predict(contents: Sequence[bytes], explain: bool) -> list[Prediction]:
        assert explain
        if calls is not None:
            calls.append(len(contents))
        return [Prediction("dog", 0.9, heatmap=heatmap)] * len(contents)

    return predict


def pixels(figure: Figure, colour: tuple[int, int, int]) -> int:
    rendered = np.asarray(small_png(figure).convert("RGB")).astype(int)
    return int((np.abs(rendered - colour).max(axis=2) < 15).sum())


@pytest.mark.parametrize(("given", "shown"), [(0, 0), (1, 1), (5, 5), (30, MAX_SHOWN)])
def test_a_gallery_has_a_tile_per_image_and_requests_no_other_heat_maps(given: int, shown: int):
    calls: list[int] = []
    figure = gallery(results(given), explaining(RED, calls), "Worst mistakes", "No mistakes")
    assert len(figure.axes) == shown
    assert calls == ([shown] if shown else [])
    found = texts(figure)
    assert (f"Worst mistakes ({shown} of {given})" if shown else "No mistakes") in found
    assert found.count("dog 0.900") == found.count("label: cat") == shown
    assert found.count("cat/0.jpg") == min(shown, 1)


def test_tiles_do_not_overlap_and_lie_in_the_figure():
    figure = gallery(results(9), explaining(RED), "Worst mistakes", "")
    boxes = [axes.get_position() for axes in figure.axes]
    assert len({round(box.x0, 6) for box in boxes}) == 4
    assert len({round(box.y0, 6) for box in boxes}) == 3
    for number, box in enumerate(boxes):
        assert 0 < box.x0 < box.x1 < 1
        assert 0 < box.y0 < box.y1 < 1
        assert not any(box.overlaps(other) for other in boxes[:number])


def test_heat_maps_stand_beside_the_images():
    figure = gallery(results(2), explaining(RED), "Worst mistakes", "")
    assert pixels(figure, (255, 0, 0)) == pytest.approx(2 * 168 * 168, rel=0.05)
    assert pixels(figure, (0, 255, 0)) == pytest.approx(2 * 168 * 168 * 60 / 80, rel=0.05)


def test_without_heat_maps_the_images_are_larger():
    figure = gallery(results(2), explaining(None), "Worst mistakes", "")
    assert pixels(figure, (255, 0, 0)) == 0
    assert pixels(figure, (0, 255, 0)) == pytest.approx(2 * 232 * 232 * 60 / 80, rel=0.05)


def test_a_heat_map_that_is_no_image_is_the_models_failure():
    with pytest.raises(ModelFailed, match="the model returned a heatmap that is "):
        gallery(results(1), explaining(b"no image"), "Worst mistakes", "")


def test_a_gallery_of_photos_is_small_on_a_white_background():
    rng = np.random.default_rng(0)
    noise = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (60, 80, 3), np.uint8)).resize((400, 300), Image.Resampling.BICUBIC).save(
        noise, "JPEG"
    )
    rendered = small_png(gallery(results(MAX_SHOWN, content=noise.getvalue()), explaining(RED), "Worst mistakes", ""))
    buffer = io.BytesIO()
    rendered.save(buffer, "PNG")
    assert len(buffer.getvalue()) < 600_000
    assert rendered.convert("RGB").getpixel((2, 2)) == (255, 255, 255)


def test_an_unreadable_image_says_why():
    corrupt = LabelledImage("cat/corrupt.jpg", "cat", lambda: b"%PDF-1.7"), Prediction(error="is no image; send JPEG")
    found = texts(gallery([corrupt], explaining(None), "Worst mistakes", ""))
    assert {"is no image; send JPEG", "unreadable", "label: cat"} <= set(found)


@pytest.mark.parametrize(
    ("label", "in_domain", "caption", "colour"),
    [
        ("cat", True, "cat 0.600", plots.CORRECT),
        ("dog", None, "cat 0.600", plots.WRONG),
        ("cat", False, "cat 0.600, rejected", plots.CORRECT),
    ],
)
def test_correct_wrong_and_rejected_predictions_are_told_apart(
    label: str, in_domain: bool | None, caption: str, colour: str
):
    result = LabelledImage("a.jpg", label, lambda: GREEN), Prediction("cat", 0.6, in_domain=in_domain)
    figure = gallery([result], explaining(None), "Least confident predictions", "")
    (found,) = (text for text in figure.findobj(Text) if text.get_text().startswith("cat "))
    assert (found.get_text(), found.get_color()) == (caption, colour)


def test_long_names_are_cut_in_the_middle():
    result = LabelledImage("a" * 40 + ".jpg", "b" * 30, lambda: GREEN), Prediction("c" * 17 + "de", 0.6)
    found = texts(gallery([result], explaining(None), "Worst mistakes", ""))
    assert {
        "a" * 17 + "…" + "a" * 14 + ".jpg",
        "label: " + "b" * 8 + "…" + "b" * 9,
        "c" * 8 + "…" + "c" * 7 + "de 0.600",
    } <= set(found)
