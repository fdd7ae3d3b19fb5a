"""Servers of the model in production, one for each file of tests, and what the model says in this process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest

from tests.project import URI, Deployment, Project, run_local, serving


@pytest.fixture(scope="module")
def address(project: Project, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(project, "--env-manager", "local", cwd=tmp_path_factory.mktemp("serving")) as address:
        yield address


@pytest.fixture(scope="module")
def deployment(project: Project, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    with run_local(project, tmp_path_factory.mktemp("run-local") / "log", "-m", URI, "-C", "workers=2") as deployment:
        yield deployment


@pytest.fixture(scope="session")
def files(drawn: Path) -> Sequence[Path]:
    """A cat and a dog."""
    return [drawn / "test" / "cat" / "cat-0001.jpg", drawn / "test" / "dog" / "dog-0001.jpg"]


@pytest.fixture(scope="session")
def in_process(project: Project, files: Sequence[Path]) -> Sequence[dict[str, Any]]:
    """What the model says of `files` in this process."""
    mlflow.set_tracking_uri(project.tracking_uri)
    model = mlflow.pyfunc.load_model(URI)
    mlflow.set_tracking_uri(None)
    rows: list[dict[str, Any]] = model.predict(pd.DataFrame({"image": [file.read_bytes() for file in files]})).to_dict(
        "records"
    )
    assert rows[0]["probabilities"] != pytest.approx(rows[1]["probabilities"], abs=1e-3)
    return rows
