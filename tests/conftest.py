"""What all tests share: a drawn set of photos, an untrained but saved network, and surroundings of their own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def surroundings_restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = dict(os.environ)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small sample set: train, val and test of cats and dogs."""
    from catdog_pyfunc.pipeline import sample

    return sample.make(tmp_path_factory.mktemp("drawn"), {"train": 30, "val": 12, "test": 12})


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state_dict of mobilenet_v2 as a user would bring one; random, which is enough to see what becomes of it."""
    import torch
    from torchvision.models import mobilenet_v2

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "mobilenet_v2.pth"
    torch.save(mobilenet_v2().state_dict(), path)
    return path


@pytest.fixture(scope="session")
def pictures(drawn: Path) -> list[bytes]:
    """A few drawn photos' bytes, cats first."""
    return [path.read_bytes() for path in sorted(drawn.glob("val/*/*.jpg"))]


def real(variable: str) -> Path:
    """What the environment names, or a skip that says so."""
    value = os.environ.get(variable)
    if not value:
        pytest.skip(f"{variable} is not set: it names real photos (class folders) or ImageNet weights of mobilenet_v2")
    return Path(value).resolve()


@pytest.fixture(scope="session")
def real_photos() -> Path:
    return real("CATDOG_PHOTOS")


@pytest.fixture(scope="session")
def real_weights() -> Path:
    return real("CATDOG_WEIGHTS")
