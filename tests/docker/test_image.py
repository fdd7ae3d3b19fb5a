"""The image of `mlflow models build-docker`, run by deploy/serving/compose.yaml: locked down, and it does all of README."""

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
from tests.load_clients import asking
from tests.project import REPOSITORY, free_port
from tests.request_formats import bodies, csv, parquet, post

FILE = REPOSITORY / "deploy" / "serving" / "compose.yaml"
READY_TIMEOUT_S = 60
STOP_TIMEOUT_S = 10


def setting(image: str, **more: str) -> dict[str, str]:
    return {"CATDOG_IMAGE": image, "CATDOG_SERVING_PORT": str(free_port()), **more}


def project_name(compose: str) -> str:
    return f"catdog-test-{os.getpid()}-{compose.replace(' ', '-')}"


@pytest.fixture(scope="module")
def stack(compose: str, image: str) -> Iterator[Stack]:
    with composed(compose, FILE, project_name(compose), setting(image)) as stack:
        took = stack.await_up(f"{stack.address('serving', 8080)}/ping", READY_TIMEOUT_S)
        print(f"\n{compose}: ready after {took:.1f} s")
        yield stack


@pytest.fixture(scope="module")
def address(stack: Stack) -> str:
    return stack.address("serving", 8080)


@pytest.fixture(scope="module")
def photo(drawn: Path) -> bytes:
    return (drawn / "test" / "cat" / "cat-0001.jpg").read_bytes()


def record(photo: bytes) -> dict[str, object]:
    return {"dataframe_records": [{"image": base64.b64encode(photo).decode()}]}


def test_it_holds_neither_torch_nor_cuda(engine: DockerClient, image: str):
    listing = engine.containers.run(image, ["-m", "pip", "list"], entrypoint="python", remove=True).decode().lower()
    assert "onnxruntime" in listing
    assert not any(name in listing for name in ("torch", "nvidia", "cuda"))


def test_it_is_locked_down(engine: DockerClient, stack: Stack):
    container = engine.containers.get(stack.container("serving"))
    host = container.attrs["HostConfig"]
    assert container.exec_run("id -u").output.strip() == b"10001"
    assert host["ReadonlyRootfs"]
    assert host["CapDrop"] == ["ALL"]
    assert container.exec_run("touch /opt/ml/model/x").exit_code != 0
    status = container.exec_run("cat /proc/1/status").output.decode()
    assert "CapEff:\t0000000000000000" in status
    assert "NoNewPrivs:\t1" in status
    assert container.attrs["NetworkSettings"]["Ports"]["8080/tcp"][0]["HostIp"] == "127.0.0.1"


def test_compose_knows_that_it_is_healthy(engine: DockerClient, stack: Stack):
    deadline = time.monotonic() + 60
    while (status := engine.containers.get(stack.container("serving")).attrs["State"]["Health"]["Status"]) != "healthy":
        assert time.monotonic() < deadline, status
        time.sleep(0.5)


def test_every_form_gives_the_same_row(address: str, photo: bytes):
    (expected,) = post(address, record(photo))
    assert expected["label"] in ("cat", "dog")
    for name, body in bodies(photo).items():
        assert post(address, body) == [expected], name
    assert post(address, content=csv(photo), kind="text/csv") == [expected]
    assert post(address, content=parquet(photo), kind="application/vnd.apache.parquet") == [expected]
    (explained,) = post(address, {**record(photo), "params": {"explain": True}})
    assert base64.b64decode(explained["heatmap"]).startswith(b"\x89PNG")


def test_a_broken_picture_is_a_row(address: str, photo: bytes):
    good, broken = post(address, {"inputs": [base64.b64encode(cell).decode() for cell in (photo, photo[:300])]})
    assert good["error"] is None
    assert broken["label"] is None
    assert broken["error"].startswith("image 1 is")


def test_a_body_over_100_mib_is_refused(address: str, photo: bytes):
    answer = requests.post(f"{address}/invocations", data=bytes(101 * 1024**2), timeout=60)
    assert answer.status_code == 413
    assert post(address, record(photo))[0]["error"] is None


def test_eight_clients_for_30_s_get_nothing_but_answers(address: str, photo: bytes):
    with asking(address, record(photo)) as answers:
        time.sleep(30)
    print(f"\n{sum(answers.values()) / 30:.0f} photos a second, {dict(answers)}")
    assert len(answers) == 1
    assert set(answers) <= {"cat", "dog"}


def test_it_stops_within_10_s_of_sigterm(engine: DockerClient, compose: str, image: str):
    with composed(compose, FILE, f"{project_name(compose)}-stop", setting(image)) as stack:
        stack.await_up(f"{stack.address('serving', 8080)}/ping", READY_TIMEOUT_S)
        container = engine.containers.get(stack.container("serving"))
        container.update(restart_policy={"Name": "no"})  # type: ignore[typeddict-item]
        started = time.monotonic()
        container.kill("SIGTERM")
        container.wait(timeout=STOP_TIMEOUT_S)
        print(f"\nstopped after {time.monotonic() - started:.1f} s")


def test_a_model_that_cannot_load_fails_the_wait_with_its_log(compose: str, image: str):
    broken = setting(image, SERVING_MODEL_CONFIG='{"threds": 1}')
    message = r"did not answer within 10 s; the log ends:(.|\n)*unknown 'threds'"
    with (
        composed(compose, FILE, f"{project_name(compose)}-broken", broken) as stack,
        pytest.raises(TimeoutError, match=message),
    ):
        stack.await_up(f"{stack.address('serving', 8080)}/ping", 10)
