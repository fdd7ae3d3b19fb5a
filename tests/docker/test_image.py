"""The image of `mlflow models build-docker`, run by deploy/serving/compose.yaml: locked down, and complete."""

from __future__ import annotations

import base64
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from docker import DockerClient

from tests.docker.conftest import Stack, composed
from tests.load_clients import assert_none_lost, under_load
from tests.project import REPOSITORY, free_port
from tests.request_formats import bodies, csv, parquet, post

FILE = REPOSITORY / "deploy" / "serving" / "compose.yaml"
READY_TIMEOUT_S = 60
STOP_TIMEOUT_S = 10
LOAD_S = 10


PROJECT = f"catdog-test-{os.getpid()}"


def environment(image: str, **more: str) -> dict[str, str]:
    return {"CATDOG_IMAGE": image, "CATDOG_SERVING_PORT": str(free_port()), **more}


@pytest.fixture(scope="module")
def stack(image: str) -> Iterator[Stack]:
    with composed(FILE, PROJECT, environment(image)) as stack:
        took = stack.await_up(f"{stack.address('serving', 8080)}/ping", READY_TIMEOUT_S)
        print(f"\nready after {took:.1f} s")
        yield stack


@pytest.fixture(scope="module")
def address(stack: Stack) -> str:
    return stack.address("serving", 8080)


@pytest.fixture(scope="module")
def image_bytes(drawn: Path) -> bytes:
    return (drawn / "test" / "cat" / "cat-0001.jpg").read_bytes()


def record(image_bytes: bytes) -> dict[str, object]:
    return {"dataframe_records": [{"image": base64.b64encode(image_bytes).decode()}]}


def test_it_has_neither_torch_nor_cuda(docker_client: DockerClient, image: str):
    listing = docker_client.containers.run(image, ["-m", "pip", "list"], entrypoint="python", remove=True).decode().lower()
    assert "onnxruntime" in listing
    assert not any(name in listing for name in ("torch", "nvidia", "cuda"))


def test_it_is_locked_down(docker_client: DockerClient, stack: Stack):
    container = docker_client.containers.get(stack.container("serving"))
    host = container.attrs["HostConfig"]
    assert container.exec_run("id -u").output.strip() == b"10001"
    assert host["ReadonlyRootfs"]
    assert host["CapDrop"] == ["ALL"]
    assert container.exec_run("touch /opt/ml/model/x").exit_code != 0
    status = container.exec_run("cat /proc/1/status").output.decode()
    assert "CapEff:\t0000000000000000" in status
    assert "NoNewPrivs:\t1" in status
    assert container.attrs["NetworkSettings"]["Ports"]["8080/tcp"][0]["HostIp"] == "127.0.0.1"


def test_it_becomes_healthy(docker_client: DockerClient, stack: Stack):
    deadline = time.monotonic() + 60
    while (
        status := docker_client.containers.get(stack.container("serving")).attrs["State"]["Health"]["Status"]
    ) != "healthy":
        assert time.monotonic() < deadline, status
        time.sleep(0.5)


def test_every_request_format_gives_the_same_row(address: str, image_bytes: bytes):
    (expected,) = post(address, record(image_bytes))
    assert expected["label"] in ("cat", "dog")
    for name, body in bodies(image_bytes).items():
        assert post(address, body) == [expected], name
    assert post(address, content=csv(image_bytes), kind="text/csv") == [expected]
    assert post(address, content=parquet(image_bytes), kind="application/vnd.apache.parquet") == [expected]
    (explained,) = post(address, {**record(image_bytes), "params": {"explain": True}})
    assert base64.b64decode(explained["heatmap"]).startswith(b"\x89PNG")


def test_a_corrupt_image_is_an_error_row(address: str, image_bytes: bytes):
    good, corrupt = post(address, {"inputs": [base64.b64encode(cell).decode() for cell in (image_bytes, image_bytes[:300])]})
    assert good["error"] is None
    assert corrupt["label"] is None
    assert corrupt["error"].startswith("image 1 is")


def test_a_body_over_100_mib_is_refused(address: str, image_bytes: bytes):
    response = requests.post(f"{address}/invocations", data=bytes(101 * 1024**2), timeout=60)
    assert response.status_code == 413
    assert post(address, record(image_bytes))[0]["error"] is None


def test_eight_clients_get_nothing_but_predictions(address: str, image_bytes: bytes):
    with under_load(address, record(image_bytes)) as responses:
        time.sleep(LOAD_S)
    print(f"\n{responses.total() / LOAD_S:.0f} images per second")
    assert_none_lost(responses)
    assert len(responses) == 1


def test_it_stops_within_10_s_of_sigterm(docker_client: DockerClient, stack: Stack):
    container = docker_client.containers.get(stack.container("serving"))
    container.update(restart_policy={"Name": "no"})  # type: ignore[typeddict-item]
    started = time.monotonic()
    container.kill("SIGTERM")
    try:
        container.wait(timeout=STOP_TIMEOUT_S)
        print(f"\nstopped after {time.monotonic() - started:.1f} s")
    finally:  # the other tests use it, too
        container.restart()
        stack.await_up(f"{stack.address('serving', 8080)}/ping", READY_TIMEOUT_S)


def test_a_model_that_cannot_load_fails_the_wait_with_its_log(image: str):
    broken = environment(image, SERVING_MODEL_CONFIG='{"threds": 1}')
    message = r"did not answer within 40 s; the log ends:(.|\n)*unknown 'threds'"
    with composed(FILE, f"{PROJECT}-broken", broken) as stack, pytest.raises(TimeoutError, match=message):
        stack.await_up(f"{stack.address('serving', 8080)}/ping", 40)
