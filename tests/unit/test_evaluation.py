"""Answers, metrics and what is refused: against scikit-learn, on random answers."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as reference

from catdog_pyfunc.classifier import Prediction
from catdog_pyfunc.errors import InvalidData, ModelFailed
from catdog_pyfunc.pipeline.data.dataset import read_folder
from catdog_pyfunc.pipeline.evaluation.evaluation import Evaluation, LabelledImage, evaluate, labelled_images
from catdog_pyfunc.pipeline.evaluation.predictors import function_predictor, probability_table, to_predictions


def images(labels: Sequence[str]) -> list[LabelledImage]:
    return [LabelledImage(f"{number}.jpg", label, str(number).encode) for number, label in enumerate(labels)]


def saying(predictions: Sequence[Prediction]):
    """A model that knows its answers by the picture's number."""
    return lambda pictures, explain: [predictions[int(picture)] for picture in pictures]


def random_answers(classes: Sequence[str], n: int, seed: int = 0) -> tuple[list[str], np.ndarray, list[Prediction]]:
    rng = np.random.default_rng(seed)
    labels = [classes[k] for k in rng.integers(0, len(classes), n)]
    logits = rng.normal(0, 1, (n, len(classes)))
    logits[np.arange(n), [classes.index(label) for label in labels]] += 1
    table = np.round(np.exp(logits) / np.exp(logits).sum(1, keepdims=True), 2)  # rounded: there are ties
    table[:, 0] += 1 - table.sum(1)
    table = np.clip(table, 0, 1)
    predictions = [
        Prediction(classes[int(row.argmax())], float(row.max()), dict(zip(classes, row.tolist(), strict=True)))
        for row in table
    ]
    return labels, table, predictions


@pytest.mark.parametrize("classes", [("cat", "dog"), ("ant", "bee", "cow", "dog")])
def test_the_metrics_are_scikit_learns(classes: tuple[str, ...]):
    labels, table, predictions = random_answers(classes, 400)
    evaluation = evaluate(saying(predictions), images(labels), latency=False)
    answers = [prediction.label for prediction in predictions]
    precision, recall, f1, _ = reference.precision_recall_fscore_support(labels, answers, labels=classes)
    expected = {
        "accuracy": reference.accuracy_score(labels, answers),
        "balanced_accuracy": reference.balanced_accuracy_score(labels, answers),
        "log_loss": reference.log_loss(labels, np.maximum(table, 1e-12), labels=classes),
        **{f"precision_{name}": precision[k] for k, name in enumerate(classes)},
        **{f"recall_{name}": recall[k] for k, name in enumerate(classes)},
        **{f"f1_{name}": f1[k] for k, name in enumerate(classes)},
    }
    if len(classes) == 2:
        expected["auroc"] = reference.roc_auc_score([label == "dog" for label in labels], table[:, 1])
    else:
        expected["auroc"] = np.mean(
            [reference.roc_auc_score([label == name for label in labels], table[:, k]) for k, name in enumerate(classes)]
        )
    for name, value in expected.items():
        estimate = evaluation.estimates[name]
        assert estimate.value == pytest.approx(value, abs=1e-9), name
        assert estimate.low <= estimate.value <= estimate.high, name
    assert evaluation.confusion.tolist() == reference.confusion_matrix(labels, answers, labels=classes).tolist()


def test_the_calibration_error_is_the_one_of_the_diagram():
    labels, _, predictions = random_answers(("cat", "dog"), 300)
    evaluation = evaluate(saying(predictions), images(labels), latency=False)
    estimate = evaluation.estimates["calibration_error"]
    assert estimate.value == pytest.approx(evaluation.calibration.error)
    assert estimate.low <= estimate.value <= estimate.high


def answered(*pairs: tuple[str, Prediction]) -> Evaluation:
    labels, predictions = zip(*pairs, strict=True)
    return evaluate(saying(predictions), images(labels), latency=False)


def both(label: str, confidence: float, in_domain: bool | None = None) -> Prediction:
    other = "dog" if label == "cat" else "cat"
    return Prediction(label, confidence, {label: confidence, other: 1 - confidence}, in_domain=in_domain)


BROKEN = Prediction(error="is not a picture")


def test_an_unreadable_picture_is_wrong_but_has_no_probability():
    evaluation = answered(("cat", both("cat", 0.9)), ("dog", both("dog", 0.8)), ("dog", BROKEN))
    assert evaluation.accuracy.value == pytest.approx(2 / 3)
    assert evaluation.estimates["unreadable"].value == pytest.approx(1 / 3)
    assert evaluation.estimates["recall_dog"].value == 0.5
    assert evaluation.estimates["log_loss"].n == 2
    assert evaluation.mistakes[-1][1] is BROKEN
    assert "accepted" not in evaluation.estimates


def test_nothing_readable_is_measured_as_far_as_it_goes():
    evaluation = answered(("cat", BROKEN), ("dog", BROKEN))
    assert evaluation.accuracy.value == 0
    assert math.isnan(evaluation.estimates["log_loss"].value)
    assert "log_loss" not in evaluation.metrics("test")


def test_what_is_rejected_is_counted():
    evaluation = answered(
        *(
            ("cat", both("cat", 0.9, True)),
            ("cat", both("dog", 0.9, False)),
            ("dog", both("cat", 0.6, True)),
            ("dog", BROKEN),
        )
    )
    assert evaluation.estimates["accepted"].value == pytest.approx(2 / 3)
    assert evaluation.estimates["accuracy_accepted"].value == 0.5


def test_mistakes_come_worst_first_and_doubts_least_confident_first():
    evaluation = answered(
        *(("cat", both("dog", 0.6)), ("cat", both("dog", 0.99)), ("dog", both("dog", 0.55)), ("dog", BROKEN))
    )
    assert [photo.name for photo, _ in evaluation.mistakes] == ["1.jpg", "0.jpg", "3.jpg"]
    assert [photo.name for photo, _ in evaluation.least_confident] == ["2.jpg", "0.jpg", "1.jpg"]


def test_metrics_have_the_names_that_mlflow_groups_by():
    evaluation = answered(("cat", both("cat", 0.9)), ("dog", both("dog", 0.8)))
    assert {"test/accuracy", "test/accuracy_low", "test/accuracy_high", "test/recall_cat", "test/auroc"} <= set(
        evaluation.metrics("test")
    )
    assert "accuracy" in evaluation.metrics()
    assert not any(name.endswith("_low") and "accuracy" not in name for name in evaluation.metrics())
    odd = evaluate(saying([Prediction("a/b:c", 0.9)]), images(["a/b:c"]), latency=False)
    assert "recall_a_b_c" in odd.metrics()


def test_latency_is_of_lone_pictures_and_may_be_left_out():
    sizes: list[int] = []

    def predict(pictures: Sequence[bytes], explain: bool) -> list[Prediction]:
        sizes.append(len(pictures))
        return [both("cat", 0.9)] * len(pictures)

    timed = evaluate(predict, images(["cat", "dog"] * 100))
    assert timed.latency_p50_ms is not None
    assert timed.latency_p99_ms >= timed.latency_p50_ms
    assert sizes == [64, 64, 64, 8] + [1] * 101
    assert evaluate(predict, images(["cat", "dog"]), latency=False).latency_p50_ms is None


def test_a_model_without_probabilities_is_read_as_far_as_it_can_be():
    two = probability_table([Prediction("dog", 0.8), BROKEN], ("cat", "dog"))
    assert two[0].tolist() == pytest.approx([0.2, 0.8])
    assert np.isnan(two[1]).all()
    assert probability_table([Prediction("b", 0.7)], ("a", "b", "c", "d"))[0].tolist() == pytest.approx([0.1, 0.7, 0.1, 0.1])


@pytest.mark.parametrize(
    ("labels", "prediction", "message"),
    [
        ([], both("cat", 0.9), "no picture to evaluate on"),
        (["horse"], both("cat", 0.9), "classes horse that the model doesn't know; it knows cat, dog"),
        (["Cat "], both("cat", 0.9), r"'Cat ' is 'cat' but for case or spaces: rename it"),
        (["horse", "cow"], Prediction("cat", 0.9), "classes cow, horse that the model doesn't know; it answers cat"),
    ],
)
def test_what_cannot_be_measured_is_refused(labels: list[str], prediction: Prediction, message: str):
    with pytest.raises(InvalidData, match=message):
        evaluate(saying([prediction] * len(labels)), images(labels))


def test_unknown_classes_are_refused_before_everything_is_answered():
    asked = 0

    def predict(pictures: Sequence[bytes], explain: bool) -> list[Prediction]:
        nonlocal asked
        asked += len(pictures)
        return [both("cat", 0.9)] * len(pictures)

    with pytest.raises(InvalidData, match="doesn't know"):
        evaluate(predict, images(["horse"] * 1000))
    assert asked == 64


def test_given_classes_are_those_that_count():
    with pytest.raises(InvalidData, match="it knows ant, bee"):
        evaluate(saying([both("cat", 0.9)]), images(["cat"]), classes=("ant", "bee"))


def test_rows_become_predictions():
    frame = pd.DataFrame(
        {
            "label": ["cat", None],
            "confidence": [0.75, np.nan],
            "probabilities": [{"cat": 0.75, "dog": 0.25}, None],
            "error": [None, "no picture"],
            "in_domain": [np.bool_(True), None],
            "domain_score": [0.5, np.nan],
            "heatmap": [base64.b64encode(b"png").decode(), None],
        }
    )
    expected = [Prediction("cat", 0.75, {"cat": 0.75, "dog": 0.25}, None, True, 0.5, b"png"), Prediction(error="no picture")]
    assert to_predictions(frame) == expected
    assert to_predictions(frame.astype(object).to_dict("records")) == expected
    assert to_predictions([{"label": 1, "confidence": np.float32(1)}]) == [Prediction("1", 1.0)]


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (pd.DataFrame({"class": ["cat"], "score": [1.0]}), "answered with class, score: it must give label and confidence"),
        (np.array(["cat"]), "answered with ndarray"),
        (["cat"], "answered with list"),
        ([{"label": "cat", "confidence": 97.3}], "row 0 has confidence 97.3"),
        ([{"label": "cat", "confidence": None}], "row 0 has confidence None"),
        ([{"label": "cat", "confidence": 0.9, "probabilities": [0.9, 0.1]}], "row 0 has probabilities of type list"),
    ],
)
def test_answers_without_label_and_confidence_are_named(output: object, message: str):
    with pytest.raises(InvalidData, match=message):
        to_predictions(output, len(output))


def test_a_model_that_raises_or_answers_too_few_is_named():
    with pytest.raises(ModelFailed, match="failed on 1 pictures: KeyError: 'photo'"):
        function_predictor(lambda frame: frame["photo"])([b"x"], False)
    with pytest.raises(InvalidData, match="answered 2 pictures with 1 rows"):
        function_predictor(lambda frame: [{"label": "cat", "confidence": 1}])([b"x", b"y"], False)


def test_a_side_becomes_photos(drawn: Path):
    dataset = read_folder(drawn)
    taken = labelled_images(dataset, "test")
    assert len(taken) == 24
    assert (taken[0].name, taken[0].label) == ("cat/cat-0000.jpg", "cat")
    assert taken[0].read() == (drawn / "test" / "cat" / "cat-0000.jpg").read_bytes()
    assert len(labelled_images(dataset, "all")) == 108
