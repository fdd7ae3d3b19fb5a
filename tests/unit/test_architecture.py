"""The repository: its requirements stand once, its pinned versions agree, and it names no machine. Imports: lint-imports."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it to Python 3.10

REPOSITORY = Path(__file__).parent.parent.parent


def test_the_tracking_image_has_the_versions_that_were_tested():
    pins = (REPOSITORY / "constraints.txt").read_text().splitlines()
    named_there = re.findall(r"[\w-]+==[\w.]+", (REPOSITORY / "deploy" / "tracking" / "Dockerfile").read_text())
    assert {pin.split("==")[0] for pin in named_there} == {"mlflow", "psycopg2-binary", "boto3"}
    assert set(named_there) <= set(pins)


def published() -> list[str]:
    """The requirements of the distribution with the extra [train]."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    (file,) = project["tool"]["setuptools"]["dynamic"]["dependencies"].values()
    lines = (REPOSITORY / file).read_text().splitlines()
    extras = project["project"]["optional-dependencies"]
    return [line for line in lines if line and not line.startswith("#")] + extras["torch"] + extras["train"]


def named(requirements: list[str]) -> set[str]:
    """Requirements without spaces, options and references to this distribution's own extras."""
    return {
        requirement.replace(" ", "") for requirement in requirements if not requirement.startswith(("-", "catdog-pyfunc"))
    }


def test_pyproject_python_env_and_conda_require_the_same_packages():
    wanted = named(published()) - {"mlflow-skinny>=3.17,<4"}  # part of mlflow
    python_env = yaml.safe_load((REPOSITORY / "python_env.yaml").read_text())["dependencies"]
    conda = yaml.safe_load((REPOSITORY / "conda.yaml").read_text())["dependencies"]
    (pip,) = (entry["pip"] for entry in conda if isinstance(entry, dict))
    assert named(python_env) == wanted
    assert named(pip) == wanted
    assert "-c constraints.txt" in python_env
    assert "-c constraints.txt" in pip
    python = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["requires-python"]
    assert f"python{python}" in conda


def test_the_server_requires_the_same_packages_in_an_image_and_with_the_plugin():
    plugin = tomllib.loads((REPOSITORY / "plugin" / "pyproject.toml").read_text())["project"]["dependencies"]
    lines = (REPOSITORY / "plugin" / "mlflow_catdog" / "runtime" / "requirements.txt").read_text().splitlines()
    server = [line for line in lines if line and not line.startswith("#")]
    assert named(server)
    assert named(server) <= named(plugin)


def test_every_constraint_is_in_the_published_range():
    requirement = pytest.importorskip("packaging.requirements").Requirement
    pins = dict(re.findall(r"^([\w-]+)==(\S+)", (REPOSITORY / "constraints.txt").read_text(), re.MULTILINE))
    for text in named(published()):
        wanted = requirement(text)
        assert pins[wanted.name] in wanted.specifier, text


def test_no_file_names_a_registry_or_a_path_of_one_machine():
    files = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True).stdout.split()
    forbidden = re.compile(r"pypi\.org|pythonhosted|/(?:root|work|home/\w+)/\w")
    for name in files:
        path = REPOSITORY / name
        if path.suffix in (".py", ".md", ".toml", ".yaml", ".txt", "") and path != Path(__file__) and path.is_file():
            assert not forbidden.search(path.read_text(errors="ignore")), name
