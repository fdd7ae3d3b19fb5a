"""The gate on models in memory, each good at this and bad at that."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from catdog_pyfunc.classifier import Prediction
from catdog_pyfunc.errors import InvalidData, InvalidSetting, ModelFailed
from catdog_pyfunc.pipeline.evaluation.evaluation import LabelledImage
from catdog_pyfunc.pipeline.registry import checks, gate
from catdog_pyfunc.pipeline.registry.checks import Check, checks_table, mcnemar
from catdog_pyfunc.pipeline.registry.gate import GateReport, Thresholds, run_gate
from catdog_pyfunc.pipeline.registry.promotion import Promotion

CAT_DOG = ("cat", "dog")
LAX = {"log_loss_margin": 9.0, "calibration_margin": 1.0, "recall_margin": 1.0}


def labelled(*counts: tuple[str, int]) -> list[LabelledImage]:
    """So many images of each class; the bytes name the label."""
    names = [(f"{label} {number}", label) for label, count in counts for number in range(count)]
    return [LabelledImage(name, label, lambda name=name: f"image of {name} ".encode() * 8) for name, label in names]


IMAGES = labelled(("cat", 12), ("dog", 12))


@dataclass(frozen=True)
class Model:
    """Predicts every label but for so many mistakes per class; milliseconds pass on a fake clock."""

    classes: Sequence[str] = CAT_DOG
    mistakes: Sequence[tuple[str, int]] = ()
    confidence: float = 0.9
    corrupt: str = "row"
    probabilities: bool = True
    needs_pickle: bool = False
    fails_to_load: bool = False
    fails_on: Callable[[Sequence[bytes]], bool] = lambda images: False
    call_ms: Callable[[bytes], float] = lambda image: 1.0

    def predict(self, clock: SimpleNamespace, images: Sequence[bytes]) -> list[Prediction]:
        if self.fails_on(images):
            raise ModelFailed("the model failed")
        clock.now += sum(self.call_ms(image) for image in images) / 1000
        return [self._predict(image) for image in images]

    def _predict(self, image: bytes) -> Prediction:
        words = image.decode(errors="replace").split()
        if words[:2] != ["image", "of"] or len(words) < 32:
            if self.corrupt == "raise":
                raise ModelFailed("an image is corrupt")
            if self.corrupt == "row":
                return Prediction(error="corrupt")
            if self.corrupt == "silent":
                return Prediction()
            words = ["image", "of", self.classes[0], "0"]
        label, number = words[2], int(words[3])
        if label not in self.classes or number < dict(self.mistakes).get(label, 0):
            label = next(name for name in self.classes if name != label)
        rest = (1 - self.confidence) / (len(self.classes) - 1)
        table = {name: self.confidence if name == label else rest for name in self.classes}
        return Prediction(label, self.confidence, table if self.probabilities else None)


Judge = Callable[..., GateReport]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(checks.time, "perf_counter", lambda: clock.now)
    return clock


@pytest.fixture
def opened() -> list[tuple[str, bool]]:
    """The models that were loaded, and whether with pickle."""
    return []


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch, clock: SimpleNamespace, opened: list[tuple[str, bool]]) -> Judge:
    def run(
        challenger: Model,
        champion: Model | None = None,
        images: Sequence[LabelledImage] = IMAGES,
        forced: bool = False,
        **thresholds: Any,
    ) -> GateReport:
        models = {"challenger": challenger, "champion": champion}

        @contextlib.contextmanager
        def load(uri: str, *, pickle: bool = False) -> Iterator[SimpleNamespace]:
            model = models[uri]
            assert model is not None
            opened.append((uri, pickle))
            if model.fails_to_load or (model.needs_pickle and not pickle):
                raise ModelFailed("cannot be loaded")
            yield SimpleNamespace(predict=lambda images, explain: model.predict(clock, images))

        monkeypatch.setattr(gate, "subprocess_model", load)
        return run_gate("challenger", "champion" if champion else None, images, Thresholds(**thresholds), forced=forced)

    return run


def row(report: GateReport, name: str) -> Check:
    (check,) = (check for check in report.checks if check.name == name)
    return check


def names(report: GateReport) -> list[str]:
    return [check.name for check in report.checks]


def test_the_first_version_is_judged_alone(judge: Judge, opened: list[tuple[str, bool]]):
    report = judge(Model())
    assert names(report) == ["loads without pickle", "corrupt images", "accuracy", "latency, ms"]
    assert report.failed == ()
    assert report.challenger.accuracy.value == 1.0
    assert report.champion is None
    assert opened == [("challenger", False)]


def test_an_equal_challenger_passes_every_check(judge: Judge):
    report = judge(Model(mistakes=[("cat", 1)]), Model(mistakes=[("dog", 1)]))
    assert names(report) == [
        "loads without pickle",
        "corrupt images",
        "accuracy",
        "same classes",
        "accuracy vs champion",
        "log_loss",
        "calibration_error",
        "recall_cat",
        "recall_dog",
        "latency, ms",
    ]
    assert report.failed == ("recall_cat",)  # 1 of 12, and the margin is 0.05
    assert report.challenger.accuracy.value == report.champion.accuracy.value == 23 / 24
    assert row(report, "same classes") == Check("same classes", "cat, dog", "cat, dog", "all of the champion's", True)


@pytest.mark.parametrize(
    ("champion", "challenger", "thresholds", "failed"),
    [
        (None, Model(mistakes=[("cat", 4), ("dog", 4)]), {}, ["accuracy"]),
        (Model(), Model(mistakes=[("cat", 3), ("dog", 2)]), {**LAX, "min_accuracy": 0.5}, ["accuracy vs champion"]),
        (
            Model(mistakes=[("cat", 1)]),
            Model(mistakes=[("dog", 2)]),
            {"log_loss_margin": 9, "calibration_margin": 1},
            ["recall_dog"],
        ),
        (
            Model(mistakes=[("cat", 1)]),
            Model(mistakes=[("cat", 1)], confidence=0.999),
            {"calibration_margin": 1},
            ["log_loss"],
        ),
        (Model(), Model(confidence=0.6), {"log_loss_margin": 9}, ["calibration_error"]),
        (Model(), Model(call_ms=lambda image: 80.0), {}, ["latency, ms"]),
        (None, Model(call_ms=lambda image: 80.0), {}, ["latency, ms"]),
        (None, Model(corrupt="raise"), {}, ["corrupt images"]),
        (None, Model(corrupt="guess"), {}, ["corrupt images"]),
        (None, Model(corrupt="silent"), {}, ["corrupt images"]),
        (Model(classes=("cat", "dog", "cow")), Model(), LAX, ["same classes"]),
    ],
)
def test_what_a_challenger_does_not_reach_is_named(
    champion: Model | None, challenger: Model, thresholds: dict[str, float], failed: list[str], judge: Judge
):
    assert list(judge(challenger, champion, **thresholds).failed) == failed


def test_each_margin_is_on_top_of_the_champions_metric(judge: Judge):
    champion, challenger = Model(mistakes=[("cat", 3)]), Model(mistakes=[("dog", 3)])
    report = judge(challenger, champion, recall_margin=0.25)
    assert row(report, "recall_dog") == Check("recall_dog", "0.7500", "1.0000", "≥ 0.7500", True)
    report = judge(challenger, champion, recall_margin=0.2)
    assert row(report, "recall_dog") == Check("recall_dog", "0.7500", "1.0000", "≥ 0.8000", False)
    report = judge(Model(confidence=0.8), Model(confidence=0.9), calibration_margin=0.15, log_loss_margin=0.05)
    assert row(report, "calibration_error") == Check("calibration_error", "0.2000", "0.1000", "≤ 0.2500", True)
    assert row(report, "log_loss") == Check("log_loss", f"{-np.log(0.8):.4f}", f"{-np.log(0.9):.4f}", "≤ 0.1554", False)
    report = judge(Model(), min_accuracy=1.0)
    assert row(report, "accuracy") == Check("accuracy", "1.0000", "", "≥ 1.0000", True)


def test_significance_is_alphas(judge: Judge):
    worse = Model(mistakes=[("cat", 2), ("dog", 2)])
    report = judge(worse, Model(), **LAX, min_accuracy=0.5, alpha=0.05)
    assert row(report, "accuracy vs champion") == Check(
        "accuracy vs champion", "0.8333", "1.0000", "not worse beyond chance: p = 0.0625 ≥ 0.05", True
    )
    assert judge(worse, Model(), **LAX, min_accuracy=0.5, alpha=0.07).failed == ("accuracy vs champion",)


def test_a_challenger_with_an_additional_class_is_compared_on_the_champions_classes(judge: Judge):
    images = [*labelled(("cow", 70)), *IMAGES]
    challenger = Model(classes=("cat", "cow", "dog"), mistakes=[("cow", 7)])
    report = judge(challenger, Model(), images)
    assert report.failed == ()
    assert row(report, "new classes") == Check("new classes", "cow (recall 0.9000)", "", "nothing: reported only", True)
    assert row(report, "accuracy vs champion").challenger == "1.0000"
    assert row(report, "accuracy").challenger == f"{1 - 7 / 94:.4f}"
    assert "recall_cow" not in names(report)
    assert report.champion.classes == CAT_DOG
    assert len(report.champion.images) == 24


def test_a_challenger_that_trades_an_old_class_for_a_new_one_is_refused(judge: Judge):
    images = [*labelled(("cow", 70)), *IMAGES]
    challenger = Model(classes=("cat", "cow", "dog"), mistakes=[("cat", 6)])
    report = judge(challenger, Model(), images, **LAX)
    assert report.failed == ("accuracy vs champion",)


@dataclass(frozen=True)
class Fragile(Model):
    """Confuses so many corrupted images per class."""

    corrupted_mistakes: Sequence[tuple[str, int]] = ()

    def _predict(self, image: bytes) -> Prediction:
        if not image.startswith(b"corrupted "):
            return super()._predict(image)
        return Model(self.classes, self.corrupted_mistakes)._predict(image.removeprefix(b"corrupted "))


UNDER_CORRUPTIONS = "accuracy under corruptions vs champion"


@pytest.fixture
def corrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    def corrupt(images: Sequence[LabelledImage], seed: int) -> list[LabelledImage]:
        return [replace(image, read=lambda image=image: b"corrupted " + image.read()) for image in images]

    monkeypatch.setattr(gate, "randomly_corrupted", corrupt)


@pytest.mark.usefixtures("corrupted")
def test_a_challenger_that_corruptions_confuse_is_refused_if_asked(judge: Judge):
    fragile = Fragile(corrupted_mistakes=[("cat", 5)])
    report = judge(fragile, Fragile(), stress=True)
    assert report.failed == (UNDER_CORRUPTIONS,)
    assert row(report, UNDER_CORRUPTIONS) == Check(
        UNDER_CORRUPTIONS, "0.7917", "1.0000", "not worse beyond chance: p = 0.0312 ≥ 0.05", False
    )
    assert judge(fragile, Fragile(corrupted_mistakes=[("cat", 1)]), stress=True).failed == ()
    assert UNDER_CORRUPTIONS not in names(judge(fragile, Fragile()))
    assert judge(fragile, stress=True).failed == ()


@pytest.mark.usefixtures("corrupted")
def test_corrupted_images_of_a_new_class_are_not_compared(judge: Judge):
    challenger = Fragile(("cat", "cow", "dog"), corrupted_mistakes=[("cow", 70)])
    report = judge(challenger, Fragile(), [*labelled(("cow", 70)), *IMAGES], stress=True)
    assert row(report, UNDER_CORRUPTIONS).challenger == "1.0000"


@pytest.mark.usefixtures("corrupted")
def test_a_model_that_fails_on_corrupted_images(judge: Judge):
    failing = Model(fails_on=lambda images: images[0].startswith(b"corrupted "))
    assert judge(failing, Model(), stress=True).failed == (UNDER_CORRUPTIONS,)
    report = judge(Model(), failing, stress=True)
    assert report.failed == ()
    assert row(report, "champion").required == "nothing: not compared"


def test_images_of_which_the_champion_knows_no_class_do_not_pass(judge: Judge):
    report = judge(Model(classes=("cow", "hen")), Model(), labelled(("cow", 5), ("hen", 5)))
    assert report.failed == ("same classes",)
    assert "classes cow, hen" in row(report, "same classes").champion


def test_a_class_of_the_data_that_the_challenger_does_not_know_is_the_users_to_resolve(judge: Judge):
    with pytest.raises(InvalidData, match="classes cow that the model does not know"):
        judge(Model(), None, [*IMAGES, *labelled(("cow", 2))])


def test_models_without_probabilities_are_compared(judge: Judge):
    report = judge(Model(probabilities=False), Model(probabilities=False))
    assert report.failed == ()


def single(images: Sequence[bytes]) -> bool:
    return len(images) == 1


def test_a_challenger_that_cannot_be_loaded_is_refused(judge: Judge, opened: list[tuple[str, bool]]):
    report = judge(Model(needs_pickle=True), Model())
    assert report.checks == [Check("loads without pickle", "cannot be loaded", "", "yes", False)]
    assert opened == [("challenger", False)]
    assert report.challenger is None
    assert judge(Model(fails_to_load=True), forced=True).failed == ("loads without pickle",)


def test_a_challenger_that_needs_pickle_is_evaluated_if_forced(judge: Judge, opened: list[tuple[str, bool]]):
    report = judge(Model(needs_pickle=True), forced=True)
    assert report.failed == ("loads without pickle",)
    assert row(report, "loads without pickle").challenger == "no"
    assert report.challenger.accuracy.value == 1.0
    assert opened == [("challenger", False), ("challenger", True)]


def test_a_challenger_that_fails_on_the_images_is_refused(judge: Judge):
    report = judge(Model(fails_on=lambda images: True), Model())
    assert report.failed == ("predictions",)
    assert report.checks[-1] == Check("predictions", "the model failed", "", "one for every image", False)
    assert report.challenger is None


def test_a_challenger_that_fails_on_single_images_is_refused(judge: Judge):
    report = judge(Model(fails_on=single), Model())
    assert report.failed == ("corrupt images", "latency, ms")
    assert row(report, "latency, ms") == Check("latency, ms", "the model failed", "", "every call succeeds", False)


@pytest.mark.parametrize(
    "champion",
    [Model(fails_to_load=True), Model(fails_on=lambda images: True)],
)
def test_a_champion_that_fails_is_not_compared(champion: Model, judge: Judge):
    report = judge(Model(), champion)
    assert report.failed == ()
    assert row(report, "champion").required == "nothing: not compared"
    assert report.champion is None
    assert row(report, "latency, ms").champion == ""


def test_a_champion_that_fails_while_it_is_timed_is_not_compared_there(judge: Judge):
    report = judge(Model(call_ms=lambda image: 40.0), Model(fails_on=single))
    assert report.failed == ()
    assert row(report, "champion") == Check("champion", "", "the model failed", "nothing: not compared", True)
    assert row(report, "latency, ms") == Check("latency, ms", "40.0", "", "≤ 50.0", True)


def test_a_champion_that_needs_pickle_is_compared(judge: Judge, opened: list[tuple[str, bool]]):
    report = judge(Model(), Model(needs_pickle=True))
    assert report.champion.accuracy.value == 1.0
    assert opened[1:] == [("champion", False), ("champion", True)]


def test_corrupt_images_are_counted(judge: Judge):
    found = row(judge(Model()), "corrupt images")
    assert found == Check(
        "corrupt images",
        "6 of 6 error rows, the readable image's label",
        "",
        "6 of 6 error rows, the readable image's label",
        True,
    )
    guessed = row(judge(Model(corrupt="guess")), "corrupt images")
    assert guessed.challenger == "0 of 6 error rows, the readable image's label"
    assert row(judge(Model(corrupt="raise")), "corrupt images").challenger == "an image is corrupt"


def test_a_model_that_reads_no_image_fails_on_the_readable_one(judge: Judge):
    unreadable = [replace(image, read=lambda: b"") for image in IMAGES]
    report = judge(Model(), None, unreadable, min_accuracy=0)
    assert row(report, "corrupt images").challenger == "6 of 6 error rows, the readable image's label lost"
    assert "corrupt images" in report.failed


def test_a_corrupt_image_among_the_data_is_not_taken_for_the_readable_one(judge: Judge):
    images = [replace(IMAGES[0], read=lambda: b""), *IMAGES[1:]]
    assert judge(Model(), None, images).failed == ()


def test_a_batch_that_a_corrupt_image_spoils_fails(judge: Judge):
    class Spoiled(Model):
        def predict(self, clock: SimpleNamespace, images: Sequence[bytes]) -> list[Prediction]:
            rows = super().predict(clock, images)
            return [Prediction(error="corrupt")] * len(rows) if any(row.error for row in rows) else rows

    report = judge(Spoiled())
    assert report.failed == ("corrupt images",)
    assert row(report, "corrupt images").challenger == "6 of 6 error rows, the readable image's label lost"


def test_latency_passes_up_to_the_ratio_or_the_allowed_time(judge: Judge):
    champion = Model(call_ms=lambda image: 40.0)
    assert row(judge(Model(call_ms=lambda image: 59.0), champion), "latency, ms") == Check(
        "latency, ms", "59.0", "40.0", "≤ 60.0", True
    )
    assert judge(Model(call_ms=lambda image: 61.0), champion).failed == ("latency, ms",)
    assert judge(Model(call_ms=lambda image: 61.0), champion, latency_ratio=2).failed == ()
    assert judge(Model(call_ms=lambda image: 61.0), champion, latency_allowed_ms=62).failed == ()


def test_slow_calls_now_and_then_do_not_decide(judge: Judge):
    calls = iter(range(10**6))
    slow_now_and_then = Model(call_ms=lambda image: 500.0 if next(calls) % 3 == 0 else 10.0)
    assert row(judge(slow_now_and_then), "latency, ms") == Check("latency, ms", "10.0", "", "≤ 50.0", True)


def test_one_slow_image_does_not_decide(judge: Judge):
    slow = IMAGES[0].read()
    assert judge(Model(call_ms=lambda image: 500.0 if image == slow else 10.0)).failed == ()


def test_both_models_are_timed_in_turns_on_the_same_images(clock: SimpleNamespace):
    calls: list[tuple[str, bytes]] = []

    def predictor(name: str) -> Any:
        return lambda images, explain: calls.append((name, images[0])) or Model().predict(clock, images)

    checks.latency(predictor("challenger"), predictor("champion"), IMAGES, 1.5, 50.0)
    contents = [image.read() for image in IMAGES[:10]]
    assert calls == [(name, image) for image in contents * 10 for name in ("challenger", "champion")]


def correctness(both: int, only_champion: int, only_challenger: int) -> tuple[np.ndarray, np.ndarray]:
    champion = [True] * (both + only_champion) + [False] * only_challenger
    challenger = [True] * both + [False] * only_champion + [True] * only_challenger
    return np.array(challenger), np.array(champion)


@pytest.mark.parametrize(
    ("only_champion", "only_challenger", "p"),
    [
        (0, 0, 1.0),
        (10, 2, (66 + 12 + 1) / 2**12),  # C(12, 10) + C(12, 11) + C(12, 12)
        (2, 10, 1 - (1 + 12) / 2**12),
        (5, 0, 1 / 2**5),
        (0, 5, 1.0),
        (3000, 3000, 0.50515),
    ],
)
def test_mcnemar_is_the_exact_binomial_tail(only_champion: int, only_challenger: int, p: float):
    assert mcnemar(*correctness(7, only_champion, only_challenger)) == pytest.approx(p, abs=2e-5)


def test_what_both_models_got_right_does_not_count():
    assert mcnemar(*correctness(0, 6, 1)) == mcnemar(*correctness(10_000, 6, 1))


@pytest.mark.parametrize("name", ["min_accuracy", "alpha"])
@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_a_threshold_that_is_no_fraction_is_named(name: str, value: float):
    with pytest.raises(InvalidSetting, match=f"{name} is {value}; give a fraction from 0 to 1"):
        Thresholds(**{name: value})


@pytest.mark.parametrize(
    "name", ["log_loss_margin", "calibration_margin", "recall_margin", "latency_ratio", "latency_allowed_ms"]
)
@pytest.mark.parametrize("value", [-1, float("nan")])
def test_a_negative_threshold_is_named(name: str, value: float):
    with pytest.raises(InvalidSetting, match=f"{name} is {value}; give 0 or more"):
        Thresholds(**{name: value})


def test_the_bounds_of_thresholds_are_allowed():
    Thresholds(0, 0, 0, 0, 0, 0, 0)
    Thresholds(1, 1)


def test_the_defaults_are_the_documented_ones():
    assert Thresholds() == Thresholds(0.8, 0.05, 0.05, 0.05, 0.05, 1.5, 50.0)


@pytest.mark.parametrize("reason", ["", "  "])
def test_forcing_needs_a_reason(reason: str):
    with pytest.raises(InvalidSetting, match=r"^to force a promotion, give a reason"):
        Promotion("1", force=True, reason=reason)
    assert not Promotion("1", reason=reason).force


@pytest.mark.parametrize("alias", ["archived", "latest", "v3", "a b"])
def test_an_alias_that_cannot_be_promoted_to_is_refused(alias: str):
    with pytest.raises(InvalidSetting, match=alias):
        Promotion("1", alias)


def test_the_table_has_one_row_per_check():
    rows = checks_table([Check("accuracy", "0.9", "0.8", "≥ 0.8", True), Check("predictions", "it died", "", "all", False)])
    assert rows == [
        ["check", "challenger", "champion", "required", "verdict"],
        ["accuracy", "0.9", "0.8", "≥ 0.8", "ok"],
        ["predictions", "it died", "", "all", "FAILED"],
    ]
