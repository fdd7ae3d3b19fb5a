"""Deployments that change: under load, by broken models, by two at once, killed in the middle; and what a failure leaves."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import requests
from docker import DockerClient
from docker.models.containers import Container
from mlflow.deployments import BaseDeploymentClient

from tests.docker.conftest import URI, Live, Target, assert_same
from tests.load_clients import asking
from tests.project import MODEL, Project, free_port
from tests.third_party_models import BREAKAGES, save


def test_a_second_create_is_told_that_the_name_is_taken(target: Target, live: Live, nothing_new: None):
    done = target.call("create", "--name", live.name, "-m", URI, "-C", f"port={free_port()}")
    assert done.returncode == 1
    assert f"Error: deployment '{live.name}' is there already: update or delete it" in done.stderr


def test_a_taken_port_is_told_before_anything_is_built(target: Target, live: Live, nothing_new: None):
    done = target.call("create", "--name", target.name(), "-m", URI, "-C", f"port={live.port}")
    assert done.returncode == 1
    assert "Error: the port is taken: " in done.stderr
    assert "building" not in done.stderr


def test_updates_to_broken_models_lose_no_request(
    target: Target, live: Live, requirements: list[str], tmp_path: Path, nothing_new: None
):
    with asking(live.address, live.body) as answers:
        for number, (loading, answering, message) in enumerate(BREAKAGES.values()):
            broken = save(tmp_path / str(number), requirements, loading, answering)
            done = target.call("update", "--name", live.name, "-m", str(broken))
            assert done.returncode == 1
            assert done.stderr.count("its log ends:") == 1
            assert message in done.stderr
            assert "Traceback" not in done.stderr.split("its log ends:")[0]
    print(f"\n{dict(answers)}")
    assert len(answers) == 1
    assert set(answers) <= {"cat", "dog"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-C", "memory=40m"], "it ran out of memory; give it more by -C memory="),
        (["-m", "{sleeper}", "-C", "ready_timeout_s=4"], "the model didn't answer a picture within 4 s"),
        (["-m", "{unknown}"], "No matching distribution found for no-such-package-of-catdog"),
        (["-m", "models:/Nobody/1"], "model models:/Nobody/1 can't be had"),
        (["-m", "{empty}"], "is no model with the flavor python_function"),
        (["-C", "base_image=catdog-no-such-image"], "image catdog-no-such-image can't be had: "),
        (["-C", "wrokers=1"], "unknown option 'wrokers': did you mean 'workers'?"),
        (["-C", "port=5001"], "option 'port' is for create and run-local, not for update"),
    ],
)
def test_what_fails_an_update_is_told_and_leaves_the_old_one(
    words: list[str],
    message: str,
    target: Target,
    live: Live,
    expected: dict,
    requirements: list[str],
    tmp_path: Path,
    nothing_new: None,
):
    (tmp_path / "empty").mkdir()
    places = {
        "sleeper": save(tmp_path / "a", requirements, loading="time.sleep(1000)"),
        "unknown": save(tmp_path / "b", ["no-such-package-of-catdog==1"]),
        "empty": tmp_path / "empty",
    }
    done = target.call("update", "--name", live.name, *(word.format(**places) for word in words))
    assert done.returncode == 1
    assert message in done.stderr
    assert_same(requests.post(f"{live.address}/invocations", json=live.body, timeout=30).json()["predictions"][0], expected)


def test_updates_that_succeed_lose_no_request(
    target: Target, client: BaseDeploymentClient, live: Live, engine: DockerClient
):
    with asking(live.address, live.body) as answers:
        for uri, workers in ((f"models:/{MODEL}/1", "1"), (URI, "2")):
            time.sleep(1)
            started = time.monotonic()
            done = target.call("update", "--name", live.name, "-m", uri, "-C", f"workers={workers}")
            assert done.returncode == 0, done.stderr
            print(f"\nupdated in {time.monotonic() - started:.0f} s")
        time.sleep(1)
    print(f"\n{dict(answers)}")
    assert set(answers) <= {"cat", "dog"}
    told = client.get_deployment(live.name)
    assert (told["model"], told["options"]["workers"], told["address"]) == (f"models:/{MODEL}/2", 2, live.address)
    images = engine.images.list(filters={"label": f"catdog.deployment={live.name}"})
    assert [image.tags for image in images] == [[f"catdog-deployment:{live.name}"]]


def test_an_update_without_a_model_follows_the_alias(
    target: Target, client: BaseDeploymentClient, project: Project, live: Live
):
    tracking = project.client()
    tracking.set_registered_model_alias(MODEL, "deployed", "1")
    for version in ("1", "2"):
        tracking.set_registered_model_alias(MODEL, "deployed", version)
        words = ["-m", f"models:/{MODEL}@deployed"] if version == "1" else []
        done = target.call("update", "--name", live.name, *words)
        assert done.returncode == 0, done.stderr
        assert client.get_deployment(live.name)["model"] == f"models:/{MODEL}/{version}"
    assert target.call("update", "--name", live.name, "-m", URI).returncode == 0
    tracking.delete_registered_model_alias(MODEL, "deployed")


def await_end(process: int) -> None:
    """Until it and its sockets are gone: what the dying take from the queue dies with them, which is not what is tested."""
    deadline = time.monotonic() + 30
    while Path(f"/proc/{process}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("process", ["worker", "all"])
def test_what_dies_comes_back_and_requests_wait_for_it(process: str, engine: DockerClient, live: Live):
    container = live.container(engine)
    if process == "all":
        first = int(container.attrs["State"]["Pid"])
        os.kill(first, signal.SIGKILL)
        await_end(first)
    else:
        code = (
            "import os, pathlib, signal, time; worker = next(p for p in pathlib.Path('/proc').glob('[0-9]*') "
            "if b'container.worker' in (p / 'cmdline').read_bytes()); os.kill(int(worker.name), signal.SIGKILL)\n"
            "while worker.exists(): time.sleep(0.01)"
        )
        assert container.exec_run(["python", "-c", code]).exit_code == 0
    for _ in range(5):
        assert requests.post(f"{live.address}/invocations", json=live.body, timeout=60).ok


def test_after_its_door_was_restarted_the_model_finds_the_new_one(engine: DockerClient, live: Live):
    engine.containers.get(f"catdog-{live.name}.door").restart()
    deadline = time.monotonic() + 30
    while True:
        with contextlib.suppress(requests.ConnectionError):  # until the new one listens
            if requests.post(f"{live.address}/invocations", json=live.body, timeout=60).ok:
                return
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_of_two_updates_at_once_one_wins(target: Target, live: Live, engine: DockerClient):
    both = [target.begin("update", "--name", live.name, "-C", f"workers={number}") for number in (1, 2)]
    told = [update.communicate(timeout=300)[0] for update in both]
    codes = [update.returncode for update in both]
    assert sorted(codes) == [0, 1], told
    assert (
        "somebody else is changing this deployment" in told[codes.index(1)]
        or "is being changed since" in told[codes.index(1)]
    )
    names = [
        container.name for container in engine.containers.list(all=True, filters={"label": f"catdog.deployment={live.name}"})
    ]
    assert sorted(map(str, names)) == [f"catdog-{live.name}", f"catdog-{live.name}.door"]


def await_container(engine: DockerClient, name: str, process: subprocess.Popen[str]) -> Container:
    while process.poll() is None:
        for container in engine.containers.list(filters={"name": f"^/?{name}$"}):
            return container
        time.sleep(0.05)
    raise AssertionError(f"ended before {name} was there: {process.communicate()[0]}")


def test_an_update_that_was_killed_is_noticed_and_cleared(target: Target, live: Live, engine: DockerClient):
    words = ("--name", live.name, "-C", "ready_timeout_s=1000")
    with asking(live.address, live.body) as answers:
        update = target.begin("update", *words)
        candidate = await_container(engine, f"catdog-{live.name}.new", update)
        update.kill()
        update.wait()
        done = target.call("update", *words)
        assert done.returncode == 1
        assert "is being changed since" in done.stderr
        # Once it has answered and been accepted, it is the one that serves; what was left undone is done by the next update.
        candidate.update(restart_policy={"Name": "unless-stopped"})  # type: ignore[typeddict-item]
        done = target.call("update", "--name", live.name, "-C", "ready_timeout_s=120")
        assert done.returncode == 0, done.stderr
    assert set(answers) <= {"cat", "dog"}
    assert not engine.containers.list(all=True, filters={"name": f"catdog-{live.name}.new"})


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_create_leaves_nothing(number: int, target: Target, engine: DockerClient, nothing_new: None):
    name = target.name()
    create = target.begin("create", "--name", name, "-m", URI, "-C", f"port={free_port()}")
    await_container(engine, f"catdog-{name}.new", create)
    create.send_signal(number)
    create.communicate(timeout=60)
    assert create.returncode != 0
