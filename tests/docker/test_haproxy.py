"""deploy/haproxy: replicas that are stopped, updated and killed under load, by the commands of docs/load-balancer.md.

CATDOG_HAPROXY_IMAGE may name another image to run.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import requests
from docker import DockerClient
from docker.models.containers import Container

from tests.docker.conftest import COMPOSE, Live, Stack, Target, composed
from tests.load_clients import assert_none_lost, under_load
from tests.project import REPOSITORY, free_port
from tests.third_party_models import save
from tests.waiting import await_condition

FOLDER = REPOSITORY / "deploy" / "haproxy"
PAGE = REPOSITORY / "docs" / "load-balancer.md"
NEEDED = (2, 31)  # an older Compose scales down to the old replicas instead of the new ones
UP = "up -d --wait"
UPDATE = ("up -d --wait --no-recreate --scale serving=4", UP)
CLIENTS = 8
PAUSE_S = 0.1  # leaves replicas that start some of the cores
TAG = f"catdog-test-{os.getpid()}-versions"


@dataclass(frozen=True)
class Balanced:
    """The stack, and a request that each of the two models answers."""

    stack: Stack
    client: DockerClient
    body: dict[str, object]

    @property
    def address(self) -> str:
        return self.stack.address("haproxy", 8080)

    def run(self, command: str) -> None:
        """Run a command of the page."""
        assert f"docker compose {command}\n" in PAGE.read_text()
        self.stack.execute(command)

    def replicas(self) -> list[Container]:
        return [self.client.containers.get(name) for name in self.stack.execute("ps -q serving").split()]

    def version(self) -> str:
        """The version that answers a request."""
        response = requests.post(f"{self.address}/invocations", json=self.body, timeout=30)
        return "1" if response.json()["predictions"][0]["confidence"] == 0.5 else "2"


def received(replica: Container) -> int:
    """Bytes that have reached a replica."""
    networks = replica.stats(stream=False).get("networks", {})
    return sum(network["rx_bytes"] for network in networks.values())


@pytest.fixture(scope="module")
def haproxy_image() -> str:
    (default,) = re.findall(r"CATDOG_HAPROXY_IMAGE:-([^}]+)", (FOLDER / "compose.yaml").read_text())
    return os.environ.get("CATDOG_HAPROXY_IMAGE", default)


@pytest.fixture(scope="module")
def images(
    docker_client: DockerClient,
    target: Target,
    live: Live,
    requirements: list[str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[None]:
    """Images of two models, tagged as a user would: 1 is always 50 % sure, 2 is the model in production."""
    model, name = save(tmp_path_factory.mktemp("models") / "first", requirements), target.new_name()
    options = [f"port={free_port()}", "workers=1", f"base_image=catdog-deployment:{live.name}"]  # has the packages
    done = target.call("create", "--name", name, "-m", str(model), *(word for option in options for word in ("-C", option)))
    assert done.returncode == 0, done.stderr
    for version, deployment in (("1", name), ("2", live.name)):
        docker_client.images.get(f"catdog-deployment:{deployment}").tag(TAG, version)
    assert target.call("delete", "--name", name).returncode == 0
    yield
    for version in ("1", "2"):
        docker_client.images.remove(f"{TAG}:{version}")


@pytest.fixture(scope="module")
def balanced(docker_client: DockerClient, images: None, live: Live, haproxy_image: str) -> Iterator[Balanced]:
    """Two replicas of version 2."""
    found = subprocess.run([*COMPOSE.split(), "version", "--short"], capture_output=True, text=True, check=True).stdout
    if tuple(map(int, re.findall(r"\d+", found)[:2])) < NEEDED:
        pytest.skip(f"Compose {found.strip()} is older than {'.'.join(map(str, NEEDED))}, which deploy/haproxy requires")
    settings = {
        "CATDOG_IMAGE": f"{TAG}:2",
        "CATDOG_HAPROXY_PORT": str(free_port()),
        "CATDOG_HAPROXY_IMAGE": haproxy_image,
    }
    with composed(FOLDER / "compose.yaml", f"catdog-test-{os.getpid()}-haproxy", settings) as stack:
        record = {"image": live.record["image"], "photo": live.record["image"]}  # each model reads its own column
        balanced = Balanced(stack, docker_client, {"dataframe_records": [record]})
        balanced.run(UP)
        yield balanced


def test_the_configuration_is_valid(docker_client: DockerClient, haproxy_image: str):
    folder = "/usr/local/etc/haproxy"
    volumes = {str(FOLDER): {"bind": folder, "mode": "ro"}}
    command = ["haproxy", "-c", "-f", f"{folder}/haproxy.cfg"]
    docker_client.containers.run(haproxy_image, command, volumes=volumes, remove=True)  # fails unless it exits with 0


def test_containers_are_locked_down_and_replicas_have_no_way_out(balanced: Balanced):
    proxy = balanced.client.containers.get(balanced.stack.container("haproxy"))
    for container in (proxy, *balanced.replicas()):
        assert container.exec_run("id -u").output.strip() == b"10001"
        assert "CapEff:\t0000000000000000" in container.exec_run("cat /proc/1/status").output.decode()
        assert container.exec_run("touch /usr/x").exit_code != 0
    assert proxy.attrs["NetworkSettings"]["Ports"]["8080/tcp"][0]["HostIp"] == "127.0.0.1"
    for replica in balanced.replicas():
        (network,) = replica.attrs["NetworkSettings"]["Networks"]
        assert balanced.client.networks.get(network).attrs["Internal"]
        assert not any(replica.attrs["NetworkSettings"]["Ports"].values())


def test_requests_are_spread_over_all_replicas(balanced: Balanced):
    replicas = balanced.replicas()
    assert len(replicas) == 2
    before = [received(replica) for replica in replicas]
    with under_load(balanced.address, balanced.body, CLIENTS) as responses:
        time.sleep(3)
    assert_none_lost(responses)
    shares = [received(replica) - at_first for replica, at_first in zip(replicas, before, strict=True)]
    print(f"\nbytes: {shares}")
    assert min(shares) > sum(shares) / 4


def test_a_stopped_replica_loses_no_request(balanced: Balanced):
    replica, _ = balanced.replicas()
    with under_load(balanced.address, balanced.body, CLIENTS) as responses:
        started = time.monotonic()
        replica.stop(timeout=75)
        print(f"\nstopped in {time.monotonic() - started:.1f} s")
        replica.reload()
        assert replica.attrs["State"]["ExitCode"] == 0
        replica.start()
        await_use(replica)
    assert_none_lost(responses)


def await_use(replica: Container) -> None:
    """Until a replica receives more than health checks."""
    before = received(replica)
    await_condition(lambda: received(replica) > before + 100_000, timeout_s=60)


def test_updates_and_rollbacks_lose_no_request(balanced: Balanced, monkeypatch: pytest.MonkeyPatch):
    with under_load(balanced.address, balanced.body, CLIENTS, PAUSE_S) as responses:
        for version in ("1", "2"):
            monkeypatch.setenv("CATDOG_IMAGE", f"{TAG}:{version}")
            started = time.monotonic()
            for command in UPDATE:
                balanced.run(command)
            print(f"\nversion {version} in {time.monotonic() - started:.0f} s")
            assert len(balanced.replicas()) == 2
            assert [balanced.version() for _ in range(20)] == [version] * 20
    print(balanced.stack.execute("logs haproxy"))
    assert_none_lost(responses)


def test_replicas_that_cannot_start_get_no_request(balanced: Balanced, monkeypatch: pytest.MonkeyPatch):
    before = {replica.id for replica in balanced.replicas()}
    with under_load(balanced.address, balanced.body, CLIENTS, PAUSE_S) as responses:
        with monkeypatch.context() as broken:
            broken.setenv("SERVING_MODEL_CONFIG", '{"threds": 1}')
            with pytest.raises(Exception, match=r"unhealthy|exited"):
                balanced.run(UPDATE[0])
        assert before < {replica.id for replica in balanced.replicas()}
        balanced.run(UP)
    assert_none_lost(responses)
    assert {replica.id for replica in balanced.replicas()} == before


def test_a_killed_replica_loses_what_it_was_processing_and_is_used_again(balanced: Balanced):
    replica, _ = balanced.replicas()
    with under_load(balanced.address, balanced.body, CLIENTS) as responses:
        os.kill(int(replica.attrs["State"]["Pid"]), signal.SIGKILL)
        await_condition(lambda: replica.reload() or replica.attrs["RestartCount"] == 1)
        await_use(replica)
    lost = responses.total() - responses["cat"] - responses["dog"]
    print(f"\n{dict(responses)}")
    assert lost <= CLIENTS


def test_a_reload_of_the_configuration_loses_no_request(balanced: Balanced):
    with under_load(balanced.address, balanced.body, CLIENTS) as responses:
        balanced.run("kill -s SIGUSR2 haproxy")
        time.sleep(3)  # longer than HAProxy takes to look up the replicas and check them
    assert_none_lost(responses)
