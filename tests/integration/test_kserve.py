"""deploy/kubernetes/kserve against kserve's own models; kserve needs an older pandas, so an environment of its own."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.manifests import KSERVE, Manifest, manifests

REQUIREMENT = "kserve==0.21.0"

Read = Callable[[Manifest], subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> Read:
    """Reads a manifest with kserve's models, and writes it back."""
    if "uv" not in os.environ.get("CATDOG_ENV_MANAGERS", "").split(","):
        pytest.skip("uv is not in CATDOG_ENV_MANAGERS: kserve's environment is a download of 80 MB")
    folder = tmp_path_factory.mktemp("kserve")
    python = folder / "env" / "bin" / "python"
    uv = [sys.executable, "-m", "uv"]
    subprocess.run([*uv, "venv", "--quiet", "--python", sys.executable, str(folder / "env")], check=True)
    subprocess.run([*uv, "pip", "install", "--quiet", "--python", str(python), REQUIREMENT], check=True)
    script = Path(__file__).with_name("kserve_model.py")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def read(manifest: Manifest) -> subprocess.CompletedProcess[str]:
        (folder / "manifest.yaml").write_text(yaml.safe_dump(manifest))
        words = [str(python), str(script), str(folder / "manifest.yaml")]
        return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=120)

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
