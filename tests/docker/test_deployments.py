"""`mlflow deployments … -t catdog` on a real engine: what is deployed, how it is replaced, and what a failure leaves."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest
import requests
from docker import DockerClient
from docker.models.containers import Container
from mlflow.deployments import BaseDeploymentClient, get_deploy_client
from mlflow.exceptions import MlflowException
from PIL import Image

from tests.clients import asking
from tests.docker.conftest import Target, held
from tests.project import MODEL, Project, free_port
from tests.strangers import BREAKAGES, save

URI = f"models:/{MODEL}@production"
MOST_MB = 600
READY_S = 10


@dataclass(frozen=True)
class Live:
    """A deployment of the model in production."""

    name: str
    port: int
    photo: bytes

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def record(self) -> dict[str, str]:
        return {"image": base64.b64encode(self.photo).decode()}

    @property
    def body(self) -> dict[str, object]:
        return {"dataframe_records": [self.record]}

    def container(self, engine: DockerClient) -> Container:
        return engine.containers.get(f"catdog-{self.name}")


@pytest.fixture(scope="module")
def live(target: Target, drawn: Path) -> Live:
    live = Live(target.name(), free_port(), (drawn / "test" / "cat" / "cat-0001.jpg").read_bytes())
    started = time.monotonic()
    done = target.call("create", "--name", live.name, "-m", URI, "-C", f"port={live.port}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{live.name}: models:/{MODEL}/2 answers at {live.address}/invocations" in done.stderr
    print(f"\ncreated in {time.monotonic() - started:.0f} s")
    return live


@pytest.fixture
def client(project: Project, monkeypatch: pytest.MonkeyPatch) -> BaseDeploymentClient:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", project.tracking_uri)
    client = get_deploy_client("catdog")
    assert client is not None
    return client


@pytest.fixture(scope="module")
def expected(project: Project, live: Live) -> dict[str, object]:
    """What the model says without a server."""
    code = (
        f"import mlflow, pandas; model = mlflow.pyfunc.load_model('{URI}'); "
        f"print(model.predict(pandas.DataFrame([{live.record!r}])).to_json(orient='records', double_precision=15))"
    )
    done = project.command("python", "-c", code)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout)[0])


@pytest.fixture(scope="module")
def requirements(project: Project, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Those of this project's models: what strangers' images then needn't install again."""
    folder = tmp_path_factory.mktemp("requirements")
    done = project.command("mlflow", "artifacts", "download", "-u", f"{URI}/requirements.txt", "-d", str(folder))
    assert done.returncode == 0, done.stderr
    return (folder / "requirements.txt").read_text().splitlines()


@pytest.fixture
def nothing_new(engine: DockerClient, live: Live) -> Iterator[None]:
    """A failure leaves what was there, and no more."""
    before = held(engine)
    yield
    assert held(engine) == before


def assert_same(row: dict, expected: dict) -> None:
    assert {**row, "probabilities": None} == pytest.approx({**expected, "probabilities": None}, abs=1e-6)


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
        (["-C", "base_image=catdog-no-such-image"], "the image on catdog-no-such-image can't be built"),
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


@pytest.mark.parametrize("process", ["worker", "all"])
def test_what_dies_comes_back_and_requests_wait_for_it(process: str, engine: DockerClient, live: Live):
    container = live.container(engine)
    if process == "all":
        os.kill(container.attrs["State"]["Pid"], signal.SIGKILL)
    else:
        code = (
            "import os, pathlib, signal; worker = next(int(p.name) for p in pathlib.Path('/proc').glob('[0-9]*') "
            "if b'container.worker' in (p / 'cmdline').read_bytes()); os.kill(worker, signal.SIGKILL)"
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
