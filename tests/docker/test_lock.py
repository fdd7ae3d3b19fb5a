"""Deployments with a lock file: nothing is installed but what it has, and what doesn't fit it replaces nothing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import requests
from docker import DockerClient
from mlflow.deployments import BaseDeploymentClient
from mlflow.exceptions import MlflowException
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.docker.conftest import URI, Live, Target, assert_same
from tests.project import REPOSITORY, free_port
from tests.third_party_models import save

LOCK = REPOSITORY / "deploy" / "catdog" / "requirements.txt"
BASE = {"pip", "setuptools", "wheel"}  # of the base image


@pytest.fixture(scope="module")
def locked(target: Target, live: Live) -> Live:
    """A deployment of the same model with the lock file of this project."""
    locked = Live(target.new_name(), free_port(), live.image)
    options = ["-C", f"port={locked.port}", "-C", f"lock_file={LOCK}"]
    done = target.call("create", "--name", locked.name, "-m", URI, *options)
    assert done.returncode == 0, done.stdout + done.stderr
    return locked


def test_the_image_has_exactly_what_the_lock_has(docker_client: DockerClient, locked: Live, expected: dict):
    entries = [Requirement(line.rstrip(" \\")) for line in LOCK.read_text().splitlines() if re.match(r"\w", line)]
    wanted = {f"{entry.name}{entry.specifier}" for entry in entries if not entry.marker or entry.marker.evaluate()}
    listed = locked.container(docker_client).exec_run("pip list --format freeze").output.decode().split()
    installed = {f"{canonicalize_name(name)}=={version}" for name, version in (line.split("==") for line in listed)}
    assert {pin for pin in installed if pin.split("==")[0] not in BASE} == wanted
    row = requests.post(f"{locked.address}/invocations", json=locked.body, timeout=60).json()["predictions"][0]
    assert_same(row, expected)


def test_an_update_keeps_to_the_lock(deployments: BaseDeploymentClient, locked: Live):
    deployments.update_deployment(locked.name, config={"workers": 1})
    assert deployments.get_deployment(locked.name)["options"]["lock_file"] == str(LOCK)


def test_a_file_with_another_hash_is_not_installed_and_the_previous_model_serves_on(
    deployments: BaseDeploymentClient, docker_client: DockerClient, locked: Live, expected: dict, tmp_path: Path
):
    pinned = re.search(r"^onnxruntime==.*(\n +--hash=.*)+", LOCK.read_text(), re.MULTILINE)
    assert pinned
    tampered = re.sub(r"sha256:\w{8}", "sha256:" + "0" * 8, pinned[0])
    lock_file = tmp_path / "catdog.lock"
    lock_file.write_text(LOCK.read_text().replace(pinned[0], tampered))
    before = locked.container(docker_client).id
    with pytest.raises(MlflowException) as refused:
        deployments.update_deployment(locked.name, config={"lock_file": str(lock_file)})
    assert "PACKAGES DO NOT MATCH THE HASHES" in refused.value.message
    assert re.search(r"onnxruntime==\S+ from .*\n.*Expected sha256 0{8}", refused.value.message)
    assert locked.container(docker_client).id == before
    row = requests.post(f"{locked.address}/invocations", json=locked.body, timeout=60).json()["predictions"][0]
    assert_same(row, expected)


@pytest.mark.parametrize(
    ("requirement", "message"),
    [
        ("httptools==0.6.4", "Cannot install httptools==0.6.4"),
        ("colorama==0.4.6", "colorama==0.4.6 --hash=sha256:"),  # pip says which it would have taken
        ("colorama @ https://packages.example/colorama.zip", "which lock_file cannot hold pip to"),
    ],
)
def test_a_model_that_requires_anything_else_replaces_nothing(
    requirement: str,
    message: str,
    deployments: BaseDeploymentClient,
    docker_client: DockerClient,
    locked: Live,
    expected: dict,
    tmp_path: Path,
):
    model = save(tmp_path / "other", ["mlflow-skinny", requirement])
    before = locked.container(docker_client).id
    with pytest.raises(MlflowException) as refused:
        deployments.update_deployment(locked.name, str(model))
    assert message in re.sub(r"\x1b\[\d+m", "", refused.value.message)
    assert ("uv pip compile --universal" in refused.value.message) is ("@" not in requirement)
    assert locked.container(docker_client).id == before
    row = requests.post(f"{locked.address}/invocations", json=locked.body, timeout=60).json()["predictions"][0]
    assert_same(row, expected)
