"""The server against kserve's client, and deploy/kubernetes/kserve against kserve's models.

kserve needs an older pandas, so an environment of its own.
"""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.integration.same_rows import assert_same
from tests.manifests import KSERVE, Manifest, manifests
from tests.project import MODEL, Deployment

REQUIREMENT = "kserve==0.21.0"

Run = Callable[..., subprocess.CompletedProcess[str]]
Read = Callable[[Manifest], subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs a script of this folder in an environment with kserve."""
    if "uv" not in os.environ.get("CATDOG_ENV_MANAGERS", "").split(","):
        pytest.skip("uv is not in CATDOG_ENV_MANAGERS: kserve's environment is a download of 80 MB")
    folder = tmp_path_factory.mktemp("kserve")
    python = folder / "env" / "bin" / "python"
    uv = [sys.executable, "-m", "uv"]
    subprocess.run([*uv, "venv", "--quiet", "--python", sys.executable, str(folder / "env")], check=True)
    subprocess.run([*uv, "pip", "install", "--quiet", "--python", str(python), REQUIREMENT], check=True)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(script: str, *words: str | Path) -> subprocess.CompletedProcess[str]:
        command = [python, Path(__file__).with_name(script), *words]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)

    return run


@pytest.fixture
def read(run: Run, tmp_path: Path) -> Read:
    """Reads a manifest with kserve's models, and writes it back."""

    def read(manifest: Manifest) -> subprocess.CompletedProcess[str]:
        (tmp_path / "manifest.yaml").write_text(yaml.safe_dump(manifest))
        return run("kserve_model.py", tmp_path / "manifest.yaml")

    return read


@pytest.fixture
def service() -> Manifest:
    return copy.deepcopy(manifests(KSERVE)["InferenceService"])


@pytest.mark.slow
def test_kserve_knows_every_field(read: Read, service: Manifest):
    done = read(service)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == service


@pytest.mark.slow
def test_an_unknown_field_and_a_missing_one_are_noticed(read: Read, service: Manifest):
    predictor = service["spec"]["predictor"]
    predictor["containers"][0]["readynessProbe"] = predictor["containers"][0].pop("readinessProbe")
    assert json.loads(read(service).stdout) != service
    del service["spec"]["predictor"]
    assert "`predictor`, must not be `None`" in read(service).stderr


@pytest.mark.slow
def test_kserves_client_speaks_both_protocols(
    run: Run, deployment: Deployment, files: Sequence[Path], in_process: Sequence[dict[str, Any]]
):
    done = run("kserve_client.py", deployment.address, MODEL, *files)
    assert done.returncode == 0, done.stderr
    v1, v2 = (json.loads(done.stdout)[name] for name in ("v1", "v2"))
    assert (v1["live"], v1["model ready"]) == (True, True)
    assert (v2["live"], v2["ready"], v2["model ready"], v2["other ready"]) == (True, True, True, False)
    assert (v2["JSON, id"], v2["binary, id"]) == ("seven", "seven")
    for rows in (v1["rows"], v2["JSON"], v2["binary"]):
        assert_same(rows, in_process)
    assert v2["refusal"].startswith("the input's datatype is 'FP32': send BYTES, one image file per element, '422")
