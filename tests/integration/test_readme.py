"""Every command of the README and of the model card: run here as it stands, in the README's order, or named with its test.

Runs in a copy of this repository, with what the README takes for granted: photos, a photo, a request, a first version.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.project import REPOSITORY
from tests.shell import Shell

PHOTOS = {"train": 120, "val": 40, "test": 60}  # a class
_COMMAND = re.compile(r"(make|mlflow (run|ui|models|deployments)|docker|conda|python -m) (?!.*…)")
_USE, _REGISTER, _RUN = (
    "tests/integration/test_serving.py",
    "tests/integration/test_workflow.py",
    "test_mlflow_run_in_an_environment",
)
# What isn't run here → where it is.
ELSEWHERE = {
    "make demo": ".ci/run: make demo",
    "make test": ".ci/run: make test",
    "mlflow run .": f"{_USE}: {_RUN}_of_its_own",
    "mlflow run . --env-manager uv": f"{_USE}: {_RUN}_of_its_own",
    "mlflow run . --env-manager local": "tests/conftest.py: project.run",
    "mlflow run . --env-manager local -P data=… -P weights=….pth": "tests/integration/test_real_images.py: weights=",
    "mlflow run . --env-manager local -e register -P run_id=<RUN_ID>": f"{_REGISTER}: test_registering_again_makes",
    "mlflow models serve": "tests/project.py: def serving",
    "mlflow models serve -m models:/CatDogClassifier@production -p 5001": f"{_USE}: test_serving_in_an_environment",
    "mlflow models serve -m models:/CatDogClassifier@production -p 5001 --env-manager uv": f"{_USE}: test_serving_in_an",
    "mlflow models serve -m models:/CatDogClassifier@production": f"{_USE}: test_serving_in_an_environment",
    "mlflow models build-docker": "tests/docker/conftest.py: build-docker",
    "mlflow ui": "tests/browser/conftest.py: mlflow",
    'make bench ARGS="--model models:/CatDogClassifier@production --photos path/to/photos --seconds 6"': "Makefile: bench:",
    "make bench": "benchmarks/serving.py: def main",  # minutes of wrk, not a test
    "docker run -p 127.0.0.1:5001:8080 catdog-deployment:live": (
        "tests/docker/test_deployments.py: test_its_image_runs_without_a_door"
    ),
    "mlflow deployments run-local -t catdog --name here -m models:/CatDogClassifier@production": (
        "tests/integration/test_run_local.py: test_it_answers_until"
    ),
    "python -m pytest tests/docker -s": "tests/docker/conftest.py: CATDOG_DOCKER",
    # No conda can be had where CI runs: its file is held to the others.
    "conda env create -f conda.yaml && conda activate catdog-pyfunc": "tests/unit/test_architecture.py: conda.yaml",
}
_ROW = r'"label": ?"(cat|dog)".*"error": ?null'
# Part of a command → what it prints.
SAYS = {
    "-P data=path/to/photos": r"test accuracy|all accuracy",
    "-e promote -P version=2 -P reason": r"models:/CatDogClassifier@production is version 2",
    "alias=staging": r"models:/CatDogClassifier@staging is version 2",
    "-e rollback": r"models:/CatDogClassifier@production is version 1 again \(it was 2\)",
    "-e history  ": r"rolled back +production +2 +1 .* wrong on kittens",
    "output=json": r'"reason": "wrong on kittens"',
    "curl": _ROW,
    "scripts.predict": r"Predicted class: (cat|dog), Confidence: [01]\.\d{4}",
    "models predict": _ROW,
    "build-docker": "Successfully built|naming to",
    "deployments create": r"live: models:/CatDogClassifier/1 answers at http://127.0.0.1:5001/invocations",
    "deployments predict": _ROW,
    "-C workers=1": "Deployment live is updated",
    "deployments list": "'name': 'live'",
    "deployments get": "address: http://127.0.0.1:5001",
    "deployments delete": "Deployment live is deleted",
    "deployments help": "ready_timeout_s",
}
_DOCKER = ("docker", "CATDOG_IMAGE", "mlflow models build-docker", "mlflow deployments")
_SERVERS = ("mlflow ui", "mlflow models serve")


@dataclass(frozen=True)
class Step:
    """A line of shell, or a block of Python."""

    section: str
    language: str
    text: str

    @property
    def command(self) -> str:
        return re.sub(r"\s+# .*", "", self.text)


def steps() -> list[Step]:
    found, section, language, block = [], "", "", ""
    for line in (REPOSITORY / "README.md").read_text().splitlines():
        if line.startswith("```"):
            if language == "python":
                found.append(Step(section, language, block))
            language, block = ("" if language else line[3:]), ""
        elif language == "sh" and line:
            found.append(Step(section, language, line))
        elif language:
            block += f"{line}\n"
        elif line.startswith("#"):
            section = line
    return found


def inline() -> list[str]:
    text = re.sub(r"```.*?```", "", (REPOSITORY / "README.md").read_text(), flags=re.DOTALL)
    return [span for span in re.findall(r"`([^`]+)`", text) if _COMMAND.match(f"{span} ")]


def some_photos(photos: Path, folder: Path) -> None:
    for split, number in PHOTOS.items():
        for label in ("cat", "dog"):
            target = folder / split / label
            target.mkdir(parents=True)
            for file in sorted((photos / split / label).iterdir())[:number]:
                shutil.copy(file, target)


@pytest.fixture(scope="module")
def terminal(tmp_path_factory: pytest.TempPathFactory, real_photos: Path, real_weights: Path) -> Iterator[Shell]:
    """In a copy of this repository, where version 1 has been trained and is in production."""
    for port in (5000, 5001):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                pytest.skip(f"port {port} of the README's commands is taken on this machine")
    if os.environ.get("CATDOG_DOCKER"):
        refuse_to_touch_what_is_there()
    folder = tmp_path_factory.mktemp("reader")
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=REPOSITORY, capture_output=True, text=True)
    for name in listed.stdout.splitlines():
        if (REPOSITORY / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPOSITORY / name, folder / name)
    (folder / ".venv").symlink_to(sys.prefix)
    some_photos(real_photos, folder / "path" / "to" / "photos")
    photo = next((real_photos / "test" / "cat").iterdir()).read_bytes()
    (folder / "photo.jpg").write_bytes(photo)
    (folder / "request.json").write_text(json.dumps({"dataframe_records": [{"image": base64.b64encode(photo).decode()}]}))
    torch_home = folder / "torch" / "hub" / "checkpoints"
    torch_home.mkdir(parents=True)
    shutil.copy(real_weights, torch_home / "mobilenet_v2-7ebf99e0.pth")  # where torchvision looks before it downloads
    environment = {**os.environ, "TORCH_HOME": str(folder / "torch"), "XDG_CACHE_HOME": str(folder / "cache")}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment["COMPOSE_PROJECT_NAME"] = f"catdog-test-{os.getpid()}"  # not this machine's own stack
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_NAME"):
        environment.pop(name, None)
    terminal = Shell(folder, environment)
    try:
        terminal.run("mlflow run . --env-manager local --experiment-name catdog -P data=path/to/photos -P seed=1")
        terminal.run("mlflow run . --env-manager local --experiment-name catdog -e promote -P version=1")
        yield terminal
    finally:
        terminal.close()
        if os.environ.get("CATDOG_DOCKER"):
            terminal_end(folder, environment)


def refuse_to_touch_what_is_there() -> None:
    """The README's names may be in use on this engine."""
    for kind, name in (("image", "catdog"), ("container", "catdog-live.door")):
        found = subprocess.run(["docker", kind, "inspect", name], capture_output=True)
        if found.returncode == 0:
            pytest.skip(f"the {kind} {name} of the README's commands is somebody's on this engine")


def terminal_end(folder: Path, environment: Mapping[str, str]) -> None:
    """Whatever the README's commands made on the Docker engine, had they been cut off."""
    quiet = {
        "cwd": folder,
        "env": {**environment, "CATDOG_IMAGE": "catdog", "CATDOG_DB_PASSWORD": "x"},
        "capture_output": True,
    }
    for stack in ("serving", "tracking"):
        words = ["docker", "compose", "-f", f"deploy/{stack}/compose.yaml", "down", "-v", "--rmi", "local"]
        subprocess.run(words, **quiet)  # type: ignore[call-overload]
    subprocess.run(["mlflow", "deployments", "delete", "-t", "catdog", "--name", "live"], **quiet)  # type: ignore[call-overload]
    subprocess.run(["docker", "image", "rm", "--force", "catdog"], **quiet)  # type: ignore[call-overload]


def named(step: Step) -> str:
    return re.sub(r"[^\w@=./:-]+", " ", step.command)[:70].strip()


@pytest.mark.parametrize("step", [step for step in steps() if step.command not in ELSEWHERE], ids=named)
def test_each_command_works_as_it_stands(step: Step, terminal: Shell):
    if step.command.startswith(_DOCKER) and not os.environ.get("CATDOG_DOCKER"):
        pytest.skip("CATDOG_DOCKER is not set: this one wants a Docker engine, and minutes")
    if not step.section.startswith("## Use") and not step.section.startswith("## The tour"):
        terminal.stop_server()  # a reader has read on
    if step.command.startswith(_SERVERS):
        terminal.serve(step.command)
        return
    if step.language == "python":
        (terminal.folder / "block.py").write_text(_PRELUDE + step.text)
        terminal.run("PYTHONPATH=. python block.py")
        return
    printed = terminal.run(step.text)
    for part, said in SAYS.items():
        if part in step.text:
            assert re.search(said, printed, re.DOTALL), printed[-3000:]
    if "-O heatmaps.json" in step.text:
        assert json.loads((terminal.folder / "heatmaps.json").read_text())[0]["heatmap"]


# What the README's blocks of Python take for granted.
_PRELUDE = """
import mlflow, pandas, torch
device, image_tensor = "cpu", torch.zeros(1, 3, 224, 224)
table = pandas.DataFrame({"image": [open("photo.jpg", "rb").read()] * 4, "label": ["cat", "cat", "dog", "cat"]})
"""


def test_the_cards_commands_work_as_they_stand(terminal: Shell):
    """`curl` and Python of the card, taken from the artifact, against the server that the card names."""
    terminal.stop_server()
    terminal.run("unset MLFLOW_TRACKING_URI")  # the team's server, where the README ends
    terminal.run("mlflow artifacts download -u models:/CatDogClassifier@production/model_card.md -d .")
    card = (terminal.folder / "model_card.md").read_text()
    (serve,) = re.findall(r"`(mlflow models serve [^`]+)`", card)
    (curl,) = re.findall(r"```sh\n(.*?)```", card, re.DOTALL)
    (python,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    terminal.serve(f"{serve} --env-manager local")  # building an environment is test_use.py's
    assert re.search(_ROW, terminal.run(curl), re.DOTALL)
    (terminal.folder / "block.py").write_text(python)
    terminal.run("python block.py")


def test_nothing_is_said_of_commands_that_have_gone():
    readme = (REPOSITORY / "README.md").read_text()
    assert [command for command in ELSEWHERE if command not in readme] == []
    assert [part for part in SAYS if part not in "".join(step.text for step in steps())] == []


def test_what_is_not_run_here_is_run_there():
    for command, where in ELSEWHERE.items():
        file, part = where.split(": ", 1)
        assert part in (REPOSITORY / file).read_text(), f"{command}: {where}"


def test_commands_in_passing_are_run_somewhere():
    run = [step.command for step in steps()]
    unknown = [span for span in inline() if span not in ELSEWHERE and not any(span in command for command in run)]
    assert not unknown
