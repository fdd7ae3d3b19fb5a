"""What operators see of the server of a deployment: metrics, keys, request ids, and refusals when it is busy."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml
from prometheus_client.parser import text_string_to_metric_families

from catdog_pyfunc.pipeline.processes import free_port
from tests.integration.same_rows import assert_same
from tests.project import MODEL, REPOSITORY, URI, Deployment, Project, make_project, run_local, running
from tests.third_party_models import save
from tests.waiting import await_condition

KEYS = secrets.token_urlsafe(24), secrets.token_urlsafe(24)
SCRAPES = 20  # each by a new connection: enough to reach both workers
MONITORING = REPOSITORY / "deploy" / "monitoring"
IMAGES, ACTIVE = "catdog_images_total", "http_server_active_requests"


@pytest.fixture(scope="module")
def photo(files: Sequence[Path]) -> bytes:
    return files[0].read_bytes()


@pytest.fixture(scope="module")
def guarded(project: Project, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A server that takes two keys, with two workers."""
    folder = tmp_path_factory.mktemp("guarded")
    (folder / "keys").write_text("# the next one, and the one before\n{}\n\n{}\n".format(*KEYS))
    options = ["-C", "workers=2", "-C", f"api_keys_file={folder / 'keys'}"]
    with run_local(project, folder / "log", "-m", URI, *options) as deployment:
        yield deployment


def predict(deployment: Deployment, image: bytes, **headers: str) -> requests.Response:
    headers = {"X-API-Key": KEYS[0], **headers}
    return requests.post(f"{deployment.address}/predict", data=image, headers=headers, timeout=60)


def scrape(deployment: Deployment) -> str:
    response = requests.get(f"{deployment.address}/metrics", headers={"X-API-Key": KEYS[0]}, timeout=30)
    assert response.status_code == 200
    return response.text


def total(text: str, metric: str, /, **labels: str) -> float:
    """The sum of a metric's samples with these labels."""
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return sum(each.value for each in samples if each.name == metric and labels.items() <= each.labels.items())


# Metrics


def test_the_metrics_count_every_request_whichever_worker_answers(guarded: Deployment, photo: bytes):
    duration = "http_server_request_duration_seconds_count"
    labels = {"http_request_method": "POST", "http_route": "/predict", "http_response_status_code": "200"}
    before = scrape(guarded)
    with ThreadPoolExecutor(8) as clients:
        assert {response.status_code for response in clients.map(lambda _: predict(guarded, photo), range(40))} == {200}
    predict(guarded, b"no image")
    await_condition(lambda: total(scrape(guarded), duration, **labels) == total(before, duration, **labels) + 41)
    await_condition(lambda: total(scrape(guarded), ACTIVE) == 1)  # the scrape itself
    for text in (scrape(guarded) for _ in range(SCRAPES)):
        assert total(text, IMAGES) == total(before, IMAGES) + 40
        assert total(text, "catdog_image_errors_total") == total(before, "catdog_image_errors_total") + 1
        assert total(text, duration, **labels) == total(before, duration, **labels) + 41
        assert total(text, "catdog_queue_depth") == 0
        assert total(text, "catdog_model_info", name=MODEL, version="2") == 1


@pytest.mark.slow
def test_a_killed_worker_is_replaced_and_its_counts_stay(guarded: Deployment, photo: bytes):
    before = total(scrape(guarded), IMAGES)
    first = guarded.workers()
    assert len(first) == 2
    for number, worker in enumerate(first):
        os.kill(worker, signal.SIGKILL)
        await_condition(lambda: len(guarded.workers() - first) == number + 1)  # noqa: B023
        # After the second turn only replacements are left to answer.
        assert {predict(guarded, photo).status_code for _ in range(10)} == {200}
        assert f"worker {worker} exited with code -9: replacing it" in guarded.log.read_text()
    for text in (scrape(guarded) for _ in range(SCRAPES)):
        assert total(text, IMAGES) == before + 20


@pytest.fixture(scope="module")
def prometheus() -> str:
    found = shutil.which("prometheus", path=os.pathsep.join([os.environ["PATH"], "/usr/bin"]))
    if not found:
        pytest.skip("prometheus is neither on PATH nor in /usr/bin: apt-get install prometheus")
    return found


@pytest.fixture(scope="module")
def scraping(prometheus: str, guarded: Deployment, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a Prometheus as in deploy/monitoring, but that it scrapes `guarded`, and every second."""
    folder = tmp_path_factory.mktemp("prometheus")
    shutil.copy(MONITORING / "alerts.yml", folder)
    (folder / "catdog-key").write_text(KEYS[1])
    configuration = yaml.safe_load((MONITORING / "prometheus.yml").read_text())
    configuration["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    configuration["scrape_configs"][0]["static_configs"] = [{"targets": [guarded.address.removeprefix("http://")]}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(configuration))
    address = f"http://127.0.0.1:{free_port()}"
    command = [prometheus, "--config.file=prometheus.yml", f"--storage.tsdb.path={folder / 'data'}"]
    listen = f"--web.listen-address={address.removeprefix('http://')}"
    with running([*command, listen], f"{address}/-/ready", folder / "log", cwd=folder):
        yield address


@pytest.mark.slow
def test_prometheus_scrapes_with_a_key(scraping: str, guarded: Deployment, photo: bytes):
    expected = total(scrape(guarded), IMAGES)
    for _ in range(2):
        await_condition(lambda: queried(scraping, f"sum({IMAGES})") == expected)  # noqa: B023
        assert predict(guarded, photo).status_code == 200
        expected += 1
    assert queried(scraping, 'up{job="catdog"}') == 1


@pytest.mark.slow
def test_drift_is_noticed_in_what_prometheus_has_scraped(scraping: str, guarded: Deployment, project: Project, drawn: Path):
    def drift() -> subprocess.CompletedProcess[str]:
        for metric in (IMAGES, "catdog_image_errors_total"):
            await_condition(lambda: queried(scraping, f"sum({metric})") == total(scrape(guarded), metric))  # noqa: B023
        return project.command("catdog", "drift", "--version", "2", "--source", scraping, "--since", "1h")

    await_condition(lambda: queried(scraping, "sum(catdog_domain_score_count)") is not None)
    for file in sorted(drawn.glob("test/*/*.jpg")):
        assert predict(guarded, file.read_bytes()).status_code == 200
    like_test = drift()
    assert like_test.returncode == 0, like_test.stdout + like_test.stderr
    for _ in range(20):
        predict(guarded, b"no image")
    damaged = drift()
    assert damaged.returncode == 3, damaged.stdout + damaged.stderr
    assert re.search(r"^drift: error \((4[4-9]|5\d|6\d) images; ", damaged.stdout, re.MULTILINE), damaged.stdout


@pytest.mark.slow
def test_every_panel_of_the_dashboard_has_data_and_no_alert_fires(scraping: str, guarded: Deployment, photo: bytes):
    dashboard = json.loads((MONITORING / "dashboard.json").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    traffic = "sum(instance:catdog_requests:rate5m)"
    for _ in range(2):  # no increase is seen in what a series begins with
        assert predict(guarded, photo).status_code == 200
        await_condition(lambda: queried(scraping, traffic) is not None)
    await_condition(lambda: (queried(scraping, traffic) or 0) > 0)
    await_condition(lambda: [query for query in queries if queried(scraping, query) is None] == [])
    (group,) = requests.get(f"{scraping}/api/v1/rules", timeout=30).json()["data"]["groups"]
    assert {rule["name"]: rule["lastError"] for rule in group["rules"] if rule["health"] != "ok"} == {}
    assert [rule["name"] for rule in group["rules"] if rule.get("state") == "firing"] == []


def queried(address: str, query: str) -> float | None:
    response = requests.get(f"{address}/api/v1/query", params={"query": query}, timeout=30)
    assert response.status_code == 200, response.text
    found: list[Any] = response.json()["data"]["result"]
    return float(found[0]["value"][1]) if found else None


def test_promtool_finds_no_fault_with_the_metrics(prometheus: str, guarded: Deployment):
    promtool = Path(prometheus).with_name("promtool")
    done = subprocess.run([promtool, "check", "metrics"], input=scrape(guarded), capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_each_alert_fires_once_and_none_when_all_is_well(prometheus: str):
    promtool, file = Path(prometheus).with_name("promtool"), Path(__file__).with_name("alerts_test.yml")
    done = subprocess.run([promtool, "test", "rules", file], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    tested = {case["alertname"] for test in yaml.safe_load(file.read_text())["tests"] for case in test["alert_rule_test"]}
    (group,) = yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"]
    assert tested == {rule["alert"] for rule in group["rules"] if "alert" in rule}


# Keys


def test_only_requests_with_one_of_the_keys_get_in(
    guarded: Deployment, files: Sequence[Path], in_process: Sequence[dict[str, Any]]
):
    image = files[0].read_bytes()
    for path in ("/predict", "/invocations", "/", f"/v1/models/{MODEL}:predict", f"/v2/models/{MODEL}/infer"):
        for headers in ({}, {"X-API-Key": KEYS[0][:-1]}, {"Authorization": f"Basic {KEYS[0]}"}):
            refused = requests.post(f"{guarded.address}{path}", data=image, headers=headers, timeout=30)
            assert (refused.status_code, refused.headers["WWW-Authenticate"]) == (401, "Bearer")
            assert refused.json()["error"].startswith("this server wants an API key")
    assert requests.get(f"{guarded.address}/metrics", timeout=30).status_code == 401
    for key in KEYS:
        for headers in ({"X-API-Key": key}, {"Authorization": f"Bearer {key}"}):
            response = requests.post(f"{guarded.address}/predict", data=image, headers=headers, timeout=30)
            assert_same(response.json()["predictions"], in_process[:1])


def test_huggingface_hub_sends_a_key(guarded: Deployment, files: Sequence[Path], in_process: Sequence[dict[str, Any]]):
    hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed: pip install huggingface-hub")
    best = hub.InferenceClient(model=guarded.address, token=KEYS[1]).image_classification(files[0])
    assert best[0].label == in_process[0]["label"]


def test_probes_need_no_key(guarded: Deployment):
    for path in ("/ping", "/health", "/v2/health/live", "/v2/health/ready"):
        assert requests.get(f"{guarded.address}{path}", timeout=30).status_code == 200


def test_keys_are_in_no_log_and_no_command_line_and_no_environment(guarded: Deployment, photo: bytes):
    request_id = predict(guarded, photo).headers["X-Request-ID"]
    await_condition(lambda: request_id in guarded.log.read_text())
    seen = [guarded.log.read_text()]
    for process in guarded.processes():
        seen += [*process.cmdline(), *process.environ().values()]
    assert len(seen) > 100  # environments have been read
    for key in KEYS:
        assert not [text for text in seen if key in text]


# Request ids and the log


def test_a_request_id_is_in_the_response_and_in_the_log(guarded: Deployment, photo: bytes):
    own = f"own-{secrets.token_hex(8)}"
    assert predict(guarded, photo, **{"X-Request-ID": own}).headers["X-Request-ID"] == own
    for given in ("", "two words", "x" * 129):
        made = predict(guarded, photo, **{"X-Request-ID": given}).headers["X-Request-ID"]
        assert re.fullmatch("[0-9a-f]{32}", made)
        await_condition(lambda: made in {line["request_id"] for line in guarded.requests()})  # noqa: B023
    (line,) = [line for line in guarded.requests() if line["request_id"] == own]
    assert line.keys() == {"time", "request_id", "method", "path", "status", "ms", "bytes"}
    assert (line["method"], line["path"], line["status"], line["bytes"]) == ("POST", "/predict", 200, len(photo))


# A model that is busy


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Path]:
    """While this file exists, `slow` predicts nothing for images of three bytes."""
    gate = tmp_path / "gate"
    yield gate
    gate.unlink(missing_ok=True)


@pytest.fixture
def slow(gate: Path, tmp_path: Path) -> Iterator[Deployment]:
    predicting = f'while len(model_input["photo"][0]) == 3 and os.path.exists({str(gate)!r}): time.sleep(0.02)'
    model, project = save(tmp_path / "slow", ["mlflow"], "pass", predicting), make_project(tmp_path / "project")
    options = ["-C", "workers=1", "-C", "max_queue=2", "-C", "request_timeout_s=3"]
    with run_local(project, tmp_path / "log", "-m", str(model), *options) as deployment:
        yield deployment
        gate.unlink(missing_ok=True)  # or the server would not stop


@contextlib.contextmanager
def two_held(slow: Deployment, gate: Path) -> Iterator[list[Future[requests.Response]]]:
    """Two requests that are with the model."""
    gate.touch()
    with ThreadPoolExecutor(2) as clients:
        sent = [clients.submit(predict, slow, b"cat") for _ in range(2)]
        await_condition(lambda: total(scrape(slow), "catdog_queue_depth") == 2)
        yield sent


@pytest.mark.slow
def test_a_full_queue_gets_a_429_and_a_slow_prediction_a_504(slow: Deployment, gate: Path):
    with two_held(slow, gate) as held:
        for path in ("/predict", "/invocations"):
            refused = requests.post(f"{slow.address}{path}", data=b"dog", timeout=30)
            assert (refused.status_code, refused.headers["Retry-After"]) == (429, "1")
            assert refused.json() == {"error": "2 requests are waiting for the model: try again later"}
        assert requests.get(f"{slow.address}/ping", timeout=30).status_code == 200
    for late in (each.result() for each in held):
        assert (late.status_code, late.json()) == (504, {"error": "no prediction within 3 s: send fewer images"})
    assert predict(slow, b"dog").status_code == 429  # the model still works on the two
    gate.unlink()
    await_condition(lambda: predict(slow, b"dog").status_code == 200)
    assert predict(slow, b"dog").json() == {"predictions": [{"label": "dog", "confidence": 0.5}]}


@pytest.mark.slow
def test_the_gauges_forget_what_a_killed_worker_held(slow: Deployment, gate: Path):
    with two_held(slow, gate) as held:
        (worker,) = slow.workers()
        os.kill(worker, signal.SIGKILL)
        for lost in held:
            assert isinstance(lost.exception(), requests.ConnectionError)
    text = scrape(slow)  # waits for the replacement
    assert (total(text, "catdog_queue_depth"), total(text, ACTIVE)) == (0, 1)
    gate.unlink()
    assert predict(slow, b"dog").status_code == 200
