"""Fixtures of all tests: synthetic images, a little trained network, a project with two versions, its own environment."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from tests.project import Project, make_project


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that want Docker or Chromium by their folder."""
    for item in items:
        folder = item.path.relative_to(Path(__file__).parent).parts[0]
        if folder in ("docker", "browser"):
            item.add_marker(folder)


_SERVERS = {f"server_{name}" for name in ("attacks", "clients", "environment", "fuzz", "kills", "operations")}
_OTHERS = {"evaluator", "fuzz", "kserve", "requests", "run_local", "scoring", "serving", "workflow"}
USE_PROJECT = {f"test_{name}" for name in _SERVERS | _OTHERS}


class Scheduling(LoadScopeScheduling):
    """What one worker does alone: a file, or all files that share the trained `project` or the Docker daemon."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::")[0]
        if file.startswith("tests/docker") or file == "tests/integration/test_docs.py":
            return "docker"
        return "project" if Path(file).stem in USE_PROJECT else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Scheduling:
    """With `-n 2`, one worker trains the project and another one runs what doesn't need it."""
    return Scheduling(config, log)


@contextlib.contextmanager
def restored_environment() -> Iterator[None]:
    """Restore the environment, and the experiment that MLflow keeps there and in a global variable."""
    before = dict(os.environ)
    os.environ |= {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false"}
    yield
    os.environ.clear()
    os.environ.update(before)
    mlflow.tracking.fluent._active_experiment_id = None


@pytest.fixture(autouse=True)
def environment_restored() -> Iterator[None]:
    with restored_environment():
        yield


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small synthetic dataset: train, val and test of cats and dogs."""
    from catdog_pyfunc.pipeline.data import synthetic

    return synthetic.make(tmp_path_factory.mktemp("drawn"), {"train": 30, "val": 12, "test": 12})


@pytest.fixture(scope="session")
def weights(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state_dict of mobilenet_v2 as a user would bring one; a few steps of training make its features worth pooling."""
    import torch
    from torchvision.models import mobilenet_v2

    from catdog_pyfunc.preprocessing import Preprocess, preprocess

    torch.manual_seed(0)
    network = mobilenet_v2().train()
    optimizer = torch.optim.SGD(network.parameters(), 0.05, momentum=0.9)
    files = sorted(drawn.glob("train/*/*.jpg"))
    pixels = [torch.from_numpy(preprocess(file.read_bytes(), Preprocess(96, 99)).copy()) for file in files]
    batch = (torch.stack(pixels).permute(0, 3, 1, 2) / 255 - 0.45) / 0.225
    labels = torch.tensor([int(file.parent.name == "dog") for file in files])
    for _ in range(25):
        optimizer.zero_grad()
        some = torch.randperm(len(files))[:32]
        torch.nn.functional.cross_entropy(network(batch[some]), labels[some]).backward()
        optimizer.step()
    path = tmp_path_factory.mktemp("weights") / "mobilenet_v2.pth"
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory, drawn: Path, weights: Path) -> Project:
    """Two trained versions of which the second is in production."""
    from catdog_pyfunc.pipeline import Promotion, Thresholds, TrainingConfig, promote, train

    project = make_project(tmp_path_factory.mktemp("project"))
    with restored_environment():
        os.environ["XDG_CACHE_HOME"] = project.environment["XDG_CACHE_HOME"]
        mlflow.set_tracking_uri(project.tracking_uri)
        train(TrainingConfig(data=str(drawn), weights=str(weights), image_size=96))
        done = project.run("-P", f"data={drawn}", "-P", f"weights={weights}", "-P", "seed=1", "-P", "image_size=96")
        assert done.returncode == 0, done.stderr
        lenient = Thresholds(
            min_accuracy=0.0, latency_allowed_ms=10_000.0
        )  # 25 steps of training, on a machine that may be busy
        promote(Promotion("2"), lenient)
        mlflow.set_tracking_uri(None)
    return project


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
