"""The server of a deployment answers each kind of client, by the real one, with what the model says in this process."""

from __future__ import annotations

import base64
import gzip
import io
import json
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import requests
from mlflow.deployments import get_deploy_client
from mlflow.pyfunc.scoring_server.client import ScoringServerClient
from mlflow_catdog.deployments.client import CatDogDeploymentClient
from mlflow_catdog.deployments.options import Options
from PIL import Image

from tests.integration.same_rows import assert_same
from tests.project import MODEL, Deployment
from tests.request_formats import bodies, csv, parquet, post

Rows = Sequence[dict[str, Any]]
COLUMNS = ["label", "confidence", "probabilities", "error", "in_domain", "domain_score", "heatmap"]


@pytest.fixture
def encoded(files: Sequence[Path]) -> list[str]:
    return [base64.b64encode(file.read_bytes()).decode() for file in files]


def assert_is_heatmap(text: str) -> None:
    assert Image.open(io.BytesIO(base64.b64decode(text))).format == "PNG"


# Triton's client: the Open Inference Protocol, V2


@pytest.fixture(scope="module")
def triton() -> Any:
    return pytest.importorskip("tritonclient.http", reason="tritonclient is not installed: pip install 'tritonclient[http]'")


@pytest.fixture
def triton_client(triton: Any, deployment: Deployment) -> Iterator[Any]:
    with triton.InferenceServerClient(deployment.address.removeprefix("http://")) as client:
        yield client


def tensor(triton: Any, files: Sequence[Path], binary: bool) -> Any:
    """The images as bytes or, as a JSON tensor can only have text, in base64."""
    images = [file.read_bytes() for file in files]
    cells = np.array(images if binary else [base64.b64encode(image) for image in images], dtype=object)
    made = triton.InferInput("image", cells.shape, "BYTES")
    made.set_data_from_numpy(cells, binary_data=binary)
    return made


@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
@pytest.mark.parametrize("binary", [False, True], ids=["JSON", "binary"])
def test_tritonclient_infers(
    binary: bool, compression: str | None, triton: Any, triton_client: Any, files: Sequence[Path], in_process: Rows
):
    result = triton_client.infer(
        MODEL, [tensor(triton, files, binary)], "2", request_id="seven", request_compression_algorithm=compression
    )
    labels, probabilities = (result.as_numpy(name).tolist() for name in ("label", "probabilities"))
    rows = [{"label": label, "probabilities": json.loads(each)} for label, each in zip(labels, probabilities, strict=True)]
    assert_same(rows, in_process)
    assert result.as_numpy("confidence") == pytest.approx([row["confidence"] for row in in_process], abs=1e-6)
    response = result.get_response()
    assert (response["model_name"], response["model_version"], response["id"]) == (MODEL, "2", "seven")


def test_tritonclient_names_the_outputs_it_wants_and_asks_for_heatmaps(
    triton: Any, triton_client: Any, files: Sequence[Path]
):
    wanted = [triton.InferRequestedOutput(name) for name in ("heatmap", "label")]
    result = triton_client.infer(MODEL, [tensor(triton, files, True)], outputs=wanted, parameters={"explain": True})
    assert [output["name"] for output in result.get_response()["outputs"]] == ["heatmap", "label"]
    for heatmap in result.as_numpy("heatmap"):
        assert_is_heatmap(heatmap)


def test_tritonclient_reads_health_and_metadata(triton_client: Any):
    assert triton_client.is_server_live()
    assert triton_client.is_server_ready()
    assert triton_client.is_model_ready(MODEL)
    assert triton_client.is_model_ready(MODEL, "2")
    assert not triton_client.is_model_ready(MODEL, "1")
    assert not triton_client.is_model_ready("Other")
    assert triton_client.get_server_metadata()["extensions"] == ["binary_tensor_data"]
    model = triton_client.get_model_metadata(MODEL)
    assert (model["name"], model["versions"]) == (MODEL, ["2"])
    assert model["inputs"] == [{"name": "image", "datatype": "BYTES", "shape": [-1]}]
    assert [output["name"] for output in model["outputs"]] == COLUMNS


def test_tritonclient_reads_the_reason_of_a_refusal(triton: Any, triton_client: Any, files: Sequence[Path]):
    pixels = triton.InferInput("image", [1, 2], "FP32").set_data_from_numpy(np.zeros((1, 2), np.float32))
    for model, inputs, status, reason in (
        (MODEL, pixels, "422", "send BYTES, one image file per element"),
        ("Other", tensor(triton, files, True), "404", "there is no /v2/models/Other/infer"),
    ):
        with pytest.raises(triton.InferenceServerException, match=reason) as refused:
            triton_client.infer(model, [inputs])
        assert refused.value.status() == status


# Hugging Face's


def test_huggingface_hub_classifies(deployment: Deployment, files: Sequence[Path], in_process: Rows):
    hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed: pip install huggingface-hub")
    client = hub.InferenceClient(model=deployment.address)
    for file, row in zip(files, in_process, strict=True):
        for image in (file, str(file), file.read_bytes()):
            best = client.image_classification(image)
            assert best[0].label == row["label"]
            assert {entry.label: entry.score for entry in best} == pytest.approx(row["probabilities"], abs=1e-6)
        (first,) = client.image_classification(file, top_k=1)
        assert (first.label, first.score) == (row["label"], pytest.approx(row["confidence"], abs=1e-6))
    with pytest.raises(hub.errors.HfHubHTTPError, match=r"(?s)422.*image 0 is .*send"):
        client.image_classification(b"no image")


# MLflow's


@pytest.mark.parametrize("request_format", list(bodies(b"")))
def test_every_json_format_of_mlflow(request_format: str, deployment: Deployment, files: Sequence[Path], in_process: Rows):
    for file, row in zip(files, in_process, strict=True):
        assert_same(post(deployment.address, bodies(file.read_bytes())[request_format]), [row])


def test_csv_and_parquet(deployment: Deployment, files: Sequence[Path], in_process: Rows):
    for file, row in zip(files, in_process, strict=True):
        image = file.read_bytes()
        assert_same(post(deployment.address, content=csv(image), kind="text/csv"), [row])
        assert_same(post(deployment.address, content=parquet(image), kind="application/vnd.apache.parquet"), [row])


def test_mlflows_scoring_server_client(deployment: Deployment, encoded: list[str], in_process: Rows):
    client = ScoringServerClient(*deployment.address.removeprefix("http://").split(":"))
    client.ping()
    assert client.get_version() == requests.get(f"{deployment.address}/version", timeout=30).text
    images = pd.DataFrame({"image": encoded})
    assert_same(client.invoke(images).get_predictions().to_dict("records"), in_process)
    for heatmap in client.invoke(images, {"explain": True}).get_predictions()["heatmap"]:
        assert_is_heatmap(heatmap)


def test_mlflow_deployments(
    deployment: Deployment, files: Sequence[Path], in_process: Rows, monkeypatch: pytest.MonkeyPatch
):
    """Docker, which knows a deployment's address, is the one thing that is not real here."""
    found = {"address": deployment.address, "options": asdict(Options())}
    monkeypatch.setattr(CatDogDeploymentClient, "get_deployment", lambda *_: found)
    client = get_deploy_client("catdog")
    assert client is not None
    images = pd.DataFrame({"image": [file.read_bytes() for file in files]})
    assert_same(client.predict("here", images).get_predictions().to_dict("records"), in_process)
    for heatmap in client.explain("here", images)["heatmap"]:
        assert_is_heatmap(heatmap)


# curl


def curl(deployment: Deployment, folder: Path, path: str, *words: str) -> Any:
    command = ["curl", "--silent", "--show-error", "--fail-with-body", f"{deployment.address}{path}", *words]
    with (folder / "cat.jpg").open("rb") as image:  # for lines that read from a pipe
        done = subprocess.run(command, cwd=folder, stdin=image, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def folder(files: Sequence[Path], tmp_path: Path) -> Path:
    for name, file in zip(("cat.jpg", "dog.jpg"), files, strict=True):
        (tmp_path / name).write_bytes(file.read_bytes())
    return tmp_path


@pytest.mark.parametrize("path", ["/predict", "/invocations"])
@pytest.mark.parametrize(
    "line",
    [
        "--data-binary @cat.jpg",
        "--data-binary @cat.jpg -H Content-Type:image/jpeg",
        "--data-binary @cat.jpg -H Content-Type:application/octet-stream",
        "--data-binary @cat.jpg -H Content-Type:",
        "--request POST -T cat.jpg",
        "--request POST -T -",
    ],
)
def test_curl_sends_an_image(line: str, path: str, deployment: Deployment, folder: Path, in_process: Rows):
    assert_same(curl(deployment, folder, path, *line.split())["predictions"], in_process[:1])


def test_curl_sends_forms(deployment: Deployment, folder: Path, in_process: Rows):
    for line in ("-F files=@cat.jpg -F files=@dog.jpg", "-F one=@cat.jpg -F two=@dog.jpg"):
        assert_same(curl(deployment, folder, "/predict", *line.split())["predictions"], in_process)


def test_curl_asks_for_a_heatmap(deployment: Deployment, folder: Path):
    for path in ("/predict", "/invocations"):
        (row,) = curl(deployment, folder, f"{path}?explain=true", "--data-binary", "@cat.jpg")["predictions"]
        assert_is_heatmap(row["heatmap"])


# requests


def test_requests_sends_every_body(deployment: Deployment, files: Sequence[Path], encoded: list[str], in_process: Rows):
    url, image = f"{deployment.address}/predict", files[0].read_bytes()
    form = [("files", (file.name, file.read_bytes())) for file in files]
    uris = [f"data:image/jpeg;base64,{cell}" for cell in encoded]
    pieces = (image[start : start + 1000] for start in range(0, len(image), 1000))
    compressed: dict[str, Any] = {"data": gzip.compress(image), "headers": {"Content-Encoding": "gzip"}}
    for body, expected in (
        ({"data": image}, in_process[:1]),
        ({"data": pieces}, in_process[:1]),
        (compressed, in_process[:1]),
        ({"json": {"image": encoded[0]}}, in_process[:1]),
        ({"json": {"images": encoded}}, in_process),
        ({"json": {"images": uris}}, in_process),
        ({"files": form}, in_process),
    ):
        response = requests.post(url, timeout=60, **body)
        assert response.status_code == 200, response.text
        assert_same(response.json()["predictions"], expected)
        assert [list(row) for row in response.json()["predictions"]] == [COLUMNS] * len(expected)


def test_an_image_that_cannot_be_read_is_a_row_beside_the_others(
    deployment: Deployment, files: Sequence[Path], in_process: Rows
):
    form = [("files", files[0].read_bytes()), ("files", b"no image"), ("files", files[1].read_bytes())]
    cat, broken, dog = requests.post(f"{deployment.address}/predict", files=form, timeout=60).json()["predictions"]
    assert_same([cat, dog], in_process)
    assert broken["label"] is None
    assert broken["error"].startswith("image 1 is ")
