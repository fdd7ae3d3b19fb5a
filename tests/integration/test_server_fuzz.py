"""Damaged images and arbitrary bodies on every route: a 200 with rows or a refusal in JSON, never a failure."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import re
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import mlflow
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from mlflow_catdog.deployments import build
from mlflow_catdog.deployments.smoke_request import smoke_request
from mlflow_catdog.runtime import app
from mlflow_catdog.runtime.settings import Settings

from tests.conftest import restored_environment
from tests.integration.corrupt_images import corrupt, originals
from tests.integration.talks import JSON, RAW, V1, V2
from tests.project import MODEL, URI, Project

EXAMPLES, IMAGES = 240, 10  # requests on a route, and images in each
ORIGINALS: list[bytes] = []
FUZZ = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
Post = Callable[..., httpx.Response]

# A warning of Pillow about a damaged image would be an exception here, which it is in no server.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def post(project: Project, drawn: Path) -> Iterator[Post]:
    """Sends a request to the server, in this process."""
    ORIGINALS[:] = originals(drawn)
    mlflow.set_tracking_uri(project.tracking_uri)
    loop = asyncio.new_event_loop()
    with restored_environment(), build.fetched(URI) as model:  # MLflow's server leaves a mark that models look at
        mlflow.set_tracking_uri(None)
        request = json.dumps(smoke_request(model.folder)).encode()
        served = Settings(name=MODEL, version="1", max_body_mb=4)
        application, _ = loop.run_until_complete(app.load(str(model.folder), "image", served, request))
        client = httpx.AsyncClient(transport=httpx.ASGITransport(application), base_url="http://x")

        def send(path: str, content: bytes, kind: str, **headers: str) -> httpx.Response:
            headers = {"Content-Type": kind, **headers}
            return loop.run_until_complete(
                client.post(
                    path,
                    content=content,
                    headers={name.replace("_", "-"): value.encode("latin-1") for name, value in headers.items()},
                )
            )

        yield send
        loop.run_until_complete(client.aclose())
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()


@dataclass(frozen=True)
class Way:
    """How images get to a route, and where its response has the rows' labels and errors."""

    send: Callable[[Post, Sequence[bytes]], httpx.Response]
    rows: Callable[[Any], list[dict[str, Any]]] = lambda answer: answer["predictions"]
    single: bool = False  # takes one image


def texts(images: Sequence[bytes]) -> list[str]:
    return [base64.b64encode(image).decode() for image in images]


def form(images: Sequence[bytes]) -> bytes:
    part = b'--=b=\r\nContent-Disposition: form-data; name="f"; filename="f"\r\n\r\n'
    return b"".join(part + image + b"\r\n" for image in images) + b"--=b=--\r\n"


def tensor(images: Sequence[bytes], **fields: object) -> dict[str, Any]:
    return {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [len(images)], **fields}]}


def send_tensor(post: Post, images: Sequence[bytes]) -> httpx.Response:
    binary = b"".join(struct.pack("<I", len(image)) + image for image in images)
    content = json.dumps(tensor(images, parameters={"binary_data_size": len(binary)})).encode()
    return post(V2, content + binary, RAW, inference_header_content_length=str(len(content)))


def send_json(path: str, body: Callable[[Sequence[bytes]], object]) -> Callable[[Post, Sequence[bytes]], httpx.Response]:
    return lambda post, images: post(path, json.dumps(body(images)).encode(), JSON)


def tensor_rows(answer: dict[str, Any]) -> list[dict[str, Any]]:
    columns = {output["name"]: output["data"] for output in answer["outputs"]}
    pairs = zip(columns["label"], columns["error"], strict=True)
    return [{"label": label or None, "error": error or None} for label, error in pairs]


WAYS = {
    "/predict, raw": Way(lambda post, images: post("/predict", images[0], RAW), single=True),
    "/predict, form": Way(lambda post, images: post("/predict", form(images), "multipart/form-data; boundary==b=")),
    "/predict, JSON": Way(send_json("/predict", lambda images: {"images": texts(images)})),
    "/invocations, raw": Way(lambda post, images: post("/invocations", images[0], "image/jpeg"), single=True),
    "V1": Way(send_json(V1, lambda images: {"instances": [{"b64": text} for text in texts(images)]})),
    "V2, JSON": Way(send_json(V2, lambda images: tensor(images, data=texts(images))), tensor_rows),
    "V2, binary": Way(send_tensor, tensor_rows),
    "Hugging Face": Way(
        lambda post, images: post("/", images[0], "image/jpeg"),
        lambda answer: [{"label": answer[0]["label"], "error": None}],
        single=True,
    ),
}


def assert_refusal(response: httpx.Response, is_mlflows: bool = False) -> None:
    assert 400 <= response.status_code < 500, (response.status_code, response.text[:500])
    assert is_mlflows or response.json().keys() == {"error"}
    assert not {"Traceback", "stack_trace"} & set(re.findall(r"\w+", response.text))


@pytest.mark.parametrize("name", WAYS)
def test_damaged_images(name: str, post: Post):
    way, sent = WAYS[name], 0

    @FUZZ
    @given(st.lists(st.one_of(*[corrupt(ORIGINALS)] * 4, st.binary(max_size=2000)), min_size=IMAGES, max_size=IMAGES))
    def fuzz(images: list[bytes]) -> None:
        nonlocal sent
        for batch in [[image] for image in images] if way.single else [images]:
            response = way.send(post, batch)
            sent += len(batch)
            if response.status_code != 200:  # as Hugging Face has no rows for errors, and no route takes an empty body
                assert name == "Hugging Face" or not batch[0]
                assert_refusal(response)
                continue
            rows = way.rows(response.json())
            assert len(rows) == len(batch)
            assert all((row["label"] is None) == (row["error"] is not None) for row in rows)

    fuzz()
    assert sent == EXAMPLES * IMAGES


NAMES = "image images inputs instances b64 name datatype data shape outputs parameters top_k explain id binary_data_size"
WORDS = st.sampled_from([*NAMES.split(), "BYTES", "label", "softmax", "R0lGODlh", "\ud800", ""])
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), WORDS, st.text(max_size=20)),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS, inner, max_size=6),
    max_leaves=20,
)
BODIES = st.one_of(
    st.binary(max_size=300),
    VALUES.map(lambda value: json.dumps(value).encode()),
    st.dictionaries(WORDS, VALUES, max_size=6).map(lambda value: json.dumps(value).encode()),
    st.dictionaries(WORDS, VALUES).map(lambda value: json.dumps({**tensor([b""], data=["R0lGODlh"]), **value}).encode()),
    st.lists(st.binary(max_size=50), max_size=4).map(form),
)
PARQUET, CSV = "application/vnd.apache.parquet", "text/csv"
KINDS = [
    JSON,
    JSON,
    RAW,
    "image/png",
    "",
    PARQUET,
    CSV,
    "multipart/form-data",
    "multipart/form-data; boundary==b=",
    "text/plain",
    "/",
    ";",
]


@pytest.mark.parametrize("path", ["/predict", "/", V1, V2, "/invocations"])
def test_arbitrary_bodies(path: str, post: Post):
    @settings(FUZZ, max_examples=2400)
    @given(
        BODIES,
        st.sampled_from(KINDS),
        st.sampled_from(["identity", "identity", "identity", "gzip", "deflate", "br", "\xff"]),
        st.none() | st.integers(-1, 400).map(str) | st.text("0123456789²x", max_size=30),
    )
    def fuzz(body: bytes, kind: str, encoding: str, length: str | None) -> None:
        headers = {"content_encoding": encoding, **({"inference_header_content_length": length} if length else {})}
        response = post(path, body, kind, **headers)
        if response.status_code != 200:
            assert_refusal(response, is_mlflows=path == "/invocations")

    output = io.StringIO()
    with redirect_stderr(output), redirect_stdout(io.StringIO()):
        fuzz()
    assert "Traceback" not in output.getvalue()
