"""Deployments that change: under load, to broken models, by simultaneous or killed commands; and what failures leave."""

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
from mlflow.exceptions import MlflowException

from tests.docker.conftest import URI, Live, Target, assert_same
from tests.load_clients import assert_none_lost, under_load
from tests.project import MODEL, Project, free_port
from tests.third_party_models import BROKEN, save

PAUSE_S = 0.1  # leaves the builds some of the cores, and connections that are idle when a model is replaced


def test_a_taken_name_is_refused(target: Target, live: Live, nothing_left: None):
    done = target.call("create", "--name", live.name, "-m", URI, "-C", f"port={free_port()}")
    assert done.returncode == 1
    assert f"Error: deployment '{live.name}' already exists: update or delete it" in done.stderr


def test_a_taken_port_is_refused_before_anything_is_built(
    deployments: BaseDeploymentClient,
    target: Target,
    live: Live,
    nothing_left: None,
    capfd: pytest.CaptureFixture[str],
):
    with pytest.raises(MlflowException, match="the port is taken: "):
        deployments.create_deployment(target.new_name(), URI, config={"port": live.port})
    assert "building" not in capfd.readouterr().err


def test_updates_to_broken_models_lose_no_request(
    deployments: BaseDeploymentClient, live: Live, requirements: list[str], tmp_path: Path, nothing_left: None
):
    with under_load(live.address, live.body, pause_s=PAUSE_S) as responses:
        for number, (loading, predicting, message) in enumerate(BROKEN.values()):
            model = save(tmp_path / str(number), requirements, loading, predicting)
            with pytest.raises(MlflowException) as failure:
                deployments.update_deployment(live.name, str(model))
            assert message in failure.value.message
            assert failure.value.message.count("its log ends:") == 1
            assert "Traceback" not in failure.value.message.split("its log ends:")[0]
    assert_none_lost(responses)
    assert len(responses) == 1


@pytest.mark.parametrize(
    ("model", "config", "message"),
    [
        (None, {"memory": "40m"}, "it ran out of memory; raise the limit with -C memory="),
        ("hangs", {"ready_timeout_s": 4}, "the model did not pass its smoke test within 4 s"),
        ("uninstallable", {}, "No matching distribution found for no-such-package-of-catdog"),
        ("models:/Nobody/1", {}, "cannot load model models:/Nobody/1"),
        ("empty", {}, "is not a model with the flavor python_function"),
        (None, {"base_image": "catdog-no-such-image"}, "cannot pull image catdog-no-such-image: "),
        (None, {"wrokers": 1}, "unknown option 'wrokers': did you mean 'workers'?"),
        (None, {"port": 5001}, "option 'port' is for create and run-local, not for update"),
    ],
)
def test_a_failed_update_says_why_and_leaves_the_previous_model(
    model: str | None,
    config: dict[str, object],
    message: str,
    deployments: BaseDeploymentClient,
    live: Live,
    expected: dict,
    requirements: list[str],
    tmp_path: Path,
    nothing_left: None,
):
    if model == "hangs":
        model = str(save(tmp_path / "hangs", requirements, predicting="time.sleep(1000)"))
    elif model == "uninstallable":
        model = str(save(tmp_path / "uninstallable", ["no-such-package-of-catdog==1"]))
    elif model == "empty":
        model = str(tmp_path)
    with pytest.raises(MlflowException) as failure:
        deployments.update_deployment(live.name, model, config=config)
    assert message in failure.value.message
    assert_same(requests.post(f"{live.address}/invocations", json=live.body, timeout=30).json()["predictions"][0], expected)


def test_a_failed_build_leaves_the_layers_of_other_builds(
    deployments: BaseDeploymentClient, docker_client: DockerClient, live: Live, tmp_path: Path, nothing_left: None
):
    (tmp_path / "Dockerfile").write_text(f"FROM catdog-deployment:{live.name}\nLABEL catdog.layer=true")
    other, _ = docker_client.images.build(path=str(tmp_path), rm=True)
    try:
        model = save(tmp_path / "uninstallable", ["no-such-package-of-catdog==1"])
        with pytest.raises(MlflowException, match="cannot build the image"):
            deployments.update_deployment(live.name, str(model))
        assert docker_client.images.get(str(other.id))
    finally:
        docker_client.images.remove(str(other.id), noprune=True)


def test_updates_that_succeed_lose_no_request(
    target: Target, deployments: BaseDeploymentClient, live: Live, docker_client: DockerClient
):
    with under_load(live.address, live.body, pause_s=PAUSE_S) as responses:
        for uri, workers in ((f"models:/{MODEL}/1", "1"), (URI, "2")):
            started = time.monotonic()
            done = target.call("update", "--name", live.name, "-m", uri, "-C", f"workers={workers}")
            assert done.returncode == 0, done.stderr
            print(f"\nupdated in {time.monotonic() - started:.0f} s")
        before = responses.total()
        deadline = time.monotonic() + 30
        while responses.total() < before + 100:  # the last model has served some of them
            assert time.monotonic() < deadline
            time.sleep(0.1)
    assert_none_lost(responses)
    found = deployments.get_deployment(live.name)
    assert (found["model"], found["options"]["workers"], found["address"]) == (f"models:/{MODEL}/2", 2, live.address)
    images = docker_client.images.list(filters={"label": f"catdog.deployment={live.name}"})
    kept = {tag for image in images for tag in image.tags}  # the one that serves, and the one before it
    assert (len(images), kept) == (2, {f"catdog-deployment:{live.name}{suffix}" for suffix in ("", ".previous")})


def test_an_update_without_a_model_follows_the_alias(deployments: BaseDeploymentClient, project: Project, live: Live):
    tracking = project.client()
    tracking.set_registered_model_alias(MODEL, "deployed", "1")
    for version in ("1", "2"):
        tracking.set_registered_model_alias(MODEL, "deployed", version)
        uri = f"models:/{MODEL}@deployed" if version == "1" else None
        deployments.update_deployment(live.name, uri)
        assert deployments.get_deployment(live.name)["model"] == f"models:/{MODEL}/{version}"
    deployments.update_deployment(live.name, URI)
    tracking.delete_registered_model_alias(MODEL, "deployed")


def await_exit(process: int) -> None:
    """Until its sockets are gone, too: a dying process loses the connections it accepts, which is not what is tested."""
    deadline = time.monotonic() + 30
    while Path(f"/proc/{process}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("process", ["worker", "all"])
def test_a_killed_process_is_replaced_and_requests_wait_for_it(process: str, docker_client: DockerClient, live: Live):
    container = live.container(docker_client)
    if process == "all":
        first = int(container.attrs["State"]["Pid"])
        os.kill(first, signal.SIGKILL)
        await_exit(first)
    else:
        code = (
            "import os, pathlib, signal, time; worker = next(p for p in pathlib.Path('/proc').glob('[0-9]*') "
            "if b'runtime.worker' in (p / 'cmdline').read_bytes()); os.kill(int(worker.name), signal.SIGKILL)\n"
            "while worker.exists(): time.sleep(0.01)"
        )
        assert container.exec_run(["python", "-c", code]).exit_code == 0
    for _ in range(5):
        assert requests.post(f"{live.address}/invocations", json=live.body, timeout=60).ok


def test_the_model_connects_to_a_restarted_listener(docker_client: DockerClient, live: Live):
    docker_client.containers.get(f"catdog-{live.name}.listener").restart()
    deadline = time.monotonic() + 30
    while True:
        with contextlib.suppress(requests.ConnectionError):  # until the new one listens
            if requests.post(f"{live.address}/invocations", json=live.body, timeout=60).ok:
                return
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_simultaneous_updates_do_not_mix(target: Target, live: Live, docker_client: DockerClient):
    both = [target.start("update", "--name", live.name, "-C", f"workers={number}") for number in (1, 2)]
    outputs = [update.communicate(timeout=300)[0] for update in both]
    codes = [update.returncode for update in both]
    assert 0 in codes, outputs
    for code, output in zip(codes, outputs, strict=True):  # both succeed if one is done before the other begins
        assert code == 0 or "another command is changing" in output or "has been changing for" in output, output
    containers = docker_client.containers.list(all=True, filters={"label": f"catdog.deployment={live.name}"})
    assert sorted(str(container.name) for container in containers) == [f"catdog-{live.name}", f"catdog-{live.name}.listener"]


def await_container(client: DockerClient, name: str, process: subprocess.Popen[str]) -> Container:
    while process.poll() is None:
        for container in client.containers.list(filters={"name": f"^/?{name}$"}):
            return container
        time.sleep(0.05)
    raise AssertionError(f"exited before {name} was there: {process.communicate()[0]}")


def test_a_killed_update_is_noticed_and_recovered(
    target: Target, deployments: BaseDeploymentClient, live: Live, docker_client: DockerClient
):
    with under_load(live.address, live.body, pause_s=PAUSE_S) as responses:
        update = target.start("update", "--name", live.name, "-C", "ready_timeout_s=1000")
        candidate = await_container(docker_client, f"catdog-{live.name}.new", update)
        update.kill()
        update.communicate()
        with pytest.raises(MlflowException, match="has been changing for"):
            deployments.update_deployment(live.name)
        # What `commit` does first once a candidate has passed: from here on it serves, and the next update does the rest.
        candidate.update(restart_policy={"Name": "unless-stopped"})  # type: ignore[typeddict-item]
        deployments.update_deployment(live.name, config={"ready_timeout_s": 120})
    assert_none_lost(responses)
    assert not docker_client.containers.list(all=True, filters={"name": f"catdog-{live.name}.new"})


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_create_leaves_nothing(number: int, target: Target, docker_client: DockerClient, nothing_left: None):
    name = target.new_name()
    create = target.start("create", "--name", name, "-m", URI, "-C", f"port={free_port()}")
    await_container(docker_client, f"catdog-{name}.new", create)
    create.send_signal(number)
    create.communicate(timeout=60)
    assert create.returncode != 0
