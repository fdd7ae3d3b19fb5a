"""The picture that a deployed model must answer first: which one, and what counts as an answer."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import mlflow
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types.schema import ColSpec, DataType, Schema
from mlflow_catdog.deployments.smoke_request import request_for
from mlflow_catdog.runtime.smoke_test import WrongAnswer, check
from PIL import Image


def saved(folder: Path, columns: list[ColSpec] | None, example: pd.DataFrame | None = None) -> Path:
    signature = ModelSignature(Schema(columns)) if columns else None  # type: ignore[arg-type]
    code = folder / "model.py"
    code.write_text(
        "import mlflow\n\n\nclass Model(mlflow.pyfunc.PythonModel):\n"
        "    def predict(self, context, model_input, params=None):\n        return ['cat'] * len(model_input)\n\n\n"
        "mlflow.models.set_model(Model())\n"
    )
    mlflow.pyfunc.save_model(
        str(folder / "model"),
        python_model=str(code),
        signature=signature,
        input_example=example,
        pip_requirements=["mlflow"],
    )
    return folder / "model"


def test_the_models_own_example_is_asked(tmp_path: Path):
    model = saved(tmp_path, None, pd.DataFrame({"image": ["text"], "threshold": [0.5]}))
    assert request_for(model)["dataframe_split"] == {"columns": ["image", "threshold"], "data": [["text", 0.5]]}


@pytest.mark.parametrize(
    ("columns", "column"),
    [
        (None, "image"),
        ([ColSpec(DataType.binary, "photo")], "photo"),
        ([ColSpec(DataType.double, "least"), ColSpec(DataType.string, "photo")], "photo"),
        ([ColSpec(DataType.string, "name"), ColSpec(DataType.binary, "image")], "image"),
    ],
)
def test_without_an_example_a_drawn_picture_goes_into_the_models_column(
    columns: list[ColSpec] | None, column: str, tmp_path: Path
):
    asked = request_for(saved(tmp_path, columns))["dataframe_split"]
    assert asked["columns"] == [column]
    assert Image.open(io.BytesIO(base64.b64decode(asked["data"][0][0]))).format == "JPEG"


def test_a_model_whose_column_cannot_be_guessed_is_refused(tmp_path: Path):
    model = saved(tmp_path, [ColSpec(DataType.string, "left"), ColSpec(DataType.string, "right")])
    with pytest.raises(MlflowException, match="the model takes left, right: which of them is the picture"):
        request_for(model)


@pytest.mark.parametrize("answer", [["cat"], [{"label": "cat", "error": None}], {"label": "cat"}, [[0.1, 0.9]]])
def test_one_prediction_of_any_kind_is_an_answer(answer: object):
    said = check(200, json.dumps({"predictions": answer}).encode())
    assert said == (answer[0] if isinstance(answer, list) else answer)


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (400, b'{"message": "no", "stack_trace": "Traceback\\n  File\\nKeyError: image"}', "HTTP 400: no KeyError: image"),
        (400, b'{"message": "no"}', "HTTP 400: no"),
        (502, b"<html>", "HTTP 502: <html>"),
        (200, b"<html>", "no predictions: <html>"),
        (200, b"[]", "no predictions"),
        (200, b'{"predictions": []}', "with 0 predictions"),
        (200, b'{"predictions": ["cat", "dog"]}', "with 2 predictions"),
        (200, b'{"predictions": [null]}', "with 1 predictions"),
        (200, b'{"predictions": [{"label": null, "error": "upside down"}]}', "can't read a good picture: upside down"),
    ],
)
def test_anything_else_is_told(status: int, body: bytes, message: str):
    with pytest.raises(WrongAnswer, match=r"^the model ") as wrong:
        check(status, body)
    assert message in str(wrong.value)
