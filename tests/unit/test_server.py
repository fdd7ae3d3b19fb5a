"""`POST /predict` and what every route shares: bodies in, rows or an `error` out; the page, the documentation, metrics."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import re
import threading
import zlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import mlflow
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.unit.served import FakeModel, get, post, request, run, serve

CAT, DOG, DAMAGED = b"cat", b"dog", b"damaged"
ROW_OF_CAT = FakeModel().predict_images([CAT])[0]
JSON = {"Content-Type": "application/json"}


def base64_of(image: bytes) -> str:
    return base64.b64encode(image).decode()


def form(*images: bytes, field: str = "files") -> list[tuple[str, tuple[str, bytes, str]]]:
    return [(field, (f"{number}.jpg", image, "image/jpeg")) for number, image in enumerate(images)]


def labels(response: httpx.Response) -> list[str | None]:
    assert response.status_code == 200, response.text
    return [row["label"] for row in response.json()["predictions"]]


@pytest.mark.parametrize(
    "kind", [None, "image/jpeg", "image/x-unheard-of", "application/octet-stream", "application/x-www-form-urlencoded"]
)
def test_a_raw_body_is_one_image(kind: str | None):
    response = post(serve(FakeModel()), "/predict", content=CAT, headers={"Content-Type": kind} if kind else {})
    assert response.json() == {"predictions": [ROW_OF_CAT]}


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"files": form(CAT)}, ["cat"]),
        ({"files": form(CAT, DOG, CAT)}, ["cat", "dog", "cat"]),
        ({"files": [*form(DOG, field="first"), *form(CAT, field="second")]}, ["dog", "cat"]),
        ({"files": form(CAT), "data": {"comment": "a field that is no file"}}, ["cat"]),
        ({"json": {"image": "cat"}}, ["cat"]),
        ({"json": {"images": ["dog", "cat"]}}, ["dog", "cat"]),
        ({"content": b'{"image": "cat"}', "headers": {"Content-Type": "Application/JSON; charset=utf-8"}}, ["cat"]),
    ],
)
def test_forms_and_json_hold_one_or_many(body: dict[str, Any], expected: list[str]):
    assert labels(post(serve(FakeModel()), "/predict", **body)) == expected


def test_an_image_that_cannot_be_read_has_an_error_in_its_row_and_the_others_do_not():
    rows = post(serve(FakeModel()), "/predict", files=form(CAT, DAMAGED, DOG)).json()["predictions"]
    assert [(row["label"], row["error"]) for row in rows] == [("cat", None), (None, "not an image"), ("dog", None)]


@pytest.mark.parametrize(("query", "heatmap"), [("", None), ("?explain=false", None), ("?explain=true", "cG5n")])
def test_heat_maps_are_made_when_asked_for(query: str, heatmap: str | None):
    for body in ({"content": CAT}, {"files": form(CAT)}, {"json": {"image": "cat"}}):
        (row,) = post(serve(FakeModel()), f"/predict{query}", **body).json()["predictions"]
        assert row["heatmap"] == heatmap


def test_a_model_of_this_project_answers_as_it_does_without_a_server(tiny_model: Path, images: list[bytes]):
    model = mlflow.pyfunc.load_model(str(tiny_model))
    expected = model.unwrap_python_model().predict_images([images[0], b"no image", images[-1]], True)
    assert [bool(row["heatmap"]) for row in expected] == [True, False, True]
    assert expected[1]["error"]
    application = serve(model)
    given = [base64_of(image) for image in (images[0], b"no image", images[-1])]
    response = post(application, "/predict?explain=true", files=form(images[0], b"no image", images[-1]))
    assert response.json() == {"predictions": expected}
    rows = post(application, "/predict?explain=true", json={"images": given}).json()["predictions"]
    assert (rows[0], rows[2]) == (expected[0], expected[2])
    assert rows[1]["error"]


@pytest.mark.parametrize(
    ("compress", "encoding"), [(gzip.compress, "gzip"), (zlib.compress, "deflate"), (bytes, "identity")]
)
def test_bodies_may_be_compressed(compress: Any, encoding: str):
    content = compress(json.dumps({"images": ["cat", "dog"]}).encode())
    headers = {**JSON, "Content-Encoding": encoding.upper()}
    assert labels(post(serve(FakeModel()), "/predict", content=content, headers=headers)) == ["cat", "dog"]


COMPRESSED = gzip.compress(b"cat" * 99, mtime=0)  # the time would be in the tests' names, of which xdist compares two lists


@pytest.mark.parametrize(
    ("encoding", "content", "status", "reason"),
    [
        ("gzip", gzip.compress(bytes(2**20 + 1), mtime=0), 413, "the request body is larger than 1 MiB"),
        ("deflate", zlib.compress(bytes(2**24)), 413, "the request body is larger than 1 MiB"),
        ("gzip", COMPRESSED[:-9], 400, "the body is not gzip: it ends early"),
        ("gzip", COMPRESSED[:2], 400, "the body is not gzip: it ends early"),
        ("gzip", b"", 400, "the body is not gzip: it ends early"),
        ("gzip", COMPRESSED[:-8] + bytes(8), 400, "the body is not gzip: Error -3"),
        ("gzip", b"cat", 400, "the body is not gzip: Error -3"),
        ("deflate", b"cat", 400, "the body is not deflate: Error -3"),
        ("br", b"cat", 415, "Content-Encoding 'br' is not supported: use gzip or deflate"),
        ("gzip", COMPRESSED + COMPRESSED, 400, "the body is not gzip: something follows its end"),
        ("gzip, gzip", gzip.compress(COMPRESSED, mtime=0), 415, "use gzip or deflate"),
    ],
)
def test_a_damaged_or_exploding_body_is_refused(encoding: str, content: bytes, status: int, reason: str):
    response = post(serve(FakeModel(), max_body_mb=1), "/predict", content=content, headers={"Content-Encoding": encoding})
    assert (response.status_code, response.headers["content-type"]) == (status, "application/json")
    assert reason in response.json()["error"]


MULTIPART = {"Content-Type": "multipart/form-data; boundary=x"}


@pytest.mark.parametrize(
    ("options", "status", "reason"),
    [
        ({"content": b""}, 422, "the request has no image: send the bytes of an image file"),
        ({"data": {"comment": "no file"}, "files": {"empty": (None, "")}}, 422, "the request has no image"),
        ({"json": {"images": []}}, 422, "the request has no image"),
        ({"json": {"photo": "cat"}}, 422, "`images` is not a list of images in base64"),
        ({"json": {"images": "cat"}}, 422, "`images` is not a list of images in base64"),
        ({"json": {"images": ["cat", 5]}}, 422, "`images` is not a list of images in base64"),
        ({"json": {"image": None}}, 422, "`image` is not a list of images in base64"),
        ({"json": {"images": ["cat"] * 4}}, 422, "the request has 4 images: send at most 3"),
        ({"content": CAT, "params": {"explain": "maybe"}}, 422, "query.explain: "),
        ({"json": ["cat"]}, 400, "the body is a JSON list: send an object"),
        ({"content": b"{", "headers": JSON}, 400, "the body is not JSON: "),
        ({"content": b"", "headers": JSON}, 400, "the body is not JSON: "),
        ({"content": b"\xff\xfe{", "headers": JSON}, 400, "the body is not JSON: "),
        ({"content": b'{"a":' * 100_000, "headers": JSON}, 400, "the body is not JSON: "),
        ({"content": b"[" + b"0," * 10**6, "headers": JSON}, 413, "the JSON has more than 100,000 values"),
        ({"content": CAT, "headers": {"Content-Type": "multipart/form-data"}}, 400, "Missing boundary"),
        ({"content": CAT, "headers": MULTIPART}, 400, "Invalid multipart data"),
        ({"files": form(*[CAT] * 4)}, 400, "Too many files. Maximum number of files is 3."),
        ({"content": CAT, "headers": {"Content-Type": "text/csv"}}, 415, "Content-Type 'text/csv' is not supported: send"),
    ],
)
def test_a_request_that_cannot_be_used_says_why(options: dict[str, Any], status: int, reason: str):
    response = post(serve(FakeModel(), max_files=3), "/predict", **options)
    assert (response.status_code, response.headers["content-type"]) == (status, "application/json")
    assert list(response.json()) == ["error"]
    assert reason in response.json()["error"]


@pytest.mark.parametrize(
    ("method", "path", "status", "reason"),
    [
        ("GET", "/nowhere", 404, "there is no /nowhere: /docs lists what there is"),
        ("POST", "/predict/", 404, "there is no /predict/: /docs lists what there is"),
        ("GET", "/predict", 405, "Method Not Allowed"),
        ("DELETE", "/v2/models/model", 405, "Method Not Allowed"),
    ],
)
def test_what_does_not_exist_is_an_error_in_json(method: str, path: str, status: int, reason: str):
    response = request(serve(FakeModel()), method, path)
    assert (response.status_code, response.json()) == (status, {"error": reason})


def test_a_body_that_does_not_arrive_in_time_is_a_408():
    async def scenario(client: httpx.AsyncClient) -> httpx.Response:
        async def stalled() -> AsyncIterator[bytes]:
            yield b"c"
            await asyncio.Event().wait()

        return await client.post("/predict", content=stalled())

    response = run(serve(FakeModel(), request_timeout_s=0.05), scenario)
    assert (response.status_code, response.headers["connection"]) == (408, "close")
    assert response.json() == {"error": "the body did not arrive within 0.05 s"}


@pytest.fixture
def held() -> Iterator[tuple[FakeModel, threading.Semaphore, threading.Event]]:
    """A model that says when it has begun, and waits for an event."""
    begun, release = threading.Semaphore(0), threading.Event()

    def wait() -> None:
        begun.release()
        assert release.wait(60)

    yield FakeModel(wait), begun, release
    release.set()


TABLE = {"dataframe_split": {"columns": ["image"], "data": [["cat"]]}}


@pytest.mark.parametrize("first", ["/predict", "/invocations"])
@pytest.mark.parametrize("second", ["/predict", "/invocations"])
def test_a_request_beyond_the_queue_is_told_to_come_back(
    first: str, second: str, held: tuple[FakeModel, threading.Semaphore, threading.Event]
):
    model, begun, release = held
    bodies: dict[str, Any] = {"/predict": {"content": CAT}, "/invocations": {"json": TABLE}}

    async def scenario(client: httpx.AsyncClient) -> None:
        waiting = asyncio.create_task(client.post(first, **bodies[first]))
        await asyncio.to_thread(begun.acquire)
        refused = await client.post(second, **bodies[second])
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        assert refused.json() == {"error": "1 requests are waiting for the model: try again later"}
        assert "catdog_queue_depth 1.0" in (await client.get("/metrics")).text
        assert (await client.get("/ping")).status_code == 200
        release.set()
        assert labels(await waiting) == ["cat"]
        assert labels(await client.post(second, **bodies[second])) == ["cat"]

    run(serve(model, max_queue=1), scenario)


def test_a_prediction_that_takes_too_long_is_a_504_and_keeps_its_place_until_it_ends(
    held: tuple[FakeModel, threading.Semaphore, threading.Event],
):
    model, _, release = held

    async def scenario(client: httpx.AsyncClient) -> None:
        late = await client.post("/predict", content=CAT)
        assert (late.status_code, late.json()) == (504, {"error": "no prediction within 0.05 s: send fewer images"})
        assert (await client.post("/predict", content=CAT)).status_code == 429
        release.set()
        while (await client.post("/predict", content=CAT)).status_code == 429:
            await asyncio.sleep(0.02)
        assert "catdog_queue_depth 0.0" in (await client.get("/metrics")).text

    run(serve(model, max_queue=1, request_timeout_s=0.05), scenario)


def test_a_model_that_fails_is_a_500_whose_trace_is_in_the_log_only(capfd: pytest.CaptureFixture[str]):
    def fail() -> None:
        raise RuntimeError("no such layer")

    application = serve(FakeModel(fail), max_queue=1)
    for _ in range(2):  # it has left the queue
        response = post(application, "/predict", content=CAT)
        assert (response.status_code, response.json()) == (500, {"error": "the model failed: RuntimeError: no such layer"})
    assert "Traceback" in capfd.readouterr().err


def test_the_page_shows_the_models_name_and_loads_nothing_from_elsewhere():
    response = get(serve(FakeModel(), name="<cats>", version="3"), "/", headers={"Accept": "text/html,*/*"})
    assert response.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in response.headers["content-security-policy"]
    assert "&lt;cats&gt;" in response.text
    assert "version 3" in response.text
    assert not re.search(r"<cats>|\{\{|(?:src|href)=\"//|url\(|@import|https?://", response.text)


def test_other_clients_are_told_that_the_server_is_alive():
    assert get(serve(FakeModel()), "/").json() == {"status": "alive"}


def test_the_documentation_describes_every_route_and_loads_nothing_from_elsewhere():
    application = serve(FakeModel(), name="cats", version="3")
    page = get(application, "/docs").text
    resources = re.findall(r'(?:src|href)="([^"]+)"', page) + re.findall(r"url: '([^']+)'", page)
    assert len(resources) >= 3
    assert {get(application, resource).status_code for resource in resources} == {200}
    described = get(application, "/openapi.json").json()
    assert (described["info"]["title"], described["info"]["version"]) == ("cats 3", "3")
    operation = described["paths"]["/predict"]["post"]
    assert {"multipart/form-data", "image/*", "application/json"} <= operation["requestBody"]["content"].keys()
    assert {"200", "400", "401", "408", "413", "415", "422", "429", "500", "504"} <= operation["responses"].keys()


MODEL = 'model_name="cats",model_version="3"'


def test_metrics_count_images_by_label_errors_and_strangers():
    application = serve(FakeModel(), name="cats", version="3")
    post(application, "/predict", files=form(CAT, CAT, DOG, DAMAGED, b"a stranger"))
    post(application, "/invocations", json=TABLE)
    response = get(application, "/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    for line in (
        f'catdog_images_total{{label="cat",{MODEL}}} 4.0',
        f'catdog_images_total{{label="dog",{MODEL}}} 1.0',
        f"catdog_image_errors_total{{{MODEL}}} 1.0",
        f"catdog_out_of_domain_images_total{{{MODEL}}} 1.0",
        'request_predict_seconds_count{model_name="cats"} 2.0',
        'catdog_model_info{name="cats",version="3"} 1.0',
    ):
        assert line in response.text.splitlines()


def test_each_label_of_the_model_is_counted_from_0_on():
    lines = get(serve(FakeModel(), name="cats", version="3"), "/metrics").text.splitlines()
    assert {f'catdog_images_total{{label="{label}",{MODEL}}} 0.0' for label in ("cat", "dog")} <= set(lines)


@pytest.mark.parametrize("path", ["/predict", "/invocations"])
def test_metrics_have_the_distributions_of_what_was_predicted(path: str):
    application = serve(FakeModel(), name="cats", version="3")
    large, damaged = b"large".ljust(40_000), b"damaged"
    if path == "/predict":
        post(application, path, files=form(CAT, large, damaged))
    else:
        cells = [[base64_of(image)] for image in (CAT, large)]
        post(application, path, json={"dataframe_split": {"columns": ["image"], "data": cells}})
    counted = {
        (sample.name, sample.labels["le"]): sample.value
        for family in text_string_to_metric_families(get(application, "/metrics").text)
        for sample in family.samples
        if "catdog" in sample.name and "le" in sample.labels and sample.labels["model_version"] == "3"
    }
    kinds = {name for name, _ in counted}
    assert kinds == {f"catdog_{kind}_bucket" for kind in ("confidence", "domain_score", "image_bytes")}
    assert {counted[name, "+Inf"] for name in kinds} == {2}
    assert [counted["catdog_image_bytes_bucket", bound] for bound in ("1024.0", "32768.0", "46341.0")] == [1, 1, 2]
