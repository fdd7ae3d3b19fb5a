"""What every request passes before its route: request id, key, limits on bodies, log, metrics, CORS."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
import pytest
from mlflow_catdog.runtime.gateway import Gateway
from mlflow_catdog.runtime.metrics import Metrics
from mlflow_catdog.runtime.settings import MIB, Settings
from starlette.types import Receive, Scope, Send

from tests.unit.served import FakeModel, build, get, post, request, run, serve

KEYS = ("first-key-0123456789", "second-key-0123456789")


async def echo_size(scope: Scope, receive: Receive, send: Send) -> None:
    """An application that reads the whole body and responds with its size."""
    size, more = 0, True
    while more:
        message = await receive()
        size, more = size + len(message.get("body", b"")), message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(size).encode()})


def gateway(application: Any = echo_size, **settings: Any) -> Gateway:
    return Gateway(application, Settings(**settings), Metrics("cats", "3"))


async def chunks(*sizes: int, read: list[int] | None = None) -> AsyncIterator[bytes]:
    """A body without a declared length; notes the chunks that were read."""
    for size in sizes:
        if read is not None:
            read.append(size)
        yield bytes(size)


def log_lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize("given", ["order-17", "a.b:c_d-1", "x" * 128])
def test_a_request_keeps_its_id(given: str, capsys: pytest.CaptureFixture[str]):
    response = post(gateway(), "/predict", headers={"X-Request-ID": given})
    assert response.headers.get_list("x-request-id") == [given]
    assert [line["request_id"] for line in log_lines(capsys)] == [given]


@pytest.mark.parametrize("given", [None, "", "a b", "x" * 129, "{}", "é".encode("latin-1")])
def test_without_a_usable_id_it_gets_one(given: str | bytes | None, capsys: pytest.CaptureFixture[str]):
    application = gateway()
    headers = {} if given is None else {"X-Request-ID": given}
    ids = [post(application, "/predict", headers=headers).headers["x-request-id"] for _ in range(2)]
    assert all(re.fullmatch("[0-9a-f]{32}", made) for made in ids)
    assert ids[0] != ids[1]
    assert [line["request_id"] for line in log_lines(capsys)] == ids


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Authorization": f"Bearer {KEYS[0]}"}, 200),
        ({"Authorization": f"bearer {KEYS[1]}"}, 200),
        ({"X-API-Key": KEYS[1]}, 200),
        ({}, 401),
        ({"X-API-Key": KEYS[0][:-1]}, 401),
        ({"X-API-Key": ""}, 401),
        ({"X-API-Key": "schlüssel-0123456789".encode("latin-1")}, 401),
        ({"X-API-Key": ",".join(KEYS)}, 401),
        ({"Authorization": KEYS[0]}, 401),
        ({"Authorization": f"Basic {KEYS[0]}"}, 401),
    ],
)
def test_only_a_valid_key_lets_a_request_in(headers: Any, status: int):
    response = post(gateway(api_keys=KEYS), "/predict", headers=headers)
    assert response.status_code == status
    if status == 401:
        assert response.headers["www-authenticate"] == "Bearer"
        assert "`Authorization: Bearer KEY` or `X-API-Key: KEY`" in response.json()["error"]


@pytest.mark.parametrize(
    ("method", "path", "is_open"),
    [
        *(("GET", path, True) for path in ("/", "/ping", "/health", "/v2/health/live", "/v2/health/ready", "/aip/health")),
        *(("GET", path, True) for path in ("/docs", "/openapi.json", "/docs/static/swagger-ui.css")),
        *(("GET", path, False) for path in ("/metrics", "/version", "/info", "/v1/models", "/v2", "/v2/models/model")),
        *(("POST", path, False) for path in ("/", "/predict", "/invocations", "/aip/predict", "/ping")),
        *(("GET", path, False) for path in ("/nowhere", "/ping/", "/PING", "/docs2")),
    ],
)
def test_what_is_open_without_a_key_is_what_probes_and_the_page_need(method: str, path: str, is_open: bool):
    routes = {"predict_route": "/aip/predict", "health_route": "/aip/health"}
    application = serve(FakeModel(), api_keys=KEYS, **routes)
    assert request(application, method, path).status_code == (200 if is_open else 401)
    if not is_open:
        keyed = request(application, method, path, headers={"X-API-Key": KEYS[0]})
        assert keyed.status_code != 401


def test_no_key_reaches_the_log_or_a_response(capfd: pytest.CaptureFixture[str]):
    application = serve(FakeModel(), api_keys=KEYS)
    wrong = "wrong-key-0123456789"
    responses = [
        post(application, "/predict?key=in-the-query-0123", headers=headers)
        for headers in ({"X-API-Key": KEYS[0]}, {"Authorization": f"Bearer {KEYS[1]}"}, {"X-API-Key": wrong})
    ]
    shown = "".join(capfd.readouterr()) + "".join(f"{response.headers}{response.text}" for response in responses)
    assert '"path": "/predict"' in shown
    assert not [secret for secret in (*KEYS, wrong, "in-the-query-0123") if secret in shown]


def test_a_draining_server_closes_each_connection_after_its_response():
    application, its_gateway = build(FakeModel())
    assert "connection" not in post(application, "/predict", content=b"cat").headers
    its_gateway.draining = True
    response = post(application, "/predict", content=b"cat")
    assert (response.status_code, response.headers["connection"]) == (200, "close")


@pytest.mark.parametrize("path", ["/ping", "/health", "/v2/health/ready", "/aip/health"])
def test_a_draining_server_is_alive_but_not_ready(path: str):
    application, its_gateway = build(FakeModel(), health_route="/aip/health")
    assert get(application, path).json() == {"ready": True}
    its_gateway.draining = True
    response = get(application, path)
    assert (response.status_code, response.json()) == (503, {"ready": False})
    assert get(application, "/v2/health/live").status_code == 200


@pytest.mark.parametrize("content", [bytes(MIB), lambda: chunks(MIB // 2, MIB // 2)], ids=["declared", "streamed"])
def test_a_body_up_to_the_limit_is_passed_on(content: Any):
    body = content() if callable(content) else content
    assert post(gateway(max_body_mb=1), "/predict", content=body).text == str(MIB)


@pytest.mark.parametrize("declared", [True, False])
def test_a_larger_body_gets_a_413_as_early_as_possible(declared: bool):
    read: list[int] = []
    headers = {"Content-Length": str(MIB + 1)} if declared else {}
    body = chunks(MIB // 2, MIB // 2 + 1, MIB // 2, read=read)
    response = post(gateway(max_body_mb=1), "/predict", content=body, headers=headers)
    assert (response.status_code, len(read)) == (413, 0 if declared else 2)
    assert response.json() == {"error": "the request body is larger than 1 MiB"}


@pytest.mark.parametrize("arriving", [True, False])
def test_the_bodies_of_all_requests_together_have_a_limit(arriving: bool):
    """Where one has to go, it is a large one that still arrives; if there is none, the newcomer."""
    arrived, finish = asyncio.Semaphore(0), asyncio.Event()

    async def scenario(client: httpx.AsyncClient) -> None:
        async def stalling() -> AsyncIterator[bytes]:
            yield bytes(MIB)
            arrived.release()
            if arriving:
                await finish.wait()

        large = [asyncio.create_task(client.post("/large", content=stalling())) for _ in range(4)]
        for _ in large:
            await arrived.acquire()
        small = await client.post("/small", content=bytes(1))
        finish.set()
        responses = [small, *await asyncio.gather(*large)]
        assert sorted(response.status_code for response in responses) == [200, 200, 200, 200, 429]
        assert small.status_code == (200 if arriving else 429)
        (refused,) = (response for response in responses if response.status_code == 429)
        assert refused.headers["retry-after"] == "1"
        assert "the bodies of other requests take all the memory" in refused.json()["error"]
        assert (await client.post("/large", content=bytes(MIB))).status_code == 200

    async def patient(scope: Scope, receive: Receive, send: Send) -> None:
        async def finished(message: Any) -> None:
            if scope["path"] == "/large":
                await finish.wait()
            await send(message)

        await echo_size(scope, receive, finished)

    run(gateway(patient, max_body_mb=1), scenario)


def test_one_json_line_per_request_tells_what_happened(capsys: pytest.CaptureFixture[str]):
    post(gateway(), "/some/path?secret=1", content=b"12345", headers={"X-Request-ID": "order-17"})
    (line,) = log_lines(capsys)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", line.pop("time"))
    assert line.pop("ms") >= 0
    expected = {"request_id": "order-17", "method": "POST", "path": "/some/path", "status": 200, "bytes": 5}
    assert line == expected


def test_a_path_cannot_forge_a_log_line(capsys: pytest.CaptureFixture[str]):
    get(gateway(), '/a%0A{"status": 200}%1b[2J')
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["path"] == '/a\n{"status": 200}\x1b[2J'
    assert line.isprintable()


def test_probes_are_in_the_log_only_when_they_fail(capsys: pytest.CaptureFixture[str]):
    application, its_gateway = build(FakeModel())
    for path in ("/ping", "/health", "/metrics", "/v2/health/live"):
        assert get(application, path).status_code == 200
    assert not log_lines(capsys)
    its_gateway.draining = True
    get(application, "/ping")
    assert [(line["path"], line["status"]) for line in log_lines(capsys)] == [("/ping", 503)]


async def fail_at_once(scope: Scope, receive: Receive, send: Send) -> None:
    raise RuntimeError("the password is hunter2")


async def fail_midway(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"half", "more_body": True})
    raise RuntimeError("the password is hunter2")


@pytest.mark.parametrize(("failing", "statuses"), [(fail_at_once, [500]), (fail_midway, [200])])
def test_an_exception_is_in_the_log_and_never_in_a_response(
    failing: Callable[..., Awaitable[None]], statuses: list[int], capsys: pytest.CaptureFixture[str]
):
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(gateway(failing)({"type": "http", "method": "GET", "path": "/", "headers": []}, receive, send))
    assert [message["status"] for message in sent if message["type"] == "http.response.start"] == statuses
    assert "hunter2" not in str(sent)
    output, errors = capsys.readouterr()
    assert "hunter2" in errors
    assert "hunter2" not in output
    if statuses == [500]:
        assert json.loads(sent[1]["body"]) == {"error": "this server failed: its log has the reason"}


def test_whatever_is_no_request_is_passed_on():
    seen: list[str] = []

    async def record(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["type"])

    lifespan: Any = gateway(record)
    asyncio.run(lifespan({"type": "lifespan"}, None, None))
    assert seen == ["lifespan"]


def test_metrics_know_a_request_by_its_route_and_never_by_its_path():
    application = serve(FakeModel(), name="cats")
    post(application, "/v1/models/cats:predict", json={"instances": ["cat"]})
    get(application, "/predict")
    for path in ("/wp-admin.php", "/predict/17", "/%2e%2e/etc/passwd", "/v1/models/dogs"):
        assert get(application, path).status_code == 404
    text = get(application, "/metrics").text
    counted = re.findall(
        r'request_duration_seconds_count\{.*http_response_status_code="(\d+)",http_route="(.*)"\} (\S+)', text
    )
    assert sorted(counted) == [("200", "/v1/models/cats:predict", "1.0"), ("404", "none", "4.0"), ("405", "/predict", "1.0")]
    assert "http_server_active_requests 1.0" in text  # the one that asks


ORIGIN = {"Origin": "https://shop.example"}
PREFLIGHT = {**ORIGIN, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-api-key"}


@pytest.mark.parametrize("origins", [(), ("https://other.example",)])
def test_web_pages_of_other_origins_may_not_call_unless_they_are_named(origins: tuple[str, ...]):
    application = serve(FakeModel(), cors_origins=origins)
    for response in (
        post(application, "/predict", content=b"cat", headers=ORIGIN),
        request(application, "OPTIONS", "/predict", headers=PREFLIGHT),
    ):
        assert "access-control-allow-origin" not in response.headers


@pytest.mark.parametrize(("origins", "allowed"), [(("https://shop.example",), "https://shop.example"), (("*",), "*")])
def test_web_pages_that_are_named_may_call_and_read_errors_too(origins: tuple[str, ...], allowed: str):
    application = serve(FakeModel(), cors_origins=origins, api_keys=KEYS)
    preflight = request(application, "OPTIONS", "/predict", headers=PREFLIGHT)
    assert preflight.status_code == 200  # browsers send no key with it
    assert "x-api-key" in preflight.headers["access-control-allow-headers"].lower()
    for key, status in ((KEYS[0], 200), ("wrong", 401)):
        response = post(application, "/predict", content=b"cat", headers={**ORIGIN, "X-API-Key": key})
        assert (response.status_code, response.headers["access-control-allow-origin"]) == (status, allowed)
        assert "X-Request-ID" in response.headers["access-control-expose-headers"]
