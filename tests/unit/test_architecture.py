"""The house as DESIGN and CONTRIBUTING draw it: who may import what, and what the packages need."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import catdog_pyfunc

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no tomllib")

REPOSITORY = Path(__file__).parent.parent.parent


# A later room may import an earlier one.
def test_the_tracking_image_has_the_versions_that_were_tested():
    pins = (REPOSITORY / "constraints.txt").read_text().splitlines()
    named_there = re.findall(r"[\w-]+==[\w.]+", (REPOSITORY / "deploy" / "tracking" / "Dockerfile").read_text())
    assert {pin.split("==")[0] for pin in named_there} == {"mlflow", "psycopg2-binary"}
    assert set(named_there) <= set(pins)


def test_importing_the_package_pulls_in_no_framework():
    code = "import sys, catdog_pyfunc; print(*sorted({m.split('.')[0] for m in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "torchvision", "matplotlib", "mlflow", "pandas"} & set(loaded)


def test_loading_a_model_for_serving_needs_no_torch():
    code = "import sys, catdog_pyfunc.pyfunc_model, catdog_pyfunc.flavor; print('torch' in sys.modules, 'matplotlib' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.split() == ["False", "False"]


def test_the_public_names_are_these():
    assert sorted(catdog_pyfunc.__all__) == ["Classifier", "Prediction", "load_model", "log_model", "save_model"]
    assert all(hasattr(catdog_pyfunc, name) for name in catdog_pyfunc.__all__)


def named(requirements: list[str]) -> set[str]:
    return {
        requirement.replace(" ", "") for requirement in requirements if not requirement.startswith(("-", "catdog-pyfunc"))
    }


def test_pyproject_python_env_and_conda_ask_for_the_same_packages():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    # The whole of MLflow holds mlflow-skinny.
    asked = named(project["dependencies"] + extras["torch"] + extras["train"]) - {"mlflow-skinny>=3.17,<4"}
    python_env = yaml.safe_load((REPOSITORY / "python_env.yaml").read_text())["dependencies"]
    conda = yaml.safe_load((REPOSITORY / "conda.yaml").read_text())["dependencies"]
    (pip,) = (entry["pip"] for entry in conda if isinstance(entry, dict))
    assert named(python_env) == asked
    assert named(pip) == asked
    assert "-c constraints.txt" in python_env
    assert "-c constraints.txt" in pip
    assert f"python{project['requires-python']}" in conda


def test_every_constraint_lies_in_the_published_range():
    requirement = pytest.importorskip("packaging.requirements").Requirement
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    pins = dict(re.findall(r"^([\w-]+)==(\S+)", (REPOSITORY / "constraints.txt").read_text(), re.MULTILINE))
    for text in named(project["dependencies"] + extras["torch"] + extras["train"]):
        wanted = requirement(text)
        assert pins[wanted.name] in wanted.specifier, text


def test_no_file_names_a_registry_or_a_path_of_one_machine():
    files = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True).stdout.split()
    forbidden = re.compile(r"pypi\.org|pythonhosted|download\.pytorch|/(?:root|work|home/\w+)/\w")
    for name in files:
        path = REPOSITORY / name
        if path.suffix in (".py", ".md", ".toml", ".yaml", ".txt", "") and path != Path(__file__) and path.is_file():
            assert not forbidden.search(path.read_text(errors="ignore")), name
