"""Every command and every block of Python in README, docs/ and the model card, run as it stands and in order.

They run in a copy of this repository that has what the pages take for granted: images, a photo, a version in production.
Each page has a shell of its own. Blocks below `<!-- not run: why -->` are left out.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from tests.docs import Step, pages, steps
from tests.project import REPOSITORY
from tests.shell import Shell

IMAGES_PER_CLASS = {"train": 120, "val": 40, "test": 60}
DOCKER_PAGES = ("containers.md", "deployments.md", "follow.md", "team-server.md")
SERVERS = ("mlflow ui", "mlflow models serve", "mlflow deployments run-local")
_ROW = r'"label": ?"(cat|dog)".*"error": ?null'
# Part of a command → what its output contains (a regular expression).
EXPECTED = {
    "local -P data=path/to/photos": "test accuracy",
    "-e evaluate": r"(test|all) accuracy",
    "-e audit": r"images, \d+ of them suspected",
    "-e promote -P version=2": r"models:/CatDogClassifier@production is version 2",
    "-e promote -P version=3 -P reason": r"models:/CatDogClassifier@production is version 3",
    "alias=staging": r"models:/CatDogClassifier@staging is version 3",
    "-e rollback": r"models:/CatDogClassifier@production is version 2 again \(it was 3\)",
    "-e history  ": r"rolled back +production +3 +2 .* wrong on kittens",
    "output=json": r'"reason": "wrong on kittens"',
    "curl -s -H 'Content-Type": _ROW,
    "--data-binary @photo.jpg http://127.0.0.1:5001/predict": r'"label":"(cat|dog)".*"error":null',
    "-F files=@photo.jpg": r'("label":"(cat|dog)".*){2}',
    "-s -D -": "x-request-id: order-4711",
    "curl -s http://127.0.0.1:5001/metrics": r'catdog_model_info{name="CatDogClassifier",version="\d+"} 1.0',
    "v2/models/CatDogClassifier": r'"inputs":\[{"name":"image","datatype":"BYTES"',
    "-e select": "0 unreadable images apart",
    "catdog history": "wrong on kittens",
    "catdog predict": r"Predicted class: (cat|dog), Confidence: [01]\.\d{4}",
    "models predict": _ROW,
    "build-docker": "Successfully built|naming to",
    "deployments create": r"live: models:/CatDogClassifier/\d+ serves at http://127.0.0.1:5001;",
    "deployments predict": _ROW,
    "-C workers=1": "Deployment live is updated",
    "deployments list": "'name': 'live'",
    "deployments get": "address: http://127.0.0.1:5001",
    "deployments delete": "Deployment live is deleted",
    "deployments help": "ready_timeout_s",
}
# What the blocks of Python take for granted.
_PRELUDE = """
import mlflow, pandas, torch
device, image_tensor = "cpu", torch.zeros(1, 3, 224, 224)
table = pandas.DataFrame({"image": [open("photo.jpg", "rb").read()] * 4, "label": ["cat", "cat", "dog", "cat"]})
"""
_COMMAND = re.compile(r"(make|mlflow (run|ui|models|deployments)|docker|conda|catdog|python -m) (?!.*…)")


class Reader:
    """Reads page after page: a fresh shell for each, in the same folder."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder, self.environment = folder, environment
        self._page = ""
        self._shell: Shell | None = None

    def shell(self, page: str) -> Shell:
        if page != self._page or self._shell is None:
            self.close()
            self._page, self._shell = page, Shell(self.folder, self.environment)
        return self._shell

    def close(self) -> None:
        if self._shell:
            self._shell.close()
            self._shell = None


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory, real_photos: Path, real_weights: Path) -> Iterator[Reader]:
    """Where version 1 has been trained and is in production."""
    for port in (5000, 5001, *((80, 443) if os.environ.get("CATDOG_DOCKER") else ())):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                pytest.skip(f"port {port}, which the documentation uses, is taken on this machine")
    if os.environ.get("CATDOG_DOCKER"):
        skip_if_names_are_taken()
    folder = tmp_path_factory.mktemp("reader")
    copy_repository(folder)
    copy_images(real_photos, folder / "path" / "to" / "photos")
    shutil.copy(next((real_photos / "test" / "cat").iterdir()), folder / "photo.jpg")
    shutil.copytree(folder / "path" / "to" / "photos" / "val", folder / "path" / "to" / "unlabelled")
    torch_home = folder / "torch" / "hub" / "checkpoints"
    torch_home.mkdir(parents=True)
    shutil.copy(real_weights, torch_home / "mobilenet_v2-7ebf99e0.pth")  # where torchvision looks before it downloads
    reader = Reader(folder, environment(folder))
    try:
        shell = reader.shell("")
        shell.run("mlflow run . --env-manager local --experiment-name catdog -P data=path/to/photos -P seed=1")
        promote = "mlflow run . --env-manager local --experiment-name catdog -e promote -P version=1"
        shell.run(f"{promote} -P latency_allowed_ms=1000")  # a first version is held to no champion's latency
        yield reader
    finally:
        reader.close()
        if os.environ.get("CATDOG_DOCKER"):
            clean_docker(reader)


def copy_repository(folder: Path) -> None:
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=REPOSITORY, capture_output=True, text=True)
    for name in listed.stdout.splitlines():
        if (REPOSITORY / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPOSITORY / name, folder / name)
    (folder / ".venv").symlink_to(sys.prefix)


def copy_images(photos: Path, folder: Path) -> None:
    for split, number in IMAGES_PER_CLASS.items():
        for label in ("cat", "dog"):
            target = folder / split / label
            target.mkdir(parents=True)
            for file in sorted((photos / split / label).iterdir())[:number]:
                shutil.copy(file, target)


def environment(folder: Path) -> dict[str, str]:
    variables = {
        **os.environ,
        "TORCH_HOME": str(folder / "torch"),
        "XDG_CACHE_HOME": str(folder / "cache"),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "COMPOSE_PROJECT_NAME": f"catdog-test-{os.getpid()}",  # not a stack of this machine's own
    }
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_NAME"):
        variables.pop(name, None)
    return variables


def skip_if_names_are_taken() -> None:
    for kind, name in (("image", "catdog"), ("container", "catdog-live")):
        if subprocess.run(["docker", kind, "inspect", name], capture_output=True).returncode == 0:
            pytest.skip(f"the {kind} {name}, which the documentation uses, exists on this machine")


def clean_docker(reader: Reader) -> None:
    """Remove what the pages made, in case a command failed before they did."""
    variables = {**reader.environment, "CATDOG_IMAGE": "catdog", "CATDOG_DB_PASSWORD": "x", "CATDOG_ADMIN_PASSWORD": "x"}
    compose = "docker compose -f deploy/{}/compose.yaml down -v --rmi local"
    for command in (
        compose.format("serving"),
        compose.format("tracking"),
        "mlflow deployments delete -t catdog --name live",
        "docker image rm --force catdog",
    ):
        subprocess.run(command.split(), cwd=reader.folder, env=variables, capture_output=True)


def every_step() -> list[Step]:
    return [step for page in pages() for step in steps(page)]


def step_id(step: Step) -> str:
    return f"{step.page}: " + re.sub(r"[^\w@=./:-]+", " ", step.command)[:70].strip()


def parameter(step: Step) -> object:
    return pytest.param(step, id=step_id(step), marks=[pytest.mark.docker] if step.page in DOCKER_PAGES else [])


@pytest.mark.slow
@pytest.mark.parametrize("step", [parameter(step) for step in every_step() if step.runs])
def test_each_step_works_as_it_stands(step: Step, reader: Reader):
    if step.page in DOCKER_PAGES and not os.environ.get("CATDOG_DOCKER"):
        pytest.skip("CATDOG_DOCKER is not set: this page needs Docker, and minutes")
    shell = reader.shell(step.page)
    if step.command.startswith(SERVERS):
        shell.serve(step.command)
        return
    if step.language == "python":
        (shell.folder / "block.py").write_text(_PRELUDE + step.text)
        shell.run("PYTHONPATH=. python block.py")
        return
    output = shell.run(step.text)
    for part, expected in EXPECTED.items():
        if part in step.text:
            assert re.search(expected, output, re.DOTALL), output[-3000:]
    if "-O heatmaps.json" in step.text:
        assert json.loads((shell.folder / "heatmaps.json").read_text())[0]["heatmap"]


@pytest.mark.slow
def test_the_statuses_are_those_of_the_serving_page(reader: Reader):
    shell = reader.shell("statuses")
    shell.serve("mlflow models serve -m models:/CatDogClassifier@production -p 5001 --env-manager local -t 20")
    record, json_type = b'{"dataframe_records": [{"image": ""}]}', "application/json"
    statuses = {
        name: requests.post("http://127.0.0.1:5001/invocations", data=body, headers=headers, timeout=30).status_code
        for name, body, headers in [
            ("an image that cannot be used", record, {"Content-Type": json_type}),
            ("not JSON", b"{", {"Content-Type": json_type}),
            ("no column image", b'{"dataframe_records": [{"picture": ""}]}', {"Content-Type": json_type}),
            ("another content type", record, {"Content-Type": "image/jpeg"}),
            ("not UTF-8", record, {"Content-Type": f"{json_type}; charset=latin-1"}),
            ("no content type", record, {}),
        ]
    }
    assert list(statuses.values()) == [200, 400, 400, 415, 415, 500], statuses
    for path in ("ping", "health", "version"):
        assert requests.get(f"http://127.0.0.1:5001/{path}", timeout=5).status_code == 200


@pytest.mark.slow
def test_the_model_cards_commands_work_as_they_stand(reader: Reader):
    """Taken from the artifact, and sent to the server that the card names."""
    shell = reader.shell("model card")
    shell.run("mlflow artifacts download -u models:/CatDogClassifier@production/model_card.md -d .")
    card = (shell.folder / "model_card.md").read_text()
    (serve,) = re.findall(r"`(mlflow models serve [^`]+)`", card)
    (curl,) = re.findall(r"```sh\n(.*?)```", card, re.DOTALL)
    (python,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    shell.serve(f"{serve} --env-manager local")
    assert re.search(_ROW, shell.run(curl), re.DOTALL)
    (shell.folder / "block.py").write_text(python)
    shell.run("python block.py")


def test_every_expectation_belongs_to_a_command():
    commands = "".join(step.text for step in every_step() if step.runs)
    assert [part for part in EXPECTED if part not in commands] == []


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_commands_in_the_text_occur_in_a_block(page: Path):
    """So that a command in passing is one that is run somewhere, or a target of the Makefile."""
    targets = re.findall(r"^([a-z]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    prose = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    commands = [step.command for step in every_step()] + [f"make {target}" for target in targets]
    spans = [span for span in re.findall(r"`([^`]+)`", prose) if _COMMAND.match(f"{span} ")]
    assert [span for span in spans if not any(span in command for command in commands)] == []
