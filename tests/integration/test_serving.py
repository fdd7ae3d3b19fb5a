"""Every documented way to use a model, from another working directory, and without torch unless PyTorch is involved."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import requests

from tests.project import MODEL, REPOSITORY, Project, serving

URI = f"models:/{MODEL}@production"
_BLOCK_TORCH = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "torchvision"):
            raise ImportError(f"{name} is blocked")
sys.meta_path.insert(0, Blocked())
"""


@pytest.fixture(scope="module")
def torchless(project: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The project, for processes that cannot import torch or torchvision."""
    folder = tmp_path_factory.mktemp("torchless")
    (folder / "sitecustomize.py").write_text(_BLOCK_TORCH)
    environment = {**project.environment, "PYTHONPATH": f"{folder}{os.pathsep}{REPOSITORY}"}
    project = Project(project.folder, environment)
    assert project.command("python", "-c", "import torch").returncode != 0
    return project


@pytest.fixture
def elsewhere(tmp_path: Path, drawn: Path) -> Path:
    """Another working directory, with photos and a request."""
    shutil.copy(drawn / "test" / "cat" / "cat-0000.jpg", tmp_path / "photo.jpg")
    shutil.copy(drawn / "test" / "dog" / "dog-0000.jpg", tmp_path / "other.jpg")
    (tmp_path / "text.jpg").write_text("no picture")
    photo = base64.b64encode((tmp_path / "photo.jpg").read_bytes()).decode()
    (tmp_path / "request.json").write_text(json.dumps({"dataframe_records": [{"image": photo}]}))
    return tmp_path


def assert_is_row(row: dict) -> None:
    assert list(row) == ["label", "confidence", "probabilities", "error", "in_domain", "domain_score", "heatmap"]
    assert row["error"] is row["heatmap"] is None
    assert row["confidence"] == row["probabilities"][row["label"]] == max(row["probabilities"].values())
    assert sorted(row["probabilities"]) == ["cat", "dog"]


def test_pyfunc_load_model(torchless: Project, elsewhere: Path):
    code = (
        f"import mlflow, pandas; model = mlflow.pyfunc.load_model('{URI}'); "
        "print(model.predict(pandas.DataFrame({'image': [open('photo.jpg', 'rb').read()]})).to_json(orient='records'))"
    )
    done = torchless.command("python", "-c", code, cwd=elsewhere)
    assert done.returncode == 0, done.stderr
    assert_is_row(json.loads(done.stdout)[0])


def test_the_documented_curl_line(torchless: Project, elsewhere: Path):
    block = re.search(r"<!-- curl -->\n```sh\n(.+?)\n```", (REPOSITORY / "README.md").read_text(), re.DOTALL)
    with serving(torchless, "--env-manager", "local", cwd=elsewhere) as address:
        line = block[1].replace("http://127.0.0.1:5001", address)  # type: ignore[index]
        done = torchless.command("sh", "-c", line, cwd=elsewhere)
        assert done.returncode == 0, done.stderr
        assert_is_row(json.loads(done.stdout)["predictions"][0])
        photos = [(elsewhere / name).read_bytes() for name in ("photo.jpg", "text.jpg", "other.jpg")]
        body = {"dataframe_split": {"columns": ["image"], "data": [[base64.b64encode(photo).decode()] for photo in photos]}}
        good, broken, other = requests.post(f"{address}/invocations", json=body, timeout=30).json()["predictions"]
        assert_is_row(good)
        assert_is_row(other)
        assert broken["label"] is None
        assert broken["error"].startswith("image 1 is ")


@pytest.mark.slow
def test_mlflow_models_predict(torchless: Project, elsewhere: Path):
    words = ["mlflow", "models", "predict", "-m", URI, "-i", "request.json", "-t", "json", "--env-manager", "local"]
    done = torchless.command(*words, cwd=elsewhere)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(re.search(r"\{.*\}", done.stdout, re.DOTALL)[0])["predictions"]  # type: ignore[index]
    assert_is_row(row)


@pytest.mark.slow
def test_scripts_predict(torchless: Project, elsewhere: Path):
    done = torchless.command("python", "-m", "scripts.predict", "photo.jpg", cwd=elsewhere)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"Predicted class: (cat|dog), Confidence: \d\.\d{4}\n", done.stdout)
    several = torchless.command("python", "-m", "scripts.predict", "photo.jpg", "text.jpg", "other.jpg", cwd=elsewhere)
    assert several.returncode == 1
    assert re.fullmatch(r"(\w+\.jpg: Predicted class: (cat|dog), Confidence: \d\.\d{4}\n){2}", several.stdout)
    assert "text.jpg: image 1 is" in several.stderr


@pytest.mark.slow
def test_mlflow_run_predict_from_elsewhere(project: Project, elsewhere: Path):
    words = ["mlflow", "run", str(REPOSITORY), "-e", "predict", "--env-manager", "local", "--experiment-name", "catdog"]
    done = project.command(*words, "-P", f"image={elsewhere / 'photo.jpg'}", cwd=elsewhere)
    assert done.returncode == 0, done.stderr
    assert "Predicted class: " in done.stdout


def test_pytorch_load_model(project: Project, elsewhere: Path):
    code = (
        f"import mlflow, torch; model = mlflow.pytorch.load_model('{URI}'); model.to('cpu'); model.eval(); "
        "print(tuple(model(torch.zeros(1, 3, 224, 224)).shape))"
    )
    done = project.command("python", "-c", code, cwd=elsewhere)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "(1, 2)"


def test_a_taken_port_is_named(torchless: Project, elsewhere: Path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        words = ["mlflow", "models", "serve", "-m", URI, "-p", port, "--env-manager", "local"]
        done = torchless.command(*words, cwd=elsewhere, timeout_s=120)
    assert done.returncode != 0
    assert "address already in use" in (done.stdout + done.stderr).lower()


def managers() -> list[str]:
    return [name for name in os.environ.get("CATDOG_ENV_MANAGERS", "").split(",") if name]


@pytest.fixture(params=["uv", "virtualenv"])
def built_by(request: pytest.FixtureRequest, project: Project, tmp_path: Path) -> Iterator[tuple[list[str], Project]]:
    """The options that select an environment manager, and the project with an empty folder for environments."""
    manager = request.param
    if manager not in managers():
        pytest.skip(f"{manager} is not in CATDOG_ENV_MANAGERS; building its environment takes minutes and gigabytes")
    root = tmp_path / "envs"
    own = {"MLFLOW_ENV_ROOT": str(root), "UV_NO_CACHE": "1", "PIP_NO_CACHE_DIR": "1"}
    # virtualenv is MLflow's default, so it needs no option
    yield (
        [] if manager == "virtualenv" else ["--env-manager", manager],
        Project(project.folder, {**project.environment, **own}),
    )
    shutil.rmtree(root, ignore_errors=True)


def test_serving_in_an_environment_of_its_own(built_by: tuple[list[str], Project], elsewhere: Path):
    words, project = built_by
    with serving(project, *words, cwd=elsewhere) as address:
        body = json.loads((elsewhere / "request.json").read_text())
        answer = requests.post(f"{address}/invocations", json=body, timeout=30).json()
        assert_is_row(answer["predictions"][0])
        parquet = pd.DataFrame({"image": [(elsewhere / "photo.jpg").read_bytes()]}).to_parquet()
        headers = {"Content-Type": "application/vnd.apache.parquet"}
        assert requests.post(f"{address}/invocations", data=parquet, headers=headers, timeout=30).json() == answer
    python = next(Path(project.environment["MLFLOW_ENV_ROOT"]).rglob("bin/python"))
    assert project.command(str(python), "-c", "import onnxruntime").returncode == 0
    assert project.command(str(python), "-c", "import torch").returncode != 0


def test_mlflow_run_in_an_environment_of_its_own(built_by: tuple[list[str], Project], drawn: Path, weights: Path):
    words, project = built_by
    command = [
        "mlflow",
        "run",
        ".",
        *words,
        "--experiment-name",
        "catdog",
        "-P",
        f"data={drawn}",
        "-P",
        f"weights={weights}",
    ]
    done = project.command(*command, "-P", "registered_model=none", timeout_s=1500)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "test accuracy" in done.stdout
