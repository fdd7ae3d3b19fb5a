"""Ray Serve on two nodes of this machine: the model's own predictions, whatever is killed, updated or overloaded."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import psutil
import pytest
import requests

from tests.load_clients import assert_none_lost, under_load
from tests.project import MODEL, Project, make_project
from tests.ray_cluster import Cluster, cluster, kill
from tests.third_party_models import BROKEN, save
from tests.waiting import await_condition

pytestmark = [
    pytest.mark.slow,
    pytest.mark.ray,
    pytest.mark.skipif(not find_spec("ray"), reason="ray is not installed: pip install './plugin[ray]'"),
]
DEADLINE_S = 120


@pytest.fixture(scope="module")
def photo(drawn: Path) -> bytes:
    return (drawn / "val" / "cat" / "cat-0000.jpg").read_bytes()


@pytest.fixture(scope="module")
def request_body(photo: bytes) -> dict[str, Any]:
    return {"dataframe_records": [{"image": base64.b64encode(photo).decode()}]}


@pytest.fixture(scope="module")
def versions(photo: bytes, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A registry with two versions of a small network; the first one is in production."""
    import torch

    from catdog_pyfunc import flavor
    from catdog_pyfunc.bundle import Description
    from catdog_pyfunc.network import Network
    from catdog_pyfunc.preprocessing import Preprocess

    project = make_project(tmp_path_factory.mktemp("project"))
    mlflow.set_tracking_uri(project.tracking_uri)
    mlflow.set_experiment("catdog")
    for seed in (1, 2):
        torch.manual_seed(seed)
        features = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 8, stride=8), torch.nn.ReLU())
        description = Description("mobilenet_v2", ("cat", "dog"), Preprocess(64, 72))
        network, reference = Network(features, 8, 2).eval(), np.eye(4, 8, dtype=np.float32)
        with mlflow.start_run():
            flavor.log_model(network, description, reference, images=[photo], registered_model_name=MODEL)
    project.client().set_registered_model_alias(MODEL, "production", "1")
    mlflow.set_tracking_uri(None)
    return project


@pytest.fixture(scope="module")
def nodes(versions: Project) -> Iterator[tuple[Cluster, psutil.Popen]]:
    """A head, and a second node."""
    with cluster(versions.tracking_uri) as made, made.worker() as worker:
        yield made, worker


def confidence(project: Project, version: int, photo: bytes) -> float:
    """What a version says of the photo, in this process."""
    mlflow.set_tracking_uri(project.tracking_uri)
    model = mlflow.pyfunc.load_model(f"models:/{MODEL}/{version}")
    mlflow.set_tracking_uri(None)
    return float(model.predict(pd.DataFrame({"image": [photo]}))["confidence"][0])


def served_confidence(ray: Cluster, body: object) -> float:
    response = requests.post(f"{ray.address}/invocations", json=body, timeout=30)
    response.raise_for_status()
    return float(response.json()["predictions"][0]["confidence"])


def lost(responses: Counter[str]) -> Counter[str]:
    return Counter({response: number for response, number in responses.items() if response not in ("cat", "dog")})


@contextlib.contextmanager
def more_responses(responses: Counter[str], number: int) -> Iterator[None]:
    """The block ends when there are that many more."""
    before = responses.total()
    yield
    await_condition(lambda: responses.total() >= before + number, DEADLINE_S)


def test_serve_run_serves_the_version_that_an_alias_pointed_to(
    nodes: tuple[Cluster, psutil.Popen], versions: Project, photo: bytes, request_body: dict[str, Any]
):
    ray, _ = nodes
    first = confidence(versions, 1, photo)
    assert first != pytest.approx(confidence(versions, 2, photo), abs=1e-3)
    ray.start_serve()
    with ray.run(f"model_uri=models:/{MODEL}@production", "max_body_mb=0.5"):
        ray.await_running(1, "default")
        assert served_confidence(ray, request_body) == pytest.approx(first, abs=1e-5)
        versions.client().set_registered_model_alias(MODEL, "production", "2")
        (replica,) = ray.replicas("default")
        os.kill(replica["pid"], signal.SIGKILL)
        ray.await_running(1, "default", without=[replica["pid"]])
        assert served_confidence(ray, request_body) == pytest.approx(first, abs=1e-5)
        large = requests.post(f"{ray.address}/invocations", data=bytes(2**20), timeout=30)
        assert (large.status_code, large.json()["error"]) == (413, "the request body is larger than 0.5 MiB")
        broken = requests.post(
            f"{ray.address}/invocations", data="{", headers={"Content-Type": "application/json"}, timeout=30
        )
        assert (broken.status_code, broken.json()["error_code"]) == (400, "BAD_REQUEST")
    assert not ray.application("default")


def test_a_full_queue_gets_a_429_and_load_starts_a_second_replica(nodes: tuple[Cluster, psutil.Popen], tmp_path: Path):
    ray, _ = nodes
    gate = tmp_path / "gate"
    held_up = f'while len(model_input["photo"][0]) == 3 and os.path.exists({str(gate)!r}): time.sleep(0.02)'
    loading = f'open({str(tmp_path / "config")!r}, "w").write(os.environ["SERVING_MODEL_CONFIG"])'
    model = save(tmp_path / "held up", [], loading, held_up)
    scaling = {"min_replicas": 1, "max_replicas": 2, "target_ongoing_requests": 1, "upscale_delay_s": 0}
    ray.replace(1, str(model), autoscaling_config=scaling, max_ongoing_requests=1, max_queued_requests=2)
    assert json.loads((tmp_path / "config").read_text()) == {"threads": 1}  # as many as it has cores, by serve.yaml
    body = {"dataframe_records": [{"photo": base64.b64encode(b"cat").decode()}]}
    gate.touch()
    with ThreadPoolExecutor(12) as clients:
        sent = [
            clients.submit(requests.post, f"{ray.address}/invocations", json=body, timeout=DEADLINE_S) for _ in range(12)
        ]
        await_condition(lambda: sum(each.done() for each in sent) >= 8, DEADLINE_S)
        await_condition(lambda: len(ray.replicas()) == 2, DEADLINE_S)
        gate.unlink()
        responses = [each.result() for each in sent]
    refused = [response for response in responses if response.status_code == 429]
    assert Counter(response.status_code for response in responses) == {429: len(refused), 200: 12 - len(refused)}
    assert 8 <= len(refused) <= 9
    assert {response.headers["Retry-After"] for response in refused} == {"1"}
    assert requests.post(f"{ray.address}/invocations", json=body, timeout=30).json() == {
        "predictions": [{"label": "dog", "confidence": 0.5}]
    }


def test_an_update_loses_no_request_and_a_broken_model_changes_nothing(
    nodes: tuple[Cluster, psutil.Popen], versions: Project, photo: bytes, request_body: dict[str, Any], tmp_path: Path
):
    ray, _ = nodes
    loading, predicting, reason = BROKEN["raises when it predicts"]
    broken = save(tmp_path / "broken", [], loading, predicting)
    ray.replace(2, f"models:/{MODEL}/1", num_replicas=2)
    with under_load(ray.address, request_body, clients=4, pause_s=0.1) as responses:
        ray.replace(2, f"models:/{MODEL}/2", num_replicas=2)
        ray.deploy(str(broken), num_replicas=2)
        await_condition(lambda: ray.application()["status"] == "DEPLOY_FAILED", DEADLINE_S)
        with more_responses(responses, 20):
            pass
    assert_none_lost(responses)
    assert reason in ray.application()["deployments"]["Classifier"]["message"]
    assert len(ray.replicas()) == 2
    assert served_confidence(ray, request_body) == pytest.approx(confidence(versions, 2, photo), abs=1e-5)


def test_a_killed_node_costs_at_most_what_it_was_answering(
    nodes: tuple[Cluster, psutil.Popen], versions: Project, photo: bytes, request_body: dict[str, Any]
):
    ray, worker = nodes
    clients = 4
    one_each = {"max_replicas_per_node": 1, "max_surge_percent": 0, "max_ongoing_requests": 1}  # keeps both nodes busy
    ray.replace(2, f"models:/{MODEL}/1", num_replicas=2, **one_each)
    assert len({replica["node_id"] for replica in ray.replicas()}) == 2
    with under_load(ray.address, request_body, clients=clients) as responses:
        with more_responses(responses, 50):
            kill(worker)
        await_condition(lambda: len(ray.replicas()) == 1, DEADLINE_S)
        at_once = lost(responses)
        with more_responses(responses, 50):
            pass
    print(f"\n{dict(responses)}")
    assert lost(responses) == at_once
    assert at_once.total() <= clients
    with ray.worker():
        ray.await_running(2)
        assert len({replica["node_id"] for replica in ray.replicas()}) == 2
        assert served_confidence(ray, request_body) == pytest.approx(confidence(versions, 1, photo), abs=1e-5)
