"""The smoke test of a deployed model: which request it gets, and which responses pass."""

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
from mlflow_catdog.deployments.smoke_request import image_column, smoke_request
from mlflow_catdog.runtime.smoke_test import SmokeTestFailed, check
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


def test_the_models_own_example_is_used(tmp_path: Path):
    model = saved(tmp_path, None, pd.DataFrame({"image": ["text"], "threshold": [0.5]}))
    assert smoke_request(model)["dataframe_split"] == {"columns": ["image", "threshold"], "data": [["text", 0.5]]}


@pytest.mark.parametrize("name", ["../private.json", "{folder}/private.json"])
def test_an_example_outside_of_the_model_is_not_read(name: str, tmp_path: Path):
    (tmp_path / "private.json").write_text('{"token": "secret"}')
    model = saved(tmp_path, None, pd.DataFrame({"image": ["text"]}))
    description = model / "MLmodel"
    description.write_text(description.read_text().replace("serving_input_example.json", name.format(folder=tmp_path)))
    assert list(smoke_request(model)) == ["dataframe_split"]


@pytest.mark.parametrize(
    ("columns", "column"),
    [
        (None, "image"),
        ([ColSpec(DataType.binary, "photo")], "photo"),
        ([ColSpec(DataType.double, "least"), ColSpec(DataType.string, "photo")], "photo"),
        ([ColSpec(DataType.string, "name"), ColSpec(DataType.binary, "image")], "image"),
    ],
)
def test_without_an_example_a_drawn_image_goes_into_the_models_column(
    columns: list[ColSpec] | None, column: str, tmp_path: Path
):
    model = saved(tmp_path, columns)
    request = smoke_request(model)["dataframe_split"]
    assert image_column(model) == column
    assert request["columns"] == [column]
    assert Image.open(io.BytesIO(base64.b64decode(request["data"][0][0]))).format == "JPEG"


def test_a_model_with_an_example_is_served_though_its_column_is_unclear(tmp_path: Path):
    columns = [ColSpec(DataType.string, "left"), ColSpec(DataType.string, "right")]
    model = saved(tmp_path, columns, pd.DataFrame({"left": ["text"], "right": ["text"]}))
    assert image_column(model) == "image"


def test_a_model_whose_column_cannot_be_guessed_is_refused(tmp_path: Path):
    model = saved(tmp_path, [ColSpec(DataType.string, "left"), ColSpec(DataType.string, "right")])
    with pytest.raises(MlflowException, match="the model takes left, right: it is unclear which of them is the image"):
        smoke_request(model)


@pytest.mark.parametrize("predictions", [["cat"], [{"label": "cat", "error": None}], {"label": "cat"}, [[0.1, 0.9]]])
def test_one_prediction_of_any_kind_passes(predictions: object):
    prediction = check(200, json.dumps({"predictions": predictions}).encode())
    assert prediction == (predictions[0] if isinstance(predictions, list) else predictions)


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (400, b'{"message": "no", "stack_trace": "Traceback\\n  File\\nKeyError: image"}', "HTTP 400: no KeyError: image"),
        (400, b'{"message": "no"}', "HTTP 400: no"),
        (502, b"<html>", "HTTP 502: <html>"),
        (200, b"<html>", "without `predictions`: <html>"),
        (200, b"[]", "without `predictions`"),
        (200, b'{"predictions": []}', "0 predictions for one image"),
        (200, b'{"predictions": ["cat", "dog"]}', "2 predictions for one image"),
        (200, b'{"predictions": [null]}', '1 predictions for one image: {"predictions": [null]}'),
        (200, b'{"predictions": [{"label": null, "error": "upside down"}]}', "cannot read a valid image: upside down"),
    ],
)
def test_any_other_response_fails_with_its_reason(status: int, body: bytes, message: str):
    with pytest.raises(SmokeTestFailed, match=r"^the model ") as failure:
        check(status, body)
    assert message in str(failure.value)
