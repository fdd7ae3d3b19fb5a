"""Which image is used again: only one of the same version, server, options and base image."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import pytest
from docker.errors import ImageNotFound
from mlflow_catdog.deployments import build, images
from mlflow_catdog.deployments.options import Options

BASE = "python:3.11-slim"


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> mlflow.MlflowClient:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    client = mlflow.MlflowClient()
    client.create_registered_model("cats")
    for version in "12":
        client.create_model_version("cats", f"/models/{version}")
    return client


def test_a_key_is_of_what_the_image_is_made_of(
    registry: mlflow.MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    first = images.image_key("models:/cats/1", Options())
    assert images.image_key("models:/cats/1", Options(port=6001, workers=2)) == first
    lock = tmp_path / "catdog.lock"
    lock.write_text("numpy==2.0 --hash=sha256:1")
    locked = images.image_key("models:/cats/1", Options(lock_file=str(lock)))
    lock.write_text("numpy==2.0 --hash=sha256:2")
    others = [
        locked,
        images.image_key("models:/cats/1", Options(lock_file=str(lock))),
        images.image_key("models:/cats/1", Options(base_image="mine")),
        images.image_key("models:/cats/2", Options()),
    ]
    monkeypatch.setattr(build, "server_digest", lambda: "of a newer plugin")
    others.append(images.image_key("models:/cats/1", Options()))
    assert len({first, *others}) == 6


def test_only_registered_versions_have_one(registry: mlflow.MlflowClient, tmp_path: Path):
    assert images.image_key("runs:/0123/model", Options()) == ""
    assert images.image_key(str(tmp_path), Options()) == ""
    assert images.image_key("models:/cats/3", Options()) == ""


class FakeDocker:
    """A daemon with one image of a deployment, and the base image that it now has under that name."""

    def __init__(self, base_id: str | None, **labels: str) -> None:
        self.base_id, self.image = base_id, SimpleNamespace(id="sha256:1", labels=labels)
        self.images: Any = SimpleNamespace(list=self._list, get=self._get)

    def _list(self, filters: dict[str, list[str]]) -> list[SimpleNamespace]:
        wanted = dict(label.split("=", 1) for label in filters["label"])
        return [self.image] if wanted.items() <= self.image.labels.items() else []

    def _get(self, name: str) -> SimpleNamespace:
        if name != BASE or self.base_id is None:
            raise ImageNotFound(name)
        return SimpleNamespace(id=self.base_id)


@pytest.mark.parametrize(
    ("now", "key", "found"),
    [
        ("sha256:base", "key", True),
        (None, "key", True),  # its layers are in the image
        ("sha256:patched", "key", False),
        ("sha256:base", "another key", False),
        ("sha256:base", "", False),
    ],
)
def test_an_image_is_found_again_unless_its_base_has_been_replaced(now: str | None, key: str, found: bool):
    docker: Any = FakeDocker("sha256:base")
    docker.image.labels = images.labels(docker, "live", "key", BASE)
    docker.base_id = now
    assert images.find(docker, "live", key) == ("sha256:1" if found else None)
    assert images.find(docker, "other", key) is None
