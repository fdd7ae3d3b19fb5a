"""The built distributions hold every file of their packages, and `catdog` works from them outside the repository."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.project import REPOSITORY

pytestmark = pytest.mark.slow
SOURCES = {"catdog_pyfunc": REPOSITORY, "mlflow_catdog": REPOSITORY / "plugin"}


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Package → its wheel, built from a copy, as a build leaves files in its source."""
    folder = tmp_path_factory.mktemp("wheels")
    built = {}
    for package, root in SOURCES.items():
        source = folder / "source" / package
        shutil.copytree(root / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
        for file in root.iterdir():
            if file.is_file() and file.name in ("pyproject.toml", "README.md", "LICENSE"):
                shutil.copy(file, source)
        (source / "tests").mkdir()  # a folder that must not get into the wheel
        (source / "tests" / "__init__.py").touch()
        command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
        subprocess.run([*command, "--wheel-dir", folder / package, source], check=True, timeout=300)
        (built[package],) = (folder / package).iterdir()
    return built


@pytest.mark.parametrize("package", SOURCES)
def test_a_wheel_holds_every_file_of_its_package_and_nothing_else(package: str, wheels: dict[str, Path]):
    listed = subprocess.run(["git", "ls-files", package], cwd=SOURCES[package], capture_output=True, text=True, check=True)
    with zipfile.ZipFile(wheels[package]) as wheel:
        files = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert files == set(listed.stdout.split())


def test_the_command_line_of_a_wheel_works_outside_the_repository(wheels: dict[str, Path], tmp_path: Path):
    installed, elsewhere = tmp_path / "installed", tmp_path / "elsewhere"
    elsewhere.mkdir()
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", installed]
    subprocess.run([*install, *wheels.values()], check=True, timeout=300)

    def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
        environment = {
            **os.environ,
            "PYTHONPATH": str(installed),
            "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path / 'mlflow.db'}",
        }
        return subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True, timeout=300)

    code = "import json, catdog_pyfunc, mlflow_catdog; print(json.dumps([catdog_pyfunc.__file__, mlflow_catdog.__file__]))"
    for file in json.loads(run(sys.executable, "-c", code).stdout):
        assert Path(file).is_relative_to(installed)
    catdog = installed / "bin" / "catdog"
    assert "catdog, version " in run(catdog, "--version").stdout
    assert "--min-accuracy FLOAT" in run(catdog, "promote", "--help").stdout
    predict = run(catdog, "predict", "--model-uri", "no/such/model", Path(__file__))
    assert predict.returncode == 1
    assert predict.stderr.splitlines()[-1].startswith("Error: ")
    assert "no/such/model" in predict.stderr
    assert not list(elsewhere.iterdir())
