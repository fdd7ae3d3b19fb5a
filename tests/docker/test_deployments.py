"""`mlflow deployments … -t catdog` on a real Docker daemon: what is deployed, and how it is used."""

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

MAX_MB = 600
READY_S = 10


def test_the_image_is_small_and_has_no_torch_and_no_nginx(docker_client: DockerClient, live: Live):
    size_mb = docker_client.images.get(f"catdog-deployment:{live.name}").attrs["Size"] / 1e6
    print(f"\n{size_mb:.0f} MB")
    assert size_mb <= MAX_MB
    container = live.container(docker_client)
    assert b"onnxruntime" in (listing := container.exec_run("pip list").output)
    assert b"torch" not in listing
    assert container.exec_run("sh -c 'command -v nginx'").exit_code != 0


def test_containers_are_locked_down_and_the_model_has_no_network(docker_client: DockerClient, live: Live):
    container = live.container(docker_client)
    assert container.exec_run("id -u").output.strip() == b"10001"
    assert container.exec_run("touch /opt/catdog/model/x").exit_code != 0
    status = container.exec_run("cat /proc/1/status").output.decode()
    assert "CapEff:\t0000000000000000" in status
    assert "NoNewPrivs:\t1" in status
    assert [line.split(b":")[0].strip() for line in container.exec_run("cat /proc/net/dev").output.splitlines()[2:]] == [
        b"lo"
    ]
    listener = docker_client.containers.get(f"catdog-{live.name}.listener")
    assert listener.labels["catdog.role"] == "listener"
    assert listener.attrs["Config"]["User"].startswith("10001")
    assert listener.attrs["NetworkSettings"]["Ports"]["8080/tcp"] == [{"HostIp": "127.0.0.1", "HostPort": str(live.port)}]


def test_a_restarted_model_serves_in_time_with_one_worker_per_core_and_becomes_healthy(
    docker_client: DockerClient, live: Live
):
    container = live.container(docker_client)
    assert f"ready: {len(os.sched_getaffinity(0))} workers" in bytes(container.logs()).decode()
    started = time.monotonic()
    container.restart()
    response = requests.post(f"{live.address}/invocations", json=live.body, timeout=60)
    took = time.monotonic() - started
    print(f"\nresponds {took:.1f} s after the restart began")
    assert response.ok
    assert took <= READY_S
    while (status := live.container(docker_client).attrs["State"]["Health"]["Status"]) != "healthy":
        assert time.monotonic() - started < 60, status
        time.sleep(0.5)


def test_predict_gives_the_models_predictions(target: Target, live: Live, expected: dict, tmp_path: Path):
    (tmp_path / "images.json").write_text(json.dumps([live.record, {"image": "no image"}]))
    done = target.call("predict", "--name", live.name, "-I", str(tmp_path / "images.json"))
    assert done.returncode == 0, done.stderr
    good, corrupt = json.loads(done.stdout)["predictions"]
    assert_same(good, expected)
    assert corrupt["error"].startswith("image 1 is")


def test_the_python_client_takes_bytes(deployments: BaseDeploymentClient, live: Live, expected: dict):
    for inputs in (pd.DataFrame({"image": [live.image]}), [{"image": live.image}], {"image": [live.image]}):
        (row,) = deployments.predict(live.name, inputs)["predictions"]
        assert_same(row, expected)


@pytest.mark.parametrize(("cpus", "workers"), [(1.0, 1), (1.5, 2)])
def test_the_image_runs_alone_with_one_worker_per_core_of_its_quota(
    docker_client: DockerClient, live: Live, expected: dict, cpus: float, workers: int
):
    port = free_port()
    image, ports = f"catdog-deployment:{live.name}", {"8080/tcp": ("127.0.0.1", port)}
    container = docker_client.containers.run(image, detach=True, ports=ports, nano_cpus=int(cpus * 1e9))
    try:
        assert container.exec_run(["python", "-m", "runtime.healthcheck", "smoke-test", "60"]).exit_code == 0
        assert f"ready: {workers} workers" in bytes(container.logs()).decode()
        predictions = requests.post(f"http://127.0.0.1:{port}/invocations", json=live.body, timeout=60).json()
        assert_same(predictions["predictions"][0], expected)
        container.stop(timeout=10)
        container.reload()
        assert container.attrs["State"]["ExitCode"] == 0
    finally:
        container.remove(force=True)


def test_the_image_runs_as_sagemaker_starts_it(docker_client: DockerClient, live: Live, expected: dict):
    port = free_port()
    ports = {"8080/tcp": ("127.0.0.1", port)}
    container = docker_client.containers.run(f"catdog-deployment:{live.name}", "serve", detach=True, ports=ports)
    try:
        assert container.exec_run(["python", "-m", "runtime.healthcheck", "ping", "60"]).exit_code == 0
        address, jpeg = f"http://127.0.0.1:{port}", {"Content-Type": "image/jpeg"}
        assert requests.get(f"{address}/ping", timeout=20).status_code == 200
        answer = requests.post(f"{address}/invocations", data=live.image, headers=jpeg, timeout=60).json()
        assert_same(answer["predictions"][0], expected)
        container.stop(timeout=30)
        container.reload()
        assert container.attrs["State"]["ExitCode"] == 0
    finally:
        container.remove(force=True)


def test_keys_are_asked_for_and_docker_inspect_does_not_show_them(
    deployments: BaseDeploymentClient, docker_client: DockerClient, live: Live, expected: dict, tmp_path: Path
):
    old, new = "an-old-key-0123456789", "a-new-key-0123456789"
    keys = tmp_path / "keys"
    keys.write_text(f"{old}\n{new}\n")
    keys.chmod(0o644)
    deployments.update_deployment(live.name, config={"api_keys_file": str(keys)})
    for given, status in ((None, 401), ("a-wrong-key-0123456789", 401), (old, 200), (new, 200)):
        headers = {"Authorization": f"Bearer {given}"} if given else {}
        assert (
            requests.post(f"{live.address}/invocations", json=live.body, headers=headers, timeout=60).status_code == status
        )
    (row,) = deployments.predict(live.name, [{"image": live.image}])["predictions"]
    assert_same(row, expected)
    shown = json.dumps(docker_client.api.inspect_container(f"catdog-{live.name}"))
    assert old not in shown
    assert new not in shown
    keys.write_text(f"{new}\n")
    deployments.update_deployment(live.name)
    assert requests.post(f"{live.address}/predict", live.image, headers={"X-API-Key": old}, timeout=60).status_code == 401
    assert requests.post(f"{live.address}/predict", live.image, headers={"X-API-Key": new}, timeout=60).status_code == 200
    deployments.update_deployment(live.name, config={"api_keys_file": ""})


def test_explain_gives_heatmaps(target: Target, deployments: BaseDeploymentClient, live: Live, tmp_path: Path):
    (tmp_path / "images.json").write_text(json.dumps([live.record]))
    done = target.call("explain", "--name", live.name, "-I", str(tmp_path / "images.json"))
    assert done.returncode == 0, done.stderr
    (printed,) = json.loads(done.stdout)
    row = deployments.explain(live.name, pd.DataFrame([live.record])).iloc[0]
    assert row["heatmap"] == printed["heatmap"]
    assert Image.open(io.BytesIO(base64.b64decode(row["heatmap"]))).format == "PNG"


def test_get_and_list_show_address_and_model(target: Target, deployments: BaseDeploymentClient, live: Live):
    deployment = deployments.get_deployment(live.name)
    assert deployment["address"] == live.address
    assert (deployment["model_uri"], deployment["model"]) == (URI, f"models:/{MODEL}/2")
    assert deployment["status"].startswith("running")
    assert deployment in deployments.list_deployments()
    assert f"address: {live.address}" in target.call("get", "--name", live.name).stdout
    assert live.name in target.call("list").stdout


def test_bodies_have_a_limit(deployments: BaseDeploymentClient, live: Live):
    deployments.update_deployment(live.name, config={"max_body_mb": 1})
    chunks = (bytes(1000) for _ in range(2000))
    for body in (bytes(2 * 1024**2), chunks):
        response = requests.post(f"{live.address}/invocations", data=body, timeout=60)
        assert (response.status_code, response.json()) == (413, {"error": "the request body is larger than 1 MiB"})
    assert requests.post(f"{live.address}/invocations", json=live.body, timeout=60).ok


def test_a_third_party_model_is_deployed_with_its_own_pins(
    deployments: BaseDeploymentClient,
    docker_client: DockerClient,
    target: Target,
    live: Live,
    requirements: list[str],
    tmp_path: Path,
):
    pins = ["starlette==0.49.3", "uvicorn==0.34.0"]
    model = save(tmp_path / "third-party", [*requirements, *pins])
    name, port = target.new_name(), free_port()
    base = f"catdog-deployment:{live.name}"  # has most of the packages
    config = {"port": port, "cpus": 1, "base_image": base}
    created = deployments.create_deployment(name, str(model), config=config)
    assert created["prediction"] == {"label": "cat", "confidence": 0.5}
    assert (created["name"], created["address"]) == (name, f"http://127.0.0.1:{port}")
    assert deployments.predict(name, {"photo": [live.image]})["predictions"] == [{"label": "cat", "confidence": 0.5}]
    container = docker_client.containers.get(f"catdog-{name}")
    assert "ready: 1 workers" in bytes(container.logs()).decode()
    installed = container.exec_run("pip list --format freeze").output.decode()
    assert set(pins) <= set(installed.splitlines())
    with pytest.raises(MlflowException, match="makes no heatmaps"):
        deployments.explain(name, pd.DataFrame({"photo": [live.image]}))
    with pytest.raises(MlflowException, match="responded with HTTP 400: "):
        deployments.predict(name, {"picture": [live.image]})

    mine = f"catdog-test-{os.getpid()}-mine:1"
    docker_client.images.get(f"catdog-deployment:{name}").tag(mine)
    for _ in range(2):
        deployments.delete_deployment(name)
    assert docker_client.images.get(mine).tags == [mine]
    docker_client.images.remove(mine)
    with pytest.raises(MlflowException, match="there is no deployment") as missing:
        deployments.get_deployment(name)
    assert missing.value.error_code == "RESOURCE_DOES_NOT_EXIST"
    assert name not in {deployment["name"] for deployment in deployments.list_deployments()}
