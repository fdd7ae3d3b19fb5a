"""Evaluations: metrics against scikit-learn on random predictions, unreadable images, unknown classes, latency."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from sklearn import metrics as reference

from catdog_pyfunc.classifier import Prediction
from catdog_pyfunc.errors import InvalidData
from catdog_pyfunc.pipeline.data.dataset import Dataset, Example
from catdog_pyfunc.pipeline.evaluation import evaluation as module
from catdog_pyfunc.pipeline.evaluation.evaluation import Evaluation, LabelledImage, evaluate, labelled_images
from catdog_pyfunc.pipeline.evaluation.predictors import Predictor

UNREADABLE = Prediction(error="is a corrupt image")


def images(labels: Sequence[str]) -> list[LabelledImage]:
    return [LabelledImage(f"{number}.jpg", label, str(number).encode) for number, label in enumerate(labels)]


def predictor(predictions: Sequence[Prediction]) -> Predictor:
    """A model that knows its predictions by the number of the image."""
    return lambda contents, explain: [predictions[int(content)] for content in contents]


def evaluated(*results: tuple[str, Prediction]) -> Evaluation:
    labels, predictions = zip(*results, strict=True)
    return evaluate(predictor(predictions), images(labels), latency=False)


def cat_or_dog(label: str, confidence: float, in_domain: bool | None = None) -> Prediction:
    other = "dog" if label == "cat" else "cat"
    probabilities = {name: confidence if name == label else 1 - confidence for name in sorted((label, other))}
    return Prediction(label, confidence, probabilities, in_domain=in_domain)


def random_predictions(classes: Sequence[str], n: int) -> tuple[list[str], np.ndarray, list[Prediction]]:
    rng = np.random.default_rng(0)
    labels = [classes[k] for k in rng.integers(0, len(classes), n)]
    logits = rng.normal(0, 1, (n, len(classes)))
    logits[np.arange(n), [classes.index(label) for label in labels]] += 1
    table = np.round(np.exp(logits) / np.exp(logits).sum(1, keepdims=True), 2)  # rounded, so that there are ties
    table[:, 0] += 1 - table.sum(1)
    table = np.clip(table, 0, 1)
    predictions = [
        Prediction(classes[int(row.argmax())], float(row.max()), dict(zip(classes, row.tolist(), strict=True)))
        for row in table
    ]
    return labels, table, predictions


@pytest.mark.parametrize("classes", [("cat", "dog"), ("ant", "bee", "cow", "dog")])
def test_metrics_equal_scikit_learns(classes: tuple[str, ...]):
    labels, table, predictions = random_predictions(classes, 400)
    evaluation = evaluate(predictor(predictions), images(labels), latency=False)
    predicted = [prediction.label for prediction in predictions]
    precision, recall, f1, _ = reference.precision_recall_fscore_support(labels, predicted, labels=classes)
    expected = {
        "accuracy": reference.accuracy_score(labels, predicted),
        "balanced_accuracy": reference.balanced_accuracy_score(labels, predicted),
        "log_loss": reference.log_loss(labels, np.maximum(table, 1e-12), labels=classes),
        **{f"precision_{name}": precision[k] for k, name in enumerate(classes)},
        **{f"recall_{name}": recall[k] for k, name in enumerate(classes)},
        **{f"f1_{name}": f1[k] for k, name in enumerate(classes)},
    }
    scored = list(enumerate(classes))[1:] if len(classes) == 2 else list(enumerate(classes))
    expected["auroc"] = np.mean(
        [reference.roc_auc_score([label == name for label in labels], table[:, k]) for k, name in scored]
    )
    for name, value in expected.items():
        estimate = evaluation.estimates[name]
        assert estimate.value == pytest.approx(value, abs=1e-9), name
        assert estimate.low <= estimate.value <= estimate.high, name
    assert evaluation.classes == classes
    assert evaluation.confusion.tolist() == reference.confusion_matrix(labels, predicted, labels=classes).tolist()
    assert evaluation.probabilities.tolist() == table.tolist()


def test_fractions_have_wilson_intervals_and_the_number_of_images_they_are_of():
    predictions = [cat_or_dog("cat", 0.9)] * 3 + [cat_or_dog("dog", 0.8)] * 2
    evaluation = evaluate(predictor(predictions), images(["cat", "cat", "dog", "dog", "dog"]), latency=False)
    estimates = evaluation.estimates
    assert (estimates["precision_cat"].value, estimates["precision_cat"].n) == (pytest.approx(2 / 3), 3)
    assert (estimates["recall_dog"].value, estimates["recall_dog"].n) == (pytest.approx(2 / 3), 3)
    assert (estimates["precision_dog"].value, estimates["precision_dog"].n) == (1, 2)
    assert (evaluation.accuracy.low, evaluation.accuracy.high) == pytest.approx((0.3755, 0.9638), abs=5e-5)
    assert evaluation.accuracy.n == estimates["f1_cat"].n == estimates["balanced_accuracy"].n == 5


def test_the_calibration_error_is_the_mean_distance_in_the_bins_of_the_diagram():
    labels, _, predictions = random_predictions(("cat", "dog"), 300)
    evaluation = evaluate(predictor(predictions), images(labels), latency=False)
    bins, estimate = evaluation.calibration, evaluation.estimates["calibration_error"]
    assert estimate.value == pytest.approx(np.average(np.abs(bins.confidence - bins.accuracy), weights=bins.counts))
    assert estimate.low <= estimate.value <= estimate.high


def test_the_diagram_has_fifteen_bins_of_confidence():
    results = [("cat", cat_or_dog("cat", 0.61)), ("dog", cat_or_dog("cat", 0.65)), ("cat", cat_or_dog("cat", 1.0))]
    bins = evaluated(*results).calibration
    assert bins.counts.tolist() == [2, 1]  # 0.6 to 0.667, 0.933 to 1
    assert bins.confidence.tolist() == pytest.approx([0.63, 1.0])
    assert bins.accuracy.tolist() == [0.5, 1.0]
    assert evaluated(*results).estimates["calibration_error"].value == pytest.approx(0.13 * 2 / 3)


def test_an_unreadable_image_is_wrong_and_has_no_probabilities():
    evaluation = evaluated(("cat", cat_or_dog("cat", 0.9)), ("dog", cat_or_dog("dog", 0.8)), ("dog", UNREADABLE))
    assert evaluation.accuracy.value == pytest.approx(2 / 3)
    assert evaluation.correct.tolist() == [True, True, False]
    assert evaluation.estimates["unreadable"].value == pytest.approx(1 / 3)
    assert evaluation.estimates["recall_dog"].value == 0.5
    assert evaluation.estimates["precision_dog"].value == 1
    assert evaluation.estimates["log_loss"].value == pytest.approx(-(math.log(0.9) + math.log(0.8)) / 2)
    assert evaluation.estimates["log_loss"].n == evaluation.estimates["auroc"].n == 2
    assert np.isnan(evaluation.probabilities[2]).all()
    assert evaluation.confusion.tolist() == [[1, 0], [0, 1]]
    assert evaluation.mistakes[-1][1] is UNREADABLE


def test_the_log_loss_of_a_certain_mistake_is_finite():
    evaluation = evaluated(("dog", cat_or_dog("cat", 1.0)), ("cat", cat_or_dog("cat", 1.0)))
    assert evaluation.estimates["log_loss"].value == pytest.approx(-math.log(1e-12) / 2)


def test_without_readable_images_the_remaining_metrics_are_computed():
    evaluation = evaluated(("cat", UNREADABLE), ("dog", UNREADABLE))
    assert evaluation.accuracy.value == 0
    assert math.isnan(evaluation.estimates["log_loss"].value)
    assert evaluation.least_confident == ()
    assert "log_loss" not in evaluation.metrics("test")
    assert evaluation.latency_p50_ms is None


def test_accepted_is_the_fraction_of_readable_images_that_are_in_domain():
    results = [
        ("cat", cat_or_dog("cat", 0.9, in_domain=True)),
        ("cat", cat_or_dog("dog", 0.9, in_domain=False)),
        ("dog", cat_or_dog("cat", 0.6, in_domain=True)),
        ("dog", UNREADABLE),
    ]
    estimates = evaluated(*results).estimates
    assert (estimates["accepted"].value, estimates["accepted"].n) == (pytest.approx(2 / 3), 3)
    assert (estimates["accuracy_accepted"].value, estimates["accuracy_accepted"].n) == (0.5, 2)


def test_a_model_that_does_not_say_what_is_in_domain_has_no_accepted_fraction():
    assert not {"accepted", "accuracy_accepted"} & set(evaluated(("cat", cat_or_dog("cat", 0.9))).estimates)


def test_the_most_confident_mistakes_and_the_least_confident_predictions_come_first():
    results = [
        ("cat", cat_or_dog("dog", 0.6)),
        ("cat", UNREADABLE),
        ("cat", cat_or_dog("dog", 0.99)),
        ("dog", cat_or_dog("dog", 0.55)),
    ]
    evaluation = evaluated(*results)
    assert [image.name for image, _ in evaluation.mistakes] == ["2.jpg", "0.jpg", "1.jpg"]
    assert [image.name for image, _ in evaluation.least_confident] == ["3.jpg", "0.jpg", "2.jpg"]


def test_metrics_are_named_for_mlflow():
    evaluation = evaluated(("cat", cat_or_dog("cat", 0.9)), ("dog", cat_or_dog("dog", 0.8)))
    named = evaluation.metrics("test")
    assert named["test/accuracy"] == 1
    assert (named["test/accuracy_low"], named["test/accuracy_high"]) == (evaluation.accuracy.low, evaluation.accuracy.high)
    assert {"test/recall_cat", "test/auroc"} <= set(named)
    assert {f"test/{name}" for name in evaluation.metrics()} == set(named)
    assert not any(name.endswith("_low") and "accuracy" not in name for name in named)


def test_a_class_name_that_mlflow_would_refuse_in_a_metric_is_replaced():
    odd = evaluate(predictor([Prediction("a/b:c-d.e f_ß", 0.9)]), images(["a/b:c-d.e f_ß"]), latency=False)
    assert "recall_a_b_c-d.e f_ß" in odd.metrics()


@pytest.mark.parametrize(
    ("labels", "prediction", "message"),
    [
        ([], cat_or_dog("cat", 0.9), "there are no images to evaluate on: give some"),
        (["horse"], cat_or_dog("cat", 0.9), "the data has classes horse that the model does not know; it knows cat, dog$"),
        (["Cat "], cat_or_dog("cat", 0.9), "'Cat ' differs from 'cat' in case or spaces only: rename it$"),
        (["horse", "cow"], Prediction("cat", 0.9), "classes cow, horse that the model does not know; it predicts cat$"),
        ([str(k) for k in range(12)], cat_or_dog("cat", 0.9), "classes 0, 1, 10, 11, 2, 3, 4, 5, 6, 7 and 2 more that"),
    ],
)
def test_data_that_a_model_cannot_be_evaluated_on_is_named(labels: list[str], prediction: Prediction, message: str):
    with pytest.raises(InvalidData, match=message):
        evaluate(predictor([prediction] * len(labels)), images(labels))


def test_unknown_classes_are_refused_before_all_images_are_predicted():
    predicted = 0

    def predict(contents: Sequence[bytes], explain: bool) -> list[Prediction]:
        nonlocal predicted
        predicted += len(contents)
        return [cat_or_dog("cat", 0.9)] * len(contents)

    with pytest.raises(InvalidData, match="does not know"):
        evaluate(predict, images(["horse"] * 1000))
    assert predicted == 64


def test_given_classes_are_the_models():
    with pytest.raises(InvalidData, match="it knows ant, bee"):
        evaluate(predictor([cat_or_dog("cat", 0.9)]), images(["cat"]), classes=("ant", "bee"))
    evaluation = evaluate(predictor([cat_or_dog("cat", 0.9)]), images(["cat"]), classes=("dog", "cat", "ant"), latency=False)
    assert evaluation.classes == ("dog", "cat", "ant")
    assert evaluation.probabilities.tolist() == [[pytest.approx(0.1), 0.9, 0]]


def test_without_probabilities_the_classes_are_the_labels_and_the_predictions():
    predictions = [Prediction("dog", 0.9), Prediction("cow", 0.9), UNREADABLE]
    assert evaluate(predictor(predictions), images(["dog", "cat", "cat"]), latency=False).classes == ("cat", "cow", "dog")


def test_probabilities_name_the_classes_even_if_the_first_images_are_unreadable():
    evaluation = evaluate(predictor([UNREADABLE, cat_or_dog("cat", 0.9)]), images(["cat", "cat"]), latency=False)
    assert evaluation.classes == ("cat", "dog")


def test_images_of_unknown_classes_can_be_skipped():
    predictions = [cat_or_dog("cat", 0.9), cat_or_dog("cat", 0.7), cat_or_dog("dog", 0.8)]
    evaluation = evaluate(predictor(predictions), images(["cat", "cow", "dog"]), skip_unknown=True, latency=False)
    assert evaluation.labels == ("cat", "dog")
    assert evaluation.accuracy == evaluated(("cat", predictions[0]), ("dog", predictions[2])).accuracy
    with pytest.raises(InvalidData, match="classes cow that the model does not know; it knows cat, dog"):
        evaluate(predictor(predictions), images(["cow"] * 3), skip_unknown=True)


def test_an_evaluation_restricted_to_classes_is_the_evaluation_of_their_images():
    classes = ("cat", "cow", "dog")
    labels, _, predictions = random_predictions(classes, 90)
    whole = evaluate(predictor(predictions), images(labels), seed=5, latency=False)
    restricted = whole.restricted_to({"dog", "cat", "horse"})
    kept = [k for k, label in enumerate(labels) if label != "cow"]
    assert restricted.classes == ("cat", "dog")
    assert [image.name for image in restricted.images] == [f"{k}.jpg" for k in kept]
    assert restricted.predictions == tuple(predictions[k] for k in kept)
    assert restricted.correct.tolist() == whole.correct[kept].tolist()
    assert restricted.accuracy.value == np.mean([predictions[k].label == labels[k] for k in kept])
    assert restricted.estimates["recall_cat"] == whole.estimates["recall_cat"]
    log_losses = [-math.log(max(predictions[k].probabilities[labels[k]], 1e-12)) for k in kept]
    assert restricted.estimates["log_loss"].value == pytest.approx(np.mean(log_losses))
    assert restricted.estimates["log_loss"] == whole.restricted_to(("cat", "dog")).estimates["log_loss"]
    with pytest.raises(InvalidData, match="there are no images to evaluate on"):
        whole.restricted_to({"horse"})


def test_a_restricted_evaluation_keeps_seed_and_latency():
    predictions = [cat_or_dog("cat", 0.9), cat_or_dog("cat", 0.8), cat_or_dog("dog", 0.7)]
    whole = evaluate(predictor(predictions), images(["cat", "dog", "dog"]), seed=7)
    restricted = whole.restricted_to(whole.classes)
    assert restricted.estimates == whole.estimates
    assert (restricted.latency_p50_ms, restricted.latency_p99_ms) == (whole.latency_p50_ms, whole.latency_p99_ms)
    assert whole.estimates != evaluate(predictor(predictions), images(["cat", "dog", "dog"]), seed=8).estimates


def test_latency_is_that_of_single_image_calls(monkeypatch: pytest.MonkeyPatch):
    calls: list[list[bytes]] = []
    now = 0.0

    def predict(contents: Sequence[bytes], explain: bool) -> list[Prediction]:
        nonlocal now
        assert explain is False  # heat maps take time
        now += 0.010 if len(contents) > 1 or len(calls) % 2 else 0.020
        calls.append(list(contents))
        return [UNREADABLE if content == b"0" else cat_or_dog("cat", 0.9) for content in contents]

    monkeypatch.setattr(module.time, "perf_counter", lambda: now)
    timed = evaluate(predict, images(["cat", "dog"] * 100))
    assert [len(contents) for contents in calls] == [64, 64, 64, 8] + [1] * 101
    assert calls[4] == calls[5] == [b"1"]  # the first call is repeated, and image 0 is unreadable
    assert len({contents[0] for contents in calls[5:]}) == 100
    assert timed.latency_p50_ms == pytest.approx(15)
    assert timed.latency_p99_ms == pytest.approx(20)
    assert timed.metrics()["latency_p50_ms"] == timed.latency_p50_ms
    assert timed.metrics()["latency_p99_ms"] == timed.latency_p99_ms


def test_timing_a_slow_model_stops_after_three_seconds(monkeypatch: pytest.MonkeyPatch):
    now, calls = 0.0, 0

    def predict(contents: Sequence[bytes], explain: bool) -> list[Prediction]:
        nonlocal now, calls
        now, calls = now + 1.0, calls + 1
        return [cat_or_dog("cat", 0.9)] * len(contents)

    monkeypatch.setattr(module.time, "perf_counter", lambda: now)
    assert evaluate(predict, images(["cat"] * 64)).latency_p99_ms == pytest.approx(1000)
    assert calls == 1 + 1 + 4


def test_latency_can_be_left_out():
    evaluation = evaluated(("cat", cat_or_dog("cat", 0.9)))
    assert evaluation.latency_p50_ms is None
    assert not {"latency_p50_ms", "latency_p99_ms"} & set(evaluation.metrics())


def test_the_images_of_a_split_are_named_by_folder_and_file(tmp_path: Path):
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "a.jpg").write_bytes(b"a cat")
    train, test = Example(tmp_path / "dog" / "b.jpg", 1, ""), Example(tmp_path / "cat" / "a.jpg", 0, "")
    dataset = Dataset("somewhere", ("cat", "dog"), {"train": (train,), "val": (), "test": (test,)})
    (image,) = labelled_images(dataset, "test")
    assert (image.name, image.label, image.read()) == ("cat/a.jpg", "cat", b"a cat")
    assert [image.label for image in labelled_images(dataset, "all")] == ["dog", "cat"]
