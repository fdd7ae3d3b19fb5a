"""Predictors: what is read from a model's output, and what is the model's failure."""

from __future__ import annotations

import base64
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from catdog_pyfunc.classifier import Prediction
from catdog_pyfunc.errors import InvalidData, ModelFailed
from catdog_pyfunc.pipeline.evaluation.predictors import (
    classifier_predictor,
    function_predictor,
    probability_table,
    pyfunc_predictor,
    to_predictions,
)

CAT = {"label": "cat", "confidence": 0.9}


class Pyfunc:
    """A model as `mlflow.pyfunc.load_model` returns it, with a signature of given columns and parameters."""

    def __init__(self, columns: list[str] | None, params: list[str] | None = None) -> None:
        schema = columns and SimpleNamespace(input_names=lambda: columns, has_input_names=lambda: columns != ["unnamed"])
        params_schema = params and SimpleNamespace(params=[SimpleNamespace(name=name) for name in params])
        self.metadata = SimpleNamespace(get_input_schema=lambda: schema, get_params_schema=lambda: params_schema)
        self.calls: list[tuple[pd.DataFrame, dict[str, Any] | None]] = []

    def predict(self, frame: pd.DataFrame, params: dict[str, Any] | None = None) -> list[dict[str, Any]]:
        self.calls.append((frame, params))
        return [CAT] * len(frame)


@pytest.mark.parametrize(
    ("columns", "used"),
    [(["photo"], "photo"), (["photo", "other"], "image"), (None, "image"), (["unnamed"], "image")],
)
def test_a_pyfunc_gets_one_image_per_row_in_the_column_of_its_signature(columns: list[str] | None, used: str):
    model = Pyfunc(columns)
    assert pyfunc_predictor(model)([b"a", b"b"], False) == [Prediction("cat", 0.9)] * 2  # type: ignore[arg-type]
    ((frame, params),) = model.calls
    assert frame.to_dict("list") == {used: [b"a", b"b"]}
    assert params is None


def test_the_column_of_a_model_without_signature_can_be_given():
    model = Pyfunc(None)
    pyfunc_predictor(model, "picture")([b"a"], False)  # type: ignore[arg-type]
    assert list(model.calls[0][0].columns) == ["picture"]


@pytest.mark.parametrize(
    ("params", "explain", "given"),
    [
        (["top", "explain"], True, {"explain": True}),
        (["explain"], False, None),
        (["top"], True, None),
        (None, True, None),
    ],
)
def test_heat_maps_are_requested_only_of_a_model_that_has_the_parameter(
    params: list[str] | None, explain: bool, given: dict[str, bool] | None
):
    model = Pyfunc(["image"], params)
    pyfunc_predictor(model)([b"a"], explain)  # type: ignore[arg-type]
    assert model.calls[0][1] == given


def test_a_function_gets_a_data_frame():
    frames: list[pd.DataFrame] = []

    def function(frame: pd.DataFrame) -> list[dict[str, Any]]:
        frames.append(frame)
        return [CAT] * len(frame)

    assert function_predictor(function, "photo")([b"a", b"b"], True) == [Prediction("cat", 0.9)] * 2
    assert frames[0].to_dict("list") == {"photo": [b"a", b"b"]}
    function_predictor(function)([b"a"], True)
    assert list(frames[1].columns) == ["image"]


@pytest.mark.parametrize("explain", [True, False])
def test_a_classifier_is_called_without_data_frames(explain: bool):
    class Classifier:
        def predict(self, images: list[bytes], *, explain: bool) -> list[Prediction]:
            return [Prediction(str(image), heatmap=b"png" if explain else None) for image in images]

    (prediction,) = classifier_predictor(Classifier())([b"a"], explain)  # type: ignore[arg-type]
    assert prediction == Prediction("b'a'", heatmap=b"png" if explain else None)


def test_rows_become_predictions():
    frame = pd.DataFrame(
        {
            "label": ["cat", None],
            "confidence": [0.75, np.nan],
            "probabilities": [{"cat": 0.75, "dog": 0.25}, None],
            "error": [None, "no image"],
            "in_domain": [np.bool_(True), None],
            "domain_score": [0.5, np.nan],
            "heatmap": [base64.b64encode(b"png").decode(), None],
        }
    )
    expected = [Prediction("cat", 0.75, {"cat": 0.75, "dog": 0.25}, None, True, 0.5, b"png"), Prediction(error="no image")]
    assert to_predictions(frame, 2) == expected
    assert to_predictions(frame.astype(object).to_dict("records"), 2) == expected


def test_rows_of_other_types_become_predictions():
    rows = [{"label": 1, "confidence": np.float32(1)}, {"label": pd.NA, "confidence": None}, {"label": np.float32("nan")}]
    no_label = Prediction(error="the model returned no label")
    assert to_predictions(rows, 3) == [Prediction("1", 1.0), no_label, no_label]
    assert to_predictions([{**CAT, "in_domain": False, "domain_score": 0}], 1) == [
        Prediction("cat", 0.9, in_domain=False, domain_score=0.0)
    ]
    assert to_predictions([], 0) == []


def test_rounding_may_carry_a_probability_out_of_its_range():
    above, below = to_predictions([{"label": "cat", "confidence": value} for value in (1 + 1e-7, -1e-7)], 2)
    assert (above.confidence, below.confidence) == (1.0, 0.0)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (pd.DataFrame({"class": ["cat"], "score": [1.0]}), "the columns class, score: it must return label and confidence$"),
        ([{"label": "cat"}], "the model returned the columns label: it must return label and confidence$"),
        ([{"confidence": 0.5}], "the model returned the columns confidence"),
        (
            np.array(["cat"]),
            "^the model returned ndarray: it must return a DataFrame with the columns label and confidence$",
        ),
        (None, "the model returned NoneType"),
        (["cat"], "the model returned list"),
        ([CAT, CAT], "^the model returned 2 rows for 1 images: it must return one row per image$"),
        ([], "the model returned 0 rows for 1 images"),
        ([{**CAT, "confidence": 97.3}], "^row 0 has confidence 97.3: it must be a number from 0 to 1$"),
        ([{**CAT, "confidence": -0.1}], "row 0 has confidence -0.1"),
        ([{**CAT, "confidence": 1.00001}], "row 0 has confidence 1.00001"),
        ([{**CAT, "confidence": "high"}], "^row 0 has confidence 'high': it must be a number$"),
        ([{**CAT, "confidence": None}], "row 0 has confidence None"),
        ([{**CAT, "probabilities": [0.9, 0.1]}], "row 0 has probabilities of type list: they must be a dict of class name"),
        ([{**CAT, "probabilities": {"cat": 2}}], "row 0 has probability of cat 2: it must be a number from 0 to 1"),
        ([{**CAT, "probabilities": {"cat": float("nan")}}], "row 0 has probability of cat nan"),
        ([{**CAT, "in_domain": "perhaps"}], "row 0 has in_domain 'perhaps': it must be a number"),
        ([{**CAT, "domain_score": []}], r"row 0 has domain_score \[\]: it must be a number"),
        ([{**CAT, "heatmap": "no base64!"}], "row 0 has a heatmap of type str that is not base64"),
        ([{**CAT, "heatmap": 7}], "row 0 has a heatmap of type int that is not base64"),
    ],
)
def test_predictions_that_cannot_be_used_are_the_models_failure(output: object, message: str):
    with pytest.raises(ModelFailed, match=message):
        to_predictions(output, 1)


def test_the_row_that_cannot_be_used_is_named():
    with pytest.raises(ModelFailed, match="row 1 has confidence 7"):
        to_predictions([CAT, {**CAT, "confidence": 7}], 2)


def test_a_model_that_raises_has_failed():
    with pytest.raises(ModelFailed, match=r"^the model failed on 2 images: KeyError: 'photo'$"):
        function_predictor(lambda frame: frame["photo"])([b"x", b"y"], False)


def test_a_model_that_raises_this_projects_errors_has_failed():
    def refuse(frame: pd.DataFrame) -> None:
        raise InvalidData("these are no images\nof mine")

    with pytest.raises(ModelFailed, match=r"the model failed on 1 images: InvalidData: these are no images$"):
        function_predictor(refuse)([b"x"], False)


def test_a_model_that_returns_too_few_rows_has_failed():
    with pytest.raises(ModelFailed, match="returned 1 rows for 2 images"):
        function_predictor(lambda frame: [CAT])([b"x", b"y"], False)


def test_a_model_without_probabilities_shares_the_rest_of_its_confidence():
    two = probability_table([Prediction("dog", 0.8), Prediction(error="corrupt")], ("cat", "dog"))
    assert two[0].tolist() == pytest.approx([0.2, 0.8])
    assert np.isnan(two[1]).all()
    assert probability_table([Prediction("b", 0.7)], ("a", "b", "c", "d"))[0].tolist() == pytest.approx([0.1, 0.7, 0.1, 0.1])
    assert probability_table([Prediction("x", 0.5)], ("a",))[0].tolist() == [0.5]


def test_a_class_without_probability_has_none():
    assert probability_table([Prediction("a", 1.0, {"a": 1.0})], ("b", "a")).tolist() == [[0.0, 1.0]]
