"""Corruptions, and a model's evaluation under them."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import pytest
from PIL import Image

from catdog_pyfunc.classifier import Prediction
from catdog_pyfunc.errors import InvalidData
from catdog_pyfunc.pipeline.evaluation import plots
from catdog_pyfunc.pipeline.evaluation.corruptions import CORRUPTIONS, NONE, SEVERITIES, corrupt, corrupt_at_random
from catdog_pyfunc.pipeline.evaluation.evaluation import LabelledImage
from catdog_pyfunc.pipeline.evaluation.stress import StressTest, randomly_corrupted, stratified_sample, stress_test

RANDOM = {"gaussian_noise", "shot_noise", "impulse_noise", "motion_blur", "fog"}


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def decoded(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content))).astype(float)


@pytest.fixture(scope="module")
def photo(images: list[bytes]) -> bytes:
    return images[0]


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corruption_is_stronger_from_severity_to_severity_and_always_the_same(name: str, photo: bytes):
    before = decoded(corrupt(photo, NONE, 0))
    after = [corrupt(photo, name, severity) for severity in SEVERITIES]
    assert after == [corrupt(photo, name, severity) for severity in SEVERITIES]
    assert {decoded(content).shape for content in after} == {before.shape} == {(256, 256, 3)}
    differences = [np.abs(decoded(content) - before).mean() for content in after]
    assert differences[0] > 0.5
    if name not in ("fog", "saturate"):  # fog differs in structure; saturate takes colour away at first
        assert differences == sorted(differences)
    assert (corrupt(photo, name, 5, seed=1) != after[2]) == (name in RANDOM)


def test_what_is_random_depends_on_the_image(images: list[bytes]):
    grey = [np.full((8, 8, 3), 128), np.full((8, 8, 3), 128)]
    grey[1][0, 0] = 129
    first, second = (decoded(corrupt(png(pixels), "gaussian_noise", 5)) for pixels in grey)
    assert np.abs(first - second).mean() > 20
    drawn = {corrupt_at_random(images[0], seed) for seed in range(8)}
    assert len(drawn) > 5
    assert corrupt_at_random(images[0], 3) == corrupt_at_random(images[0], 3)


def test_noise_and_blur_are_as_strong_as_they_say():
    grey = png(np.full((256, 256, 3), 128))
    assert decoded(corrupt(grey, "gaussian_noise", 1)).std() == pytest.approx(0.08 * 255, rel=0.02)
    salt_and_pepper = decoded(corrupt(grey, "impulse_noise", 5))
    assert [(salt_and_pepper == level).mean() for level in (0, 255)] == pytest.approx([0.135, 0.135], abs=0.005)
    dot = np.zeros((256, 256, 3))
    dot[100:106, 100:106] = 255
    for name in ("defocus_blur", "motion_blur"):
        blurred = decoded(corrupt(png(dot), name, 3))
        assert blurred.sum() == pytest.approx(dot.sum(), rel=0.03), name  # light is spread, not lost
        assert blurred.max() < 200, name


@pytest.mark.parametrize("size", [(1, 1), (3000, 1), (2, 3000)])
def test_an_image_of_odd_shape_can_be_corrupted(size: tuple[int, int]):
    content = png(np.zeros((size[1], size[0], 3)))
    shapes = {decoded(corrupt(content, name, severity)).shape for name in CORRUPTIONS for severity in SEVERITIES}
    assert len(shapes) == 1
    assert max(next(iter(shapes))) <= 1024


def test_a_file_that_is_no_image_stays_as_it_is():
    assert corrupt(b"no image", "fog", 5) == b"no image" == corrupt_at_random(b"no image")


def grey_images() -> list[LabelledImage]:
    """30 dark dogs and 10 bright cats."""
    levels = [("dog", 40 + k) for k in range(30)] + [("cat", 200 + k) for k in range(10)]
    return [
        LabelledImage(f"{label}/{level}", label, lambda level=level: png(np.full((32, 32), level)))
        for label, level in levels
    ]


def bright_are_cats(contents: Sequence[bytes], explain: bool) -> list[Prediction]:
    """A model that brightness deceives, and that rejects what is colourful."""
    found = []
    for content in contents:
        pixels = decoded(content).reshape(256, 256, -1)
        found.append(
            Prediction("cat" if pixels.mean() > 128 else "dog", 0.9, in_domain=bool(np.ptp(pixels, axis=2).max() < 60))
        )
    return found


def test_a_sample_has_each_class_in_proportion_whatever_the_order():
    images = grey_images()
    drawn = stratified_sample(images, 8)
    assert [image.label for image in drawn] == ["dog"] * 6 + ["cat"] * 2
    assert {image.name for image in stratified_sample(images[::-1], 8)} == {image.name for image in drawn}
    assert stratified_sample(images, 8, seed=1) != drawn
    assert stratified_sample(images, 100) == images


@pytest.fixture(scope="module")
def stressed() -> StressTest:
    return stress_test(bright_are_cats, stratified_sample(grey_images(), 8), ("cat", "dog"), seed=2)


def test_a_stress_test_has_an_evaluation_per_corruption_and_severity(stressed: StressTest):
    assert list(stressed.corrupted) == [(name, severity) for name in CORRUPTIONS for severity in SEVERITIES]
    assert stressed.metrics == ("accuracy", "calibration_error", "accepted")
    assert stressed.baseline.accuracy.value == 1.0
    assert stressed.corrupted["jpeg_compression", 5].accuracy.value == 1.0
    assert stressed.corrupted["brightness", 5].accuracy.value == 0.25  # every dog is bright now
    assert stressed.corrupted["gaussian_noise", 5].estimates["accepted"].value == 0.0
    table = stressed.table().set_index(["corruption", "severity"])
    assert len(table) == 37
    assert table.loc[("none", 0), "accuracy"] == 1.0
    assert table.loc[("brightness", 5), ["accuracy", "n"]].tolist() == [0.25, 8]
    means = stressed.means()
    assert means["accuracy"] == pytest.approx(table["accuracy"][1:].mean())
    assert means["accuracy_brightness"] == pytest.approx(table.loc["brightness", "accuracy"].mean())
    assert {"calibration_error", "accepted"} < set(means)
    assert len(means) == 3 + 12
    assert stressed.accuracy.value == pytest.approx(means["accuracy"])
    assert stressed.accuracy.n == 8  # photos, not versions of them
    assert stressed.accuracy.low < stressed.accuracy.value < stressed.accuracy.high


def test_the_heat_tables_show_every_value(stressed: StressTest):
    figure = plots.stress(stressed)
    assert [axes.get_title() for axes in figure.axes] == ["accuracy", "calibration error", "accepted"]
    assert [tick.get_text() for tick in figure.axes[0].get_yticklabels()][:2] == ["none (n = 8)", "gaussian noise"]
    cells = {text.get_position(): text.get_text() for text in figure.axes[0].texts}
    assert len(cells) == 37
    assert cells[1, 0] == "1.000"
    assert cells[2, 1 + list(CORRUPTIONS).index("brightness")] == "0.250"


def test_a_model_without_a_domain_has_two_heat_tables():
    def always(contents: Sequence[bytes], explain: bool) -> list[Prediction]:
        return [Prediction("cat", 0.9)] * len(contents)

    test = stress_test(always, grey_images()[-2:], ("cat", "dog"))
    assert test.metrics == ("accuracy", "calibration_error")
    assert len(plots.stress(test).axes) == 2


def test_without_readable_images_there_is_no_stress_test():
    with pytest.raises(InvalidData, match="there are no images of cat, dog to evaluate on"):
        stress_test(bright_are_cats, [], ("cat", "dog"))


def test_for_the_gate_each_image_is_corrupted_in_one_way(images: list[bytes]):
    labelled = [LabelledImage(str(k), "cat", lambda content=content: content) for k, content in enumerate(images[:3])]
    contents = [image.read() for image in randomly_corrupted(labelled, seed=5)]
    assert contents == [corrupt_at_random(content, 5) for content in images[:3]]
