"""deploy/tracking with its artifacts on S3: moto's server, in a container beside it."""

from __future__ import annotations

import io
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote
from xml.etree import ElementTree

import pytest
import requests
from docker import DockerClient
from docker.models.containers import Container
from docker.models.networks import Network

from tests.docker.backups import Site, everything, named, settings, train_and_promote
from tests.docker.test_tracking import ADMIN, Team, served_row
from tests.waiting import await_condition

MOTO = "moto[server]==5.2.5"
BUCKET = "team-artifacts"
KEY_ID = "AKIA0000000000000000"
# moto wants to be told who reads, and verifies nothing.
READER = {
    "Authorization": "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"
}
_S3 = "{http://s3.amazonaws.com/doc/2006-03-01/}"


@dataclass(frozen=True)
class Bucket:
    """A bucket of moto's server, which the stack's containers call `s3`."""

    site: Site
    container: Container
    network: Network

    @property
    def address(self) -> str:
        self.container.reload()
        return f"http://127.0.0.1:{self.container.ports['9000/tcp'][0]['HostPort']}/{BUCKET}"

    def create(self) -> bool:
        try:
            return requests.put(self.address, timeout=5).ok
        except requests.ConnectionError:
            return False

    def files(self) -> dict[str, bytes]:
        listing = self._get("?list-type=2")
        assert b"<IsTruncated>false" in listing
        keys = [str(key.text) for key in ElementTree.fromstring(listing).iter(f"{_S3}Key")]
        return {key: self._get(f"/{quote(key)}") for key in keys}

    def _get(self, what: str) -> bytes:
        response = requests.get(f"{self.address}{what}", headers=READER, timeout=30)
        response.raise_for_status()
        return response.content


@pytest.fixture(scope="module")
def moto(docker_client: DockerClient) -> str:
    """An image; removed with all others of these tests."""
    base = os.environ.get("CATDOG_PYTHON_IMAGE", "python:3.11-slim")
    recipe = f"FROM {base}\nRUN python -m pip install --no-cache-dir --root-user-action ignore '{MOTO}'\n"
    docker_client.images.build(fileobj=io.BytesIO(recipe.encode()), tag=named("moto"), rm=True)
    return named("moto")


@pytest.fixture(scope="module")
def secret() -> str:
    return secrets.token_urlsafe(30)


@pytest.fixture(scope="module")
def on_s3(
    tmp_path_factory: pytest.TempPathFactory, drawn: Path, weights: Path, docker_client: DockerClient, moto: str, secret: str
) -> Iterator[tuple[Team, Bucket]]:
    """One version trained and promoted."""
    chosen = {
        "CATDOG_ARTIFACTS": f"s3://{BUCKET}/mlflow",
        "MLFLOW_S3_ENDPOINT_URL": "http://s3:9000",
        "AWS_ACCESS_KEY_ID": KEY_ID,
        "AWS_SECRET_ACCESS_KEY": secret,
    }
    site = Site("s3", {**settings(), **chosen})
    with site.running() as stack:
        command = ["moto_server", "-H", "0.0.0.0", "-p", "9000"]
        server = docker_client.containers.create(moto, command, ports={"9000/tcp": ("127.0.0.1", None)})
        try:
            bucket = Bucket(site, server, docker_client.networks.get(f"{named('s3')}_default"))
            bucket.network.connect(server, aliases=["s3"])
            server.start()
            await_condition(bucket.create)
            team = site.team(stack, tmp_path_factory.mktemp("s3"))
            train_and_promote(team, drawn, weights)
            yield team, bucket
        finally:
            server.remove(force=True, v=True)


def test_artifacts_are_in_the_bucket_and_clients_need_only_the_server(
    on_s3: tuple[Team, Bucket], docker_client: DockerClient, drawn: Path, tmp_path: Path
):
    team, bucket = on_s3
    image_bytes = (drawn / "test" / "cat" / "cat-0001.jpg").read_bytes()
    before, row = everything(team), served_row(team, image_bytes, tmp_path, ADMIN)
    stored_bytes = set(bucket.files().values())
    assert [file for file, content in before["files"].items() if content not in stored_bytes] == []  # type: ignore[attr-defined]
    server = docker_client.containers.get(team.stack.container("server"))
    assert server.exec_run("ls -A /artifacts").output == b""
    server.kill()
    team.start()
    assert everything(team) == before
    assert served_row(team, image_bytes, tmp_path, ADMIN) == row


def test_the_server_tells_neither_keys_nor_signed_addresses(on_s3: tuple[Team, Bucket], secret: str):
    """Clients would download from those, and need more than the server."""
    team, bucket = on_s3
    server, key = "/api/2.0/mlflow-artifacts", next(iter(bucket.files()))
    path = quote(key.removeprefix("mlflow/"))
    responses = [
        team.request(ADMIN, "POST", f"{server}/mpu/create/1", json={"path": "x.bin", "num_parts": 1}),
        team.request(ADMIN, "GET", f"{server}/presigned/{path}"),
        team.request(ADMIN, "GET", f"{server}/artifacts/1/nothing"),
        team.request(ADMIN, "GET", f"{server}/artifacts/{path}"),
        team.request(ADMIN, "GET", "/api/3.0/mlflow/server-info"),
    ]
    assert [response.ok for response in responses] == [False, False, False, True, True]
    for output in (*(response.text + str(response.headers) for response in responses), team.stack.execute("logs")):
        assert secret not in output
        assert KEY_ID not in output
        assert "X-Amz-Signature" not in output


def test_the_backup_has_the_database_and_says_where_the_artifacts_are(
    on_s3: tuple[Team, Bucket], docker_client: DockerClient, tmp_path: Path
):
    team, bucket = on_s3
    before = everything(team)
    status, output = bucket.site.backup(tmp_path / "file")
    assert status == 0, output
    assert f"they are in s3://{BUCKET}/mlflow" in output
    bucket.network.disconnect(bucket.container)
    team.stack.execute("down -v")
    status, output = bucket.site.restore(tmp_path / "file", CATDOG_ARTIFACTS="")
    assert status != 0
    assert f"nothing was changed: the backup is of a server with CATDOG_ARTIFACTS=s3://{BUCKET}/mlflow" in output
    status, output = bucket.site.restore(tmp_path / "file")
    assert status == 0, output
    team.stack.execute("up -d")
    docker_client.networks.get(f"{named('s3')}_default").connect(bucket.container, aliases=["s3"])
    team.start()
    assert everything(team) == before
