"""The contracts of other servers: V2, V1, Hugging Face, MLflow; each with models of this project and of others."""

from __future__ import annotations

import base64
import gzip
import json
import struct
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow.models import ModelSignature
from mlflow.types.schema import ColSpec, DataType, ParamSchema, ParamSpec, Schema

from tests import request_formats
from tests.unit.served import FakeModel, get, load_saved, post, serve

JSON = {"Content-Type": "application/json"}
OUTPUTS = {"label": "BYTES", "confidence": "FP64", "probabilities": "BYTES", "error": "BYTES", "in_domain": "BOOL"}


def v2(data: list[Any], **more: Any) -> dict[str, Any]:
    return {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [len(data)], "data": data}], **more}


def binary(*images: bytes, size: int | None = None, cut: int = 0, **more: Any) -> dict[str, Any]:
    """A request with a binary tensor, as `post` takes it."""
    tensor = b"".join(struct.pack("<I", len(image)) + image for image in images)
    tensor = tensor[: len(tensor) - cut]
    given = {"binary_data_size": len(tensor) if size is None else size}
    head = {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [len(images)], "parameters": given}], **more}
    text = json.dumps(head).encode()
    return {"content": text + tensor, "headers": {"Inference-Header-Content-Length": str(len(text))}}


def tensors(answer: dict[str, Any]) -> dict[str, list[Any]]:
    return {tensor["name"]: tensor["data"] for tensor in answer["outputs"]}


@pytest.mark.parametrize("body", [{"json": v2(["cat", "damaged"])}, binary(b"cat", b"damaged")], ids=["json", "binary"])
@pytest.mark.parametrize("path", ["/v2/models/cats/infer", "/v2/models/cats/versions/3/infer"])
def test_v2_answers_with_a_tensor_per_column(body: dict[str, Any], path: str):
    answer = post(serve(FakeModel(), name="cats", version="3"), path, **body).json()
    assert (answer["model_name"], answer["model_version"]) == ("cats", "3")
    assert "id" not in answer
    assert {tensor["name"]: tensor["datatype"] for tensor in answer["outputs"]}.items() >= OUTPUTS.items()
    assert all(tensor["shape"] == [2] for tensor in answer["outputs"])
    columns = tensors(answer)
    assert (columns["label"], columns["confidence"]) == (["cat", ""], [0.75, None])
    assert (columns["error"], columns["in_domain"]) == (["", "not an image"], [True, False])
    assert [json.loads(text) for text in columns["probabilities"]] == [
        {"cat": 0.75, "dog": 0.25},
        {"cat": None, "dog": None},
    ]
    assert columns["heatmap"] == ["", ""]


def test_v2_returns_the_outputs_that_were_asked_for_in_their_order_and_the_id():
    body = v2(["cat"], id="order-17", parameters={"explain": True}, outputs=[{"name": "heatmap"}, {"name": "label"}])
    answer = post(serve(FakeModel()), "/v2/models/model/infer", json=body).json()
    assert (answer["id"], list(tensors(answer).items())) == ("order-17", [("heatmap", ["cG5n"]), ("label", ["cat"])])
    assert "model_version" not in answer


def test_v2_binary_tensors_may_be_compressed():
    body = binary(b"cat", b"dog")
    headers = {**body["headers"], "Content-Encoding": "gzip"}
    answer = post(serve(FakeModel()), "/v2/models/model/infer", content=gzip.compress(body["content"]), headers=headers)
    assert tensors(answer.json())["label"] == ["cat", "dog"]


IMAGE = {"name": "image", "datatype": "BYTES", "shape": [1], "data": ["cat"]}


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        ({"json": {}}, 422, "`inputs` is not a list with one tensor"),
        ({"json": {"inputs": []}}, 422, "`inputs` is not a list with one tensor"),
        ({"json": {"inputs": [IMAGE, IMAGE]}}, 422, "`inputs` is not a list with one tensor"),
        ({"json": {"inputs": ["cat"]}}, 422, "`inputs` is not a list with one tensor"),
        ({"json": {"inputs": [{**IMAGE, "datatype": "FP32"}]}}, 422, "the input's datatype is 'FP32': send BYTES"),
        ({"json": {"inputs": [{**IMAGE, "data": "cat"}]}}, 422, "`data` is not a list of images in base64"),
        ({"json": v2([["cat"]])}, 422, "`data` is not a list of images in base64"),
        ({"json": v2([])}, 422, "the request has no image"),
        ({"json": v2(["cat"], outputs=[{"name": "colour"}])}, 422, "there is no output 'colour': choose from label, conf"),
        ({"json": v2(["cat"], outputs=[{"name": ["label"]}])}, 422, "there is no output ['label']: choose from label"),
        ({"content": b"\x00\x01", "headers": JSON}, 400, "the body is not JSON"),
        (binary(), 422, "the request has no image"),
        (binary(b"cat", size=6), 400, "binary_data_size is not the 7 bytes that follow the JSON part"),
        (binary(b"cat", size=2**40), 400, "binary_data_size is not the 7 bytes"),
        (binary(b"cat", cut=1), 400, "the binary tensor ends within an element"),
        (binary(b"cat", b"dog", cut=5), 400, "the binary tensor ends within an element"),
        ({"json": json.loads(binary(b"cat")["content"][:-7])}, 400, "binary_data_size is not the 0 bytes"),
        ({"content": b"{}", "headers": {"Inference-Header-Content-Length": "3"}}, 400, "'3' is not the length of the"),
        ({"content": b"{}", "headers": {"Inference-Header-Content-Length": "-1"}}, 400, "'-1' is not the length of the"),
        ({"content": b"{}", "headers": {"Inference-Header-Content-Length": "1"}}, 400, "the body is not JSON"),
    ],
)
def test_v2_names_what_is_wrong_with_a_tensor(body: dict[str, Any], status: int, reason: str):
    response = post(serve(FakeModel()), "/v2/models/model/infer", **body)
    assert (response.status_code, list(response.json())) == (status, ["error"])
    assert reason in response.json()["error"]


def test_v2_describes_the_server_and_the_model():
    application = serve(FakeModel(), name="cats", version="3")
    assert get(application, "/v2").json()["extensions"] == ["binary_tensor_data"]
    assert get(application, "/v2/models").json() == {"models": ["cats"]}
    for path in ("/v2/models/cats", "/v2/models/cats/versions/3"):
        described = get(application, path).json()
        assert (described["name"], described["versions"]) == ("cats", ["3"])
        assert described["inputs"] == [{"name": "image", "datatype": "BYTES", "shape": [-1]}]
        assert {output["name"]: output["datatype"] for output in described["outputs"]}.items() >= OUTPUTS.items()
        assert get(application, f"{path}/ready").json() == {"name": "cats", "ready": True}
    for path in ("/v2/models/dogs", "/v2/models/cats/versions/2", "/v2/models/dogs/ready"):
        assert get(application, path).status_code == 404


@pytest.mark.parametrize("path", ["/v1/models/cats:predict", "/aip/predict"])
@pytest.mark.parametrize("instance", ["cat", {"b64": "cat"}, {"image": "cat"}, {"image": {"b64": "cat"}}])
@pytest.mark.parametrize(("parameters", "heatmap"), [({}, None), ({"parameters": {"explain": True}}, "cG5n")])
def test_v1_takes_instances(path: str, instance: object, parameters: dict[str, Any], heatmap: str | None):
    application = serve(FakeModel(), name="cats", predict_route="/aip/predict")
    rows = post(application, path, json={"instances": [instance, "dog"], **parameters}).json()["predictions"]
    assert [(row["label"], row["heatmap"]) for row in rows] == [("cat", heatmap), ("dog", heatmap)]


@pytest.mark.parametrize("content", [{}, {"instances": "cat"}, {"instances": [5]}, {"instances": [{"photo": "cat"}]}])
def test_v1_names_what_is_wrong_with_instances(content: dict[str, Any]):
    response = post(serve(FakeModel()), "/v1/models/model:predict", json=content)
    assert response.status_code == 422
    assert response.json()["error"].startswith("`instances` is not a list of images")


def test_v1_knows_its_model():
    application = serve(FakeModel(), name="cats")
    assert get(application, "/v1/models").json() == {"models": ["cats"]}
    assert get(application, "/v1/models/cats").json() == {"name": "cats", "ready": True}
    assert get(application, "/v1/models/dogs").status_code == 404


@pytest.mark.parametrize(
    ("body", "ranked"),
    [
        ({"content": b"dog", "headers": {"Content-Type": "image/jpeg"}}, ["dog", "cat"]),
        ({"json": {"inputs": "dog"}}, ["dog", "cat"]),
        ({"json": {"inputs": "dog", "parameters": {"top_k": 1, "function_to_apply": "softmax"}}}, ["dog"]),
        ({"json": {"inputs": "dog", "parameters": {"top_k": 9}}}, ["dog", "cat"]),
    ],
)
def test_hugging_faces_answer_ranks_the_classes(body: dict[str, Any], ranked: list[str]):
    entries = post(serve(FakeModel()), "/", **body).json()
    assert entries == [{"label": label, "score": {"dog": 0.75, "cat": 0.25}[label]} for label in ranked]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"json": {"inputs": "dog", "parameters": {"top_k": 0}}}, "`top_k` is 0: send a whole number of at least 1"),
        ({"json": {"inputs": "dog", "parameters": {"top_k": "2"}}}, "`top_k` is '2': send a whole number"),
        ({"json": {"inputs": "dog", "parameters": {"function_to_apply": "sigmoid"}}}, "`parameters` can only have"),
        ({"json": {"inputs": "dog", "parameters": [1]}}, "`parameters` can only have"),
        ({"json": {}}, "`inputs` is not a list of images"),
        ({"content": b"damaged"}, "not an image"),
        ({"content": b""}, "the request has no image"),
    ],
)
def test_hugging_faces_route_names_what_is_wrong(body: dict[str, Any], reason: str):
    response = post(serve(FakeModel()), "/", **body)
    assert (response.status_code, response.json()["error"][: len(reason)]) == (422, reason)


def test_hugging_faces_client_learns_the_models_name():
    assert get(serve(FakeModel(), name="cats", version="3"), "/info").json() == {"model_id": "cats", "sha": "3"}


def test_invocations_takes_mlflows_formats_and_image_files(tiny_model: Path, images: list[bytes]):
    application, image = serve(mlflow.pyfunc.load_model(str(tiny_model))), images[0]
    expected = post(application, "/predict", content=image).json()
    assert expected["predictions"][0]["label"] in ("cat", "dog", "owl")
    csv = {"content": request_formats.csv(image), "headers": {"Content-Type": "text/csv"}}
    raw = {"content": image, "headers": {"Content-Type": "image/jpeg"}}
    for body in (csv, raw, *({"json": body} for body in request_formats.bodies(image).values())):
        assert post(application, "/invocations", **body).json() == expected
    table = {"inputs": [base64.b64encode(image).decode()], "params": {"explain": True}}
    explained = post(application, "/predict?explain=true", content=image).json()
    assert explained["predictions"][0]["heatmap"]
    assert post(application, "/invocations", json=table).json() == explained
    assert post(application, "/invocations?explain=true", **raw).json() == explained
    assert get(application, "/version").text == mlflow.__version__


@pytest.mark.parametrize(
    ("body", "reason"),
    [({"json": {"nonsense": 1}}, "The input must be a JSON dictionary"), ({"content": b"{", "headers": JSON}, "JSON")],
)
def test_invocations_refuses_in_mlflows_own_words(body: dict[str, Any], reason: str):
    response = post(serve(FakeModel()), "/invocations", **body)
    assert response.status_code == 400
    assert response.json()["error_code"] == "BAD_REQUEST"
    assert reason in response.json()["message"]


SIZES = '[{"size": len(cell), "type": type(cell).__name__} for cell in cells]'
TYPED = Schema([ColSpec(DataType.long, "size"), ColSpec(DataType.string, "type")])
CAT = base64.b64encode(b"cat").decode()


@pytest.mark.parametrize(("kind", "row"), [("binary", {"size": 3, "type": "bytes"}), ("string", {"size": 4, "type": "str"})])
@pytest.mark.parametrize("outputs", [None, TYPED])
@pytest.mark.parametrize("table", [True, False])
def test_any_model_with_a_column_of_images_is_served(
    kind: str, row: dict[str, Any], outputs: Schema | None, table: bool, tmp_path: Path
):
    returned = f"return pd.DataFrame({SIZES})" if table else f"return {SIZES}"
    signature = ModelSignature(Schema([ColSpec(DataType[kind], "photo")]), outputs)
    application = serve(load_saved(tmp_path, returned, signature), "photo")
    for body in ({"content": b"cat"}, {"files": {"photo": b"cat"}}, {"json": {"image": CAT}}):
        assert post(application, "/predict?explain=true", **body).json() == {"predictions": [row]}
    v1 = post(application, "/v1/models/model:predict", json={"instances": [{"b64": CAT}]})
    mlflows = post(application, "/invocations", json={"dataframe_split": {"columns": ["photo"], "data": [[CAT]]}})
    assert v1.json() == mlflows.json() == {"predictions": [row]}
    for body in ({"json": v2([CAT])}, binary(b"cat")):
        columns = tensors(post(application, "/v2/models/model/infer", **body).json())
        assert columns == ({name: [value] for name, value in row.items()} if outputs else {"prediction": [json.dumps(row)]})
    described = get(application, "/v2/models/model").json()
    assert described["inputs"][0]["name"] == "photo"
    assert [output["datatype"] for output in described["outputs"]] == (["INT64", "BYTES"] if outputs else ["BYTES"])
    ranked = post(application, "/", content=b"cat")
    assert (ranked.status_code, ranked.json()["error"]) == (422, "this model returns no `probabilities`: use /predict")


def test_other_models_explain_if_they_can_and_name_what_they_cannot_use(tmp_path: Path):
    explaining = ParamSchema([ParamSpec("explain", DataType.boolean, False)])
    signature = ModelSignature(Schema([ColSpec(DataType.binary, "photo")]), params=explaining)
    application = serve(load_saved(tmp_path, 'return [params["explain"]] * len(cells)', signature), "photo")
    for query, explained in (("", False), ("?explain=true", True)):
        assert post(application, f"/predict{query}", content=b"cat").json() == {"predictions": [explained]}
    response = post(application, "/predict", json={"image": "no base64!"})
    assert response.status_code == 422
    assert response.json()["error"].startswith("an image is not base64: ")


@pytest.mark.parametrize(
    ("predicting", "status", "expected"),
    [
        ("return pd.DataFrame({'score': [float('nan'), 0.5]})", 200, {"predictions": [{"score": None}, {"score": 0.5}]}),
        ("return ['cat']", 500, {"error": "the model failed: ValueError: it returned 1 rows for 2 images"}),
        ("return 'cat'", 500, {"error": "the model failed: ValueError: it returned 1 rows for 2 images"}),
        ("raise RuntimeError('no such layer')", 500, {"error": "the model failed: RuntimeError: no such layer"}),
    ],
)
def test_what_other_models_return_becomes_a_row_per_image_or_an_error(
    predicting: str, status: int, expected: dict[str, Any], tmp_path: Path
):
    signature = ModelSignature(Schema([ColSpec(DataType.binary, "photo")]))
    application = serve(load_saved(tmp_path, predicting, signature), "photo")
    response = post(application, "/predict", files=[("files", b"cat"), ("files", b"dog")])
    assert (response.status_code, response.json()) == (status, expected)
