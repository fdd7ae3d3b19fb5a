"""Images → predictions: temperature, OOD threshold, order, errors, heat maps, and how calls share the cores."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from catdog_pyfunc import classifier as classifier_module
from catdog_pyfunc.bundle import Bundle
from catdog_pyfunc.cam import heatmap
from catdog_pyfunc.classifier import Classifier, Prediction, softmax
from catdog_pyfunc.engine import Outputs
from catdog_pyfunc.preprocessing import Limits
from tests.unit.conftest import DESCRIPTION

LOGITS = np.array([2.0, 0.5, -1.0], np.float32)


class FakeEngine:
    """Adds each image's brightness (0..255) to the second logit; remembers how it was called."""

    def __init__(self, similarity: float = 0.5, batch_size: int = 1) -> None:
        self.similarity, self.batch_size = similarity, batch_size
        self.calls: list[tuple[int, bool]] = []
        self.before_return: Callable[[], None] = lambda: None

    def run(self, images: np.ndarray, *, exclusive: bool = False) -> Outputs:
        self.calls.append((len(images), exclusive))
        self.before_return()
        logits = np.tile(LOGITS, (len(images), 1))
        logits[:, 1] += images.mean((1, 2, 3)) / 100
        class_maps = np.zeros((len(images), 3, 2, 2), np.float32)
        class_maps[:, :, 0, 0] = [1, 2, 3]
        similarity = np.full(len(images), self.similarity, np.float32)
        return Outputs(logits, np.zeros((len(images), 4), np.float32), class_maps, similarity)


def gray(brightness: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (80, 80), brightness).save(buffer, "PNG")
    return buffer.getvalue()


BLACK = gray(0)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """The arguments that `open_engine` was called with."""
    return {}


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch, opened: dict[str, object]) -> Callable[..., Classifier]:
    def make(fake: FakeEngine, temperature: float = 1.0, ood_threshold: float = -1.0, **options: object) -> Classifier:
        def open_engine(bundle: Bundle, name: str, threads: int) -> FakeEngine:
            opened.update(bundle=bundle, name=name, threads=threads)
            return fake

        monkeypatch.setattr(classifier_module, "open_engine", open_engine)
        description = replace(DESCRIPTION, temperature=temperature, ood_threshold=ood_threshold)
        return Classifier(Bundle(Path("bundle"), description, "digest"), **options)  # type: ignore[arg-type]

    return make


def test_probabilities_are_the_softmax_of_the_logits_over_the_temperature(make):
    for temperature in (1.0, 2.5):
        (prediction,) = make(FakeEngine(), temperature=temperature).predict([BLACK])
        expected = np.exp(LOGITS / temperature) / np.exp(LOGITS / temperature).sum()
        assert list(prediction.probabilities) == ["cat", "dog", "owl"]
        assert list(prediction.probabilities.values()) == pytest.approx(list(expected))
        assert (prediction.label, prediction.confidence) == ("cat", prediction.probabilities["cat"])


def test_a_higher_temperature_lowers_the_confidence(make):
    cold, hot = (make(FakeEngine(), temperature=temperature).predict([BLACK])[0] for temperature in (1.0, 3.0))
    assert hot.confidence < cold.confidence - 0.2


@pytest.mark.parametrize(("similarity", "in_domain"), [(0.24, False), (0.25, True), (0.26, True)])
def test_an_image_is_in_domain_if_its_similarity_reaches_the_ood_threshold(make, similarity: float, in_domain: bool):
    (prediction,) = make(FakeEngine(similarity), ood_threshold=0.25).predict([BLACK])
    assert prediction.in_domain is in_domain
    assert prediction.domain_score == pytest.approx(similarity)


def test_predictions_come_in_the_order_of_the_images(make):
    brightness = [0, 250, 10, 200, 255, 5]
    for batch_size in (1, 4):
        predictions = make(FakeEngine(batch_size=batch_size)).predict([gray(level) for level in brightness])
        assert np.argsort([p.probabilities["dog"] for p in predictions]).tolist() == np.argsort(brightness).tolist()
        assert [p.label for p in predictions] == ["cat" if level < 150 else "dog" for level in brightness]


def test_a_corrupt_image_is_an_error_and_the_others_are_predicted(make):
    for batch_size in (1, 3):
        first, bad, last = make(FakeEngine(batch_size=batch_size)).predict([gray(0), b"\xff\xd8\xff no", gray(255)])
        assert (first.label, last.label) == ("cat", "dog")
        assert bad == Prediction(error=bad.error)
        assert bad.error.startswith("image 1 is ")


def test_batches_without_a_readable_image_never_reach_the_engine(make):
    engine = FakeEngine(batch_size=2)
    assert all(prediction.error for prediction in make(engine).predict(["?", None]))
    assert make(engine).predict([]) == []
    assert engine.calls == []


def test_chunks_have_the_engines_batch_size(make):
    engine = FakeEngine(batch_size=4)
    make(engine).predict([BLACK] * 10)
    assert sorted(size for size, _ in engine.calls) == [2, 4, 4]


def test_a_heat_map_of_the_predicted_label_is_added_on_request(make):
    (plain,) = make(FakeEngine()).predict([gray(100)])
    (explained,) = make(FakeEngine()).predict([gray(100)], explain=True)
    class_maps = np.zeros((3, 2, 2), np.float32)
    class_maps[:, 0, 0] = [1, 2, 3]
    assert plain.heatmap is None
    assert explained.heatmap == heatmap(np.full((64, 64, 3), 100, np.uint8), class_maps, 0)


def test_a_single_image_may_use_all_cores_while_nothing_else_is_predicted(make):
    engine = FakeEngine()
    make(engine).predict([BLACK])
    assert engine.calls == [(1, True)]
    engine.calls.clear()
    make(engine).predict([BLACK, BLACK])
    assert engine.calls == [(1, False)] * 2


def test_concurrent_calls_share_the_cores(make):
    engine = FakeEngine()
    classifier = make(engine, threads=2)
    inside, leave = threading.Event(), threading.Event()

    def wait() -> None:
        inside.set()
        assert leave.wait(30)

    engine.before_return = wait
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(classifier.predict, [BLACK])
        assert inside.wait(30)
        engine.before_return = lambda: None
        classifier.predict([BLACK])  # while the first is still being predicted
        leave.set()
        first.result(30)
    assert engine.calls == [(1, True), (1, False)]
    classifier.predict([BLACK])
    assert engine.calls[-1] == (1, True), "both calls have ended, so this one is alone again"


def test_a_failed_call_does_not_count_as_in_progress(make):
    engine = FakeEngine()
    classifier = make(engine)

    def fail() -> None:
        raise RuntimeError("out of memory")

    engine.before_return = fail
    with pytest.raises(RuntimeError, match="out of memory"):
        classifier.predict([BLACK])
    engine.before_return = lambda: None
    classifier.predict([BLACK])
    assert engine.calls[-1] == (1, True)


def test_at_most_one_call_more_than_cores_runs_at_a_time(make, opened: dict[str, object], monkeypatch: pytest.MonkeyPatch):
    sizes: list[int] = []

    class Pool(ThreadPoolExecutor):
        def __init__(self, max_workers: int, **options: object) -> None:
            sizes.append(max_workers)
            super().__init__(max_workers, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(classifier_module, "ThreadPoolExecutor", Pool)
    engine, full = FakeEngine(), threading.Barrier(3, timeout=30)
    engine.before_return = lambda: full.wait() and None
    make(engine, threads=2).predict([BLACK] * 9)  # ends only if three run at a time
    assert sizes == [3]
    assert opened["threads"] == 2


def test_threads_and_engine_are_passed_on(make, opened: dict[str, object], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(classifier_module, "available_cores", lambda: 7)
    classifier = make(FakeEngine(), engine="torch")
    assert (opened["name"], opened["threads"]) == ("torch", 7)
    assert (classifier.digest, classifier.description.classes) == ("digest", ("cat", "dog", "owl"))
    make(FakeEngine())
    assert opened["name"] == "auto"


def test_limits_are_applied(make):
    (prediction,) = make(FakeEngine(), limits=Limits(max_pixels=6399)).predict([BLACK])
    assert prediction.error == "image 0 has 80x80 pixels, more than 6,399; send a smaller image"
    assert make(FakeEngine(), limits=Limits(max_pixels=6400)).predict([BLACK])[0].error is None


def test_softmax_does_not_overflow():
    assert softmax(np.array([[1000.0, 1000.0], [-1000.0, 0.0]])).tolist() == [[0.5, 0.5], [0.0, 1.0]]
    assert softmax(np.array([[1000.0, 1000.0]], np.float32)).dtype == np.float64


def test_the_heat_map_is_strongest_where_the_label_is_seen():
    class_maps = np.zeros((2, 4, 4), np.float32)
    class_maps[1, 0, 0] = 8.0  # top left
    pixels = np.full((64, 64, 3), 100, np.uint8)
    shown = np.asarray(Image.open(io.BytesIO(heatmap(pixels, class_maps, 1)))).astype(int)
    assert shown.shape == (64, 64, 3)
    assert shown[2, 2].tolist() == [200, 178, 35]  # 35 % image, 65 % yellow
    assert shown[60, 60].tolist() == [100, 100, 100]
    assert shown[12, 12, 0] > shown[12, 12, 1] > shown[12, 12, 2], "red at the edge of the evidence"


def test_a_heat_map_without_evidence_is_the_image():
    pixels = np.full((32, 32, 3), 77, np.uint8)
    shown = np.asarray(Image.open(io.BytesIO(heatmap(pixels, np.ones((2, 4, 4), np.float32), 0))))
    assert (shown == 77).all()
