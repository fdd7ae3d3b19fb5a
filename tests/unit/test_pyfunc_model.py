"""The pyfunc: rows, signature, model_config, Spark, and how it behaves in MLflow's scoring server."""

from __future__ import annotations

import base64
import gc
import io
import json
import sys
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.pyfunc import PyFuncModel
from mlflow.pyfunc.model import PythonModelContext
from mlflow.pyfunc.scoring_server import load_model_with_mlflow_config
from PIL import Image

from catdog_pyfunc import bundle, flavor, internals, pyfunc_model
from catdog_pyfunc.classifier import Classifier, Prediction
from catdog_pyfunc.errors import InvalidSetting
from catdog_pyfunc.preprocessing import Limits
from catdog_pyfunc.pyfunc_model import CatDogModel, signature
from tests.unit import spark_types

COLUMNS = ["label", "confidence", "probabilities", "error", "in_domain", "domain_score", "heatmap"]
KEYS = "engine, threads, max_bytes, max_pixels"


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> PyFuncModel:
    return mlflow.pyfunc.load_model(str(tiny_model))


def loaded(tiny_model: Path, **config: object) -> CatDogModel:
    """The model with a model_config that MLflow has not filtered."""
    model = CatDogModel()
    model.load_context(PythonModelContext({"bundle": str(tiny_model / "artifacts" / "bundle")}, config))
    return model


def test_a_row_holds_every_column_of_the_signature(model: PyFuncModel, images: list[bytes]):
    predictions = model.predict(pd.DataFrame({"image": [images[0], b"%PDF-1.7 \xff", images[-1]]}))
    assert list(predictions.columns) == COLUMNS
    assert [spec.name for spec in model.metadata.get_output_schema().inputs] == COLUMNS
    first, corrupt, last = predictions.to_dict("records")
    for row in (first, last):
        assert row["error"] is row["heatmap"] is None
        assert list(row["probabilities"]) == ["cat", "dog", "owl"]
        assert sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-12)
        assert row["confidence"] == max(row["probabilities"].values()) == row["probabilities"][row["label"]]
        assert row["in_domain"] is (row["domain_score"] >= 0.25)
    assert corrupt.pop("probabilities") == {"cat": None, "dog": None, "owl": None}
    assert corrupt.pop("error").startswith("image 1 is not an image this model reads")
    assert set(corrupt.values()) == {None}


def test_rows_are_what_the_classifier_predicts(tiny_model: Path, model: PyFuncModel, images: list[bytes]):
    expected = flavor.load_model(str(tiny_model)).predict(images)
    rows = model.predict(pd.DataFrame({"image": images})).to_dict("records")
    for prediction, row in zip(expected, rows, strict=True):
        assert {name: getattr(prediction, name) for name in COLUMNS} == row


def test_no_images_give_no_rows(model: PyFuncModel):
    empty = model.predict(pd.DataFrame({"image": pd.Series([], dtype=object)}))
    assert (len(empty), list(empty.columns)) == (0, COLUMNS)


def test_explain_fills_the_column_heatmap(model: PyFuncModel, images: list[bytes]):
    frame = pd.DataFrame({"image": [images[0], b"\xff corrupt"]})
    good, bad = model.predict(frame, params={"explain": True})["heatmap"]
    shown = Image.open(io.BytesIO(base64.b64decode(good)))
    assert (shown.format, shown.size) == ("PNG", (64, 64))
    assert bad is None
    assert model.predict(frame, params={"explain": False})["heatmap"].tolist() == [None, None]
    assert model.predict(frame)["heatmap"].tolist() == [None, None]


def test_in_the_scoring_server_rows_are_the_same_without_a_data_frame(
    model: PyFuncModel, images: list[bytes], monkeypatch: pytest.MonkeyPatch
):
    frame = pd.DataFrame({"image": [images[0], b"\xff corrupt"]})
    expected = model.predict(frame).to_dict("records")
    monkeypatch.setenv(internals.IN_SCORING_SERVER, "true")
    assert model.predict(frame) == expected
    monkeypatch.setenv(internals.IN_SCORING_SERVER, "false")
    assert isinstance(model.predict(frame), pd.DataFrame)


def test_images_may_come_in_any_container(model: PyFuncModel, images: list[bytes]):
    files = images[:2]
    text = [base64.b64encode(file).decode() for file in files]
    expected = model.predict(pd.DataFrame({"image": files})).to_dict("records")
    array = np.array(files, dtype=object)
    named = [
        pd.Series(files, name="image"),
        {"image": files},
        {"image": text},
        {"image": array},
        [{"image": cell} for cell in text],
    ]
    for given in named:
        assert model.predict(given).to_dict("records") == expected
    # MLflow refuses unnamed cells if the input has a name; the model itself accepts them.
    python_model = model.unwrap_python_model()
    for given in (files, text, tuple(text), array, array.reshape(2, 1), np.array(text), pd.Series(text), {"image": text}):
        assert python_model.predict(None, given).to_dict("records") == expected
    for given in (files[0], text[0], {"image": text[0]}, [files[0]]):
        assert python_model.predict(None, given).to_dict("records") == expected[:1]
    # A single row that holds several images, as MLflow makes of {"image": [text, text]}.
    for given in ([text], [tuple(text)], [array]):
        assert python_model.predict(None, given).to_dict("records") == expected


def test_rows_survive_json(model: PyFuncModel, images: list[bytes]):
    frame = model.predict(pd.DataFrame({"image": [base64.b64encode(images[0]), b"?"]}))
    good, bad = json.loads(frame.to_json(orient="records"))
    assert good["label"] in ("cat", "dog", "owl")
    assert bad["label"] is None


@pytest.fixture
def spark(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, module in spark_types.modules().items():
        monkeypatch.setitem(sys.modules, name, module)


@pytest.mark.usefixtures("spark")
@pytest.mark.parametrize("explain", [False, True])
@pytest.mark.parametrize("corrupt", [[], [1], [0, 1]])
def test_spark_gets_every_column_that_the_signature_promises(
    explain: bool, corrupt: list[int], model: PyFuncModel, images: list[bytes]
):
    # What `mlflow.pyfunc.spark_udf` does without `result_type`: infer the type, then convert each batch to it.
    spark_type = mlflow.pyfunc._infer_spark_udf_return_type(model.metadata.get_output_schema())
    assert spark_type.fieldNames() == COLUMNS
    batch = pd.DataFrame({"image": [b"\xff corrupt" if row in corrupt else images[row] for row in range(2)]})
    predictions = model.predict(batch, params={"explain": explain})
    converted = mlflow.pyfunc._convert_struct_values(predictions, spark_type)
    assert list(converted.columns) == COLUMNS
    for row, (before, after) in enumerate(zip(predictions.to_dict("records"), converted.to_dict("records"), strict=True)):
        assert after["probabilities"] == before["probabilities"]
        if row in corrupt:
            assert after["error"] == before["error"]
            assert pd.isna(after["confidence"])
            assert pd.isna(after["domain_score"])
        else:
            assert all(after[name] == before[name] for name in ("label", "confidence", "in_domain", "domain_score"))
            assert (after["heatmap"] == before["heatmap"]) is True


def test_the_signature_takes_one_named_column_and_explain():
    described = signature(("cat", "dog"))
    assert described.inputs.to_dict() == [{"type": "string", "name": "image", "required": True}]
    assert described.params.to_dict() == [{"name": "explain", "type": "boolean", "default": False, "shape": None}]
    types = {spec["name"]: spec["type"] for spec in described.outputs.to_dict()}
    assert types == {
        **dict.fromkeys(("label", "error", "heatmap"), "string"),
        **dict.fromkeys(("confidence", "domain_score"), "double"),
        **{"in_domain": "boolean", "probabilities": "object"},
    }
    assert not any(spec["required"] for spec in described.outputs.to_dict())
    (probabilities,) = (spec for spec in described.outputs.to_dict() if spec["name"] == "probabilities")
    assert probabilities["properties"] == {name: {"type": "double", "required": False} for name in ("cat", "dog")}


def test_every_prediction_field_is_a_column():
    assert list(pyfunc_model._row(Prediction(), ())) == list(Prediction.__dataclass_fields__) == COLUMNS


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"treads": 4, "bytes": 1}, f"model_config has unknown 'bytes', 'treads': it may contain {KEYS}"),
        ({"threads": "many"}, "model_config has threads='many': give a whole number of at least 0"),
        ({"threads": -1}, "model_config has threads=-1: give a whole number of at least 0"),
        ({"threads": True}, "model_config has threads=True: give a whole number of at least 0"),
        ({"max_bytes": 0}, "model_config has max_bytes=0: give a whole number of at least 1"),
        ({"max_pixels": 0.5}, "model_config has max_pixels=0.5: give a whole number of at least 1"),
        ({"engine": "tpu"}, "engine 'tpu' is unknown: give one of auto, onnx, torch"),
    ],
)
def test_model_config_that_cannot_be_used_is_refused(config: dict[str, object], message: str, tiny_model: Path):
    with pytest.raises(InvalidSetting) as caught:
        loaded(tiny_model, **config)
    assert str(caught.value) == message


def test_model_config_reaches_the_classifier(tiny_model: Path, monkeypatch: pytest.MonkeyPatch):
    received: list[dict[str, object]] = []

    def classifier(opened: bundle.Bundle, **options: object) -> Classifier:
        received.append(options)
        return Classifier(opened)

    monkeypatch.setattr(pyfunc_model, "Classifier", classifier)
    loaded(tiny_model)
    loaded(tiny_model, engine="onnx", threads=1, max_bytes=1, max_pixels=1)
    defaults = {"engine": "auto", "threads": None, "limits": Limits()}
    assert received == [defaults, {"engine": "onnx", "threads": 1, "limits": Limits(1, 1)}]


def test_serving_model_config_is_applied_and_unknown_keys_stop_the_server(tiny_model: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SERVING_MODEL_CONFIG", '{"max_byte": 1000}')
    with pytest.raises(InvalidSetting, match="unknown 'max_byte'"):
        load_model_with_mlflow_config(str(tiny_model))
    monkeypatch.setenv("SERVING_MODEL_CONFIG", '{"max_bytes": 100}')
    model = load_model_with_mlflow_config(str(tiny_model))
    (error,) = model.predict(pd.DataFrame({"image": [b"\xff\xd8\xff" + bytes(200)]}))["error"]
    assert error == "image 0 has 203 bytes, more than 100; send a smaller file"


@pytest.mark.parametrize("config", ["", "{}", "[]", '["max_byte"]'])
def test_an_empty_serving_model_config_is_ignored(config: str, tiny_model: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SERVING_MODEL_CONFIG", config)
    loaded(tiny_model)


def test_objects_are_frozen_only_in_the_scoring_servers_process(tiny_model: Path, monkeypatch: pytest.MonkeyPatch):
    calls: list[str] = []
    monkeypatch.setattr(gc, "collect", lambda: calls.append("collect"))
    monkeypatch.setattr(gc, "freeze", lambda: calls.append("freeze"))
    loaded(tiny_model)
    assert calls == []
    monkeypatch.setenv(internals.SERVED_MODEL, "models:/m@production")
    loaded(tiny_model)
    assert calls == ["collect", "freeze"]


def test_a_model_loads_with_unpickling_forbidden(tiny_model: Path, images: list[bytes], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    model = mlflow.pyfunc.load_model(str(tiny_model))
    assert model.predict(pd.DataFrame({"image": images[:1]}))["error"][0] is None
    assert issubclass(CatDogModel, mlflow.pyfunc.PythonModel)
