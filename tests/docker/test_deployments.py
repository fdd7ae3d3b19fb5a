"""`mlflow deployments … -t catdog` on a real engine: what is deployed, and how it is asked."""

from __future__ import annotations

import base64
import io
import json
import os
import time
from pathlib import Path

import pandas as pd
import pytest
import requests
from docker import DockerClient
from mlflow.deployments import BaseDeploymentClient
from mlflow.exceptions import MlflowException
from PIL import Image

from tests.docker.conftest import URI, Live, Target, assert_same
from tests.project import MODEL, free_port
from tests.third_party_models import save

MOST_MB = 600
READY_S = 10


def test_the_image_is_small_and_holds_no_torch_and_no_nginx(engine: DockerClient, live: Live):
    size_mb = engine.images.get(f"catdog-deployment:{live.name}").attrs["Size"] / 1e6
    print(f"\n{size_mb:.0f} MB")
    assert size_mb <= MOST_MB
    container = live.container(engine)
    assert b"onnxruntime" in (listing := container.exec_run("pip list").output)
    assert b"torch" not in listing
    assert container.exec_run("sh -c 'command -v nginx'").exit_code != 0


def test_it_is_locked_down_and_has_no_network(engine: DockerClient, live: Live):
    container = live.container(engine)
    assert container.exec_run("id -u").output.strip() == b"10001"
    assert container.exec_run("touch /opt/ml/model/x").exit_code != 0
    status = container.exec_run("cat /proc/1/status").output.decode()
    assert "CapEff:\t0000000000000000" in status
    assert "NoNewPrivs:\t1" in status
    assert [line.split(b":")[0].strip() for line in container.exec_run("cat /proc/net/dev").output.splitlines()[2:]] == [
        b"lo"
    ]
    door = engine.containers.get(f"catdog-{live.name}.door")
    assert door.attrs["Config"]["User"].startswith("10001")
    assert door.attrs["NetworkSettings"]["Ports"]["8080/tcp"] == [{"HostIp": "127.0.0.1", "HostPort": str(live.port)}]


def test_it_is_ready_in_time_with_a_worker_a_core_and_gets_healthy(engine: DockerClient, target: Target, live: Live):
    container = live.container(engine)
    assert f"ready: {len(os.sched_getaffinity(0))} workers" in bytes(container.logs()).decode()
    started = time.monotonic()
    container.restart()
    answer = requests.post(f"{live.address}/invocations", json=live.body, timeout=60)
    took = time.monotonic() - started
    print(f"\nanswers {took:.1f} s after it was told to restart")
    assert answer.ok
    assert took <= READY_S
    while (status := live.container(engine).attrs["State"]["Health"]["Status"]) != "healthy":
        assert time.monotonic() - started < 60, status
        time.sleep(0.5)


def test_predict_gives_what_the_model_says(target: Target, live: Live, expected: dict, tmp_path: Path):
    (tmp_path / "photos.json").write_text(json.dumps([live.record, {"image": "no picture"}]))
    done = target.call("predict", "--name", live.name, "-I", str(tmp_path / "photos.json"))
    assert done.returncode == 0, done.stderr
    good, bad = json.loads(done.stdout)["predictions"]
    assert_same(good, expected)
    assert bad["error"].startswith("image 1 is")


def test_the_python_client_takes_bytes(client: BaseDeploymentClient, live: Live, expected: dict):
    for inputs in (pd.DataFrame({"image": [live.photo]}), [{"image": live.photo}], {"image": [live.photo]}):
        (row,) = client.predict(live.name, inputs)["predictions"]
        assert_same(row, expected)


def test_its_image_runs_without_a_door(engine: DockerClient, live: Live, expected: dict):
    port = free_port()
    image, ports = f"catdog-deployment:{live.name}", {"8080/tcp": ("127.0.0.1", port)}
    container = engine.containers.run(image, detach=True, ports=ports, environment={"CATDOG_WORKERS": "1"})
    try:
        assert container.exec_run(["python", "-m", "container.ask", "picture", "60"]).exit_code == 0
        answer = requests.post(f"http://127.0.0.1:{port}/invocations", json=live.body, timeout=60).json()
        assert_same(answer["predictions"][0], expected)
        container.stop(timeout=10)
        container.reload()
        assert container.attrs["State"]["ExitCode"] == 0
    finally:
        container.remove(force=True)


def test_a_share_of_the_cores_is_what_the_model_uses(engine: DockerClient, live: Live):
    command = ["python", "-c", "from catdog_pyfunc import classifier; print(classifier.available_cores())"]
    image, path = f"catdog-deployment:{live.name}", {"PYTHONPATH": "/opt/ml/model/code"}
    assert engine.containers.run(image, command, environment=path, nano_cpus=int(1e9), remove=True).strip() == b"1"


def test_explain_gives_heat_maps(target: Target, client: BaseDeploymentClient, live: Live, tmp_path: Path):
    (tmp_path / "photos.json").write_text(json.dumps([live.record]))
    done = target.call("explain", "--name", live.name, "-I", str(tmp_path / "photos.json"))
    assert done.returncode == 0, done.stderr
    (told,) = json.loads(done.stdout)
    row = client.explain(live.name, pd.DataFrame([live.record])).iloc[0]
    assert row["heatmap"] == told["heatmap"]
    assert Image.open(io.BytesIO(base64.b64decode(row["heatmap"]))).format == "PNG"


def test_get_and_list_tell_where_and_what(target: Target, client: BaseDeploymentClient, live: Live):
    told = client.get_deployment(live.name)
    assert told["address"] == live.address
    assert (told["model_uri"], told["model"]) == (URI, f"models:/{MODEL}/2")
    assert told["status"].startswith("running")
    assert told in client.list_deployments()
    assert f"address: {live.address}" in target.call("get", "--name", live.name).stdout
    assert live.name in target.call("list").stdout


def test_bodies_have_a_limit(target: Target, live: Live):
    assert target.call("update", "--name", live.name, "-C", "max_body_mb=1").returncode == 0
    chunks = (bytes(1000) for _ in range(2000))
    for body in (bytes(2 * 1024**2), chunks):
        assert requests.post(f"{live.address}/invocations", data=body, timeout=60).status_code == 413
    assert requests.post(f"{live.address}/invocations", json=live.body, timeout=60).ok


def test_a_strangers_model_is_deployed_from_python(
    target: Target, client: BaseDeploymentClient, requirements: list[str], tmp_path: Path, live: Live
):
    name, port = target.name(), free_port()
    model = save(tmp_path / "stranger", requirements)
    created = client.create_deployment(name, str(model), config={"port": port, "workers": 1})
    assert created["answer"] == {"label": "cat", "confidence": 0.5}
    assert (created["name"], created["address"]) == (name, f"http://127.0.0.1:{port}")
    assert client.predict(name, {"photo": [live.photo]})["predictions"] == [{"label": "cat", "confidence": 0.5}]
    with pytest.raises(MlflowException, match="makes no heat maps"):
        client.explain(name, pd.DataFrame({"photo": [live.photo]}))
    with pytest.raises(MlflowException, match="answered HTTP 400: "):
        client.predict(name, {"picture": [live.photo]})
    for _ in range(2):
        client.delete_deployment(name)
    with pytest.raises(MlflowException, match="there is no deployment") as missing:
        client.get_deployment(name)
    assert missing.value.error_code == "RESOURCE_DOES_NOT_EXIST"
    assert name not in {deployment["name"] for deployment in client.list_deployments()}
