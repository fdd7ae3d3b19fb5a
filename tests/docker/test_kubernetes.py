"""The image of a deployment under the contract of deploy/kubernetes/base: user, file system, limits, probes, termination."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest
import requests
from docker import DockerClient
from docker.models.containers import Container

from tests.docker.conftest import Live, assert_same
from tests.load_clients import assert_none_lost, under_load
from tests.manifests import Manifest, amount, container, pod
from tests.project import free_port
from tests.waiting import await_condition

BATCH = 1000  # images in a request that is still in flight when SIGTERM comes


@dataclass(frozen=True)
class Running:
    """A container that runs as the Deployment's pod would."""

    container: Container
    address: str

    def probe(self, name: str) -> bool:
        """Ask once, as the kubelet does."""
        spec = container(pod())[name]
        try:
            response = requests.get(f"{self.address}{spec['httpGet']['path']}", timeout=spec["timeoutSeconds"])
        except requests.RequestException:
            return False
        return 200 <= response.status_code < 400


def docker_options(pod: Manifest, container: Manifest) -> dict[str, Any]:
    """What the kubelet would tell the container runtime, as Docker's options; its default seccomp profile applies anyway."""
    security, limits = container["securityContext"], container["resources"]["limits"]
    assert pod["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"
    sizes = {volume["name"]: int(amount(volume["emptyDir"]["sizeLimit"])) for volume in pod["volumes"]}
    return {
        "entrypoint": container.get("command"),
        "command": container.get("args"),
        "environment": {variable["name"]: variable["value"] for variable in container.get("env", ())},
        "user": f"{pod['securityContext']['runAsUser']}:{pod['securityContext']['runAsGroup']}",
        "read_only": security["readOnlyRootFilesystem"],
        "security_opt": [] if security["allowPrivilegeEscalation"] else ["no-new-privileges"],
        "cap_drop": security["capabilities"]["drop"],
        "tmpfs": {mount["mountPath"]: f"size={sizes[mount['name']]}" for mount in container["volumeMounts"]},
        "nano_cpus": int(amount(limits["cpu"]) * 1e9),
        "mem_limit": int(amount(limits["memory"])),
        "memswap_limit": int(amount(limits["memory"])),  # Kubernetes gives no swap
    }


def working_set(container: Container) -> int:
    """Bytes in use as Kubernetes counts them: without file pages that can be dropped."""
    memory = container.stats(stream=False)["memory_stats"]
    dropped = memory["stats"].get("total_inactive_file", memory["stats"].get("inactive_file", 0))  # control groups v1, v2
    return int(memory["usage"] - dropped)


@pytest.fixture(scope="module")
def running(docker_client: DockerClient, live: Live) -> Iterator[Running]:
    """The image, in a container of its own that has passed its startup probe."""
    port, spec = free_port(), container(pod())
    ports = {f"{spec['ports'][0]['containerPort']}/tcp": ("127.0.0.1", port)}
    image = docker_client.containers.run(
        f"catdog-deployment:{live.name}", detach=True, ports=ports, **docker_options(pod(), spec)
    )
    try:
        running = Running(image, f"http://127.0.0.1:{port}")
        startup, started = spec["startupProbe"], time.monotonic()
        limit_s = startup["periodSeconds"] * startup["failureThreshold"]
        await_condition(lambda: running.probe("startupProbe"), timeout_s=limit_s)
        print(f"\nstarted after {time.monotonic() - started:.1f} s")
        yield running
    finally:
        image.remove(force=True)


def test_it_is_locked_down_as_the_manifest_says(running: Running):
    def inside(command: str) -> Any:
        return running.container.exec_run(["sh", "-c", command])

    assert inside("id -u").output.strip() == str(pod()["securityContext"]["runAsUser"]).encode()
    status = inside("cat /proc/1/status").output.decode()
    assert "CapEff:\t0000000000000000" in status
    assert "NoNewPrivs:\t1" in status
    assert "Seccomp:\t2" in status
    assert inside("touch /opt/catdog/x").exit_code != 0
    for mount in container(pod())["volumeMounts"]:
        assert inside(f"touch {mount['mountPath']}/x && rm {mount['mountPath']}/x").exit_code == 0


def test_it_answers_its_probes_and_predicts_within_its_memory(running: Running, live: Live, expected: dict[str, object]):
    assert running.probe("readinessProbe")
    assert running.probe("livenessProbe")
    (row,) = requests.post(f"{running.address}/invocations", json=live.body, timeout=60).json()["predictions"]
    assert_same(row, expected)
    with under_load(running.address, live.body) as responses:
        time.sleep(5)
        assert running.probe("readinessProbe")
        assert running.probe("livenessProbe")
        used = working_set(running.container)
    assert_none_lost(responses)
    resources = container(pod())["resources"]
    print(f"\n{used / 1e6:.0f} MB under load")
    assert used <= amount(resources["requests"]["memory"])
    running.container.reload()
    assert not running.container.attrs["State"]["OOMKilled"]


def in_progress(running: Running) -> int:
    """Requests that the workers are answering, without the one that asks."""
    text = requests.get(f"{running.address}/metrics", timeout=60).text
    (found,) = re.findall(r"^http_server_active_requests (\S+)$", text, re.MULTILINE)
    return int(float(found)) - 1


def test_a_pod_that_is_deleted_loses_no_request(running: Running, live: Live):
    """The last test: first preStop, while requests still come, then SIGTERM with requests in flight."""
    sleep_s = container(pod())["lifecycle"]["preStop"]["sleep"]["seconds"]
    with under_load(running.address, live.body) as responses:
        time.sleep(sleep_s)
    assert_none_lost(responses)

    def send_batch() -> requests.Response:
        body = {"dataframe_records": [live.record] * BATCH}
        return requests.post(f"{running.address}/invocations", json=body, timeout=60)

    with ThreadPoolExecutor(4) as clients:
        in_flight = [clients.submit(send_batch) for _ in range(4)]
        await_condition(lambda: in_progress(running) == len(in_flight))
        signalled = time.monotonic()
        running.container.kill("SIGTERM")
        ended = running.container.wait(timeout=pod()["terminationGracePeriodSeconds"] - sleep_s)
        print(f"\nended {time.monotonic() - signalled:.1f} s after SIGTERM")
    assert ended["StatusCode"] == 0
    for response in (request.result() for request in in_flight):
        assert response.status_code == 200
        assert len(response.json()["predictions"]) == BATCH
        assert response.headers["connection"] == "close"  # it came from a worker that drains
