"""The image of a deployment: which version is fetched, what the build context holds, and what a failed build removes."""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import pytest
from docker.errors import APIError
from mlflow.exceptions import MlflowException
from mlflow_catdog.deployments import build

from catdog_pyfunc import cpu
from tests.third_party_models import save

CACHED, BASE, OWN, LATER = (letter * 12 for letter in "abcd")
OUTPUT = f"""Step 1/9 : ARG BASE
Step 2/9 : FROM $BASE
 ---> {BASE}
Step 3/9 : USER 0
 ---> Using cache
 ---> {CACHED}
Step 4/9 : COPY requirements requirements
 ---> {OWN}
Step 5/9 : RUN python -m pip install
 ---> Running in 123456123456
Successfully installed mlflow
 ---> Removed intermediate container 123456123456
 ---> {LATER}
Step 6/9 : RUN python -m runtime.internals
 ---> Running in 123456123457
 ---> {"e" * 12}
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("third-party") / "model", ["mlflow-skinny", "uvicorn==0.34.0"])


def test_only_the_layers_that_a_build_made_are_its_own():
    assert build.new_layers(OUTPUT) == [OWN, LATER]


@pytest.mark.parametrize("failure", [DeprecationWarning("stop"), None])
def test_a_failed_build_removes_its_own_layers_newest_first(failure: Exception | None, model: Path, tmp_path: Path):
    removed: list[tuple[str, bool]] = []

    class Api:
        def build(self, **options: Any) -> Iterator[dict[str, Any]]:
            for line in OUTPUT.splitlines(keepends=True):
                yield {"stream": line}
            if failure:
                raise failure
            yield {"error": "exit code 1\n"}

        def remove_image(self, layer: str, noprune: bool) -> None:
            removed.append((layer, noprune))
            if layer == LATER:
                raise APIError("another build continued from it")

    fetched = build.FetchedModel(model, str(model), str(model))
    with pytest.raises(type(failure) if failure else MlflowException) as raised:
        build.build(SimpleNamespace(api=Api()), fetched, "python:3.11-slim", "tag", {})  # type: ignore[arg-type]
    assert removed == [(LATER, True), (OWN, True)]
    if failure is None:
        assert str(raised.value).startswith("cannot build the image on python:3.11-slim: exit code 1\n")
        assert "Successfully installed mlflow" in str(raised.value)


def test_the_build_installs_what_the_model_pins_and_what_the_server_needs(model: Path, tmp_path: Path):
    (model / "constraints.txt").write_text("anyio<5\n")
    build.write_context(model, tmp_path)
    assert (tmp_path / "requirements" / "requirements.txt").read_text() == (model / "requirements.txt").read_text()
    assert (tmp_path / "requirements" / "constraints.txt").read_text() == "anyio<5\n"
    runtime = Path(build.__file__).parents[1] / "runtime" / "requirements.txt"
    assert (tmp_path / "requirements" / "runtime.txt").read_text() == runtime.read_text()
    (installs,) = re.findall(r"pip install(?:\\\n|.)+", (tmp_path / "Dockerfile").read_text())
    assert re.findall(r"-r (\S+)", installs.split("&&")[0]) == [
        "requirements/lock.txt",
        "requirements/requirements.txt",
        "requirements/runtime.txt",
    ]
    assert (tmp_path / "requirements" / "lock.txt").read_text() == ""


@pytest.fixture
def lock(tmp_path: Path) -> str:
    (tmp_path / "catdog.lock").write_text(f"pillow==13.0.0 --hash=sha256:{'0' * 64}\n")
    return str(tmp_path / "catdog.lock")


def test_with_a_lock_a_models_requirements_are_names_and_versions_only(lock: str, tmp_path: Path):
    model = tmp_path / "model"
    model.mkdir()
    (model / "MLmodel").write_text("flavors: {}")
    (model / "requirements.txt").write_text(
        "--extra-index-url https://packages.example/simple\n-c constraints.txt\n\n"
        "pillow==13.0.0  # decodes\nuvloop==0.23.0; sys_platform != 'win32'\nray[serve]>=2\n"
    )
    (model / "constraints.txt").write_text("anyio<5\n")
    build.write_context(model, tmp_path / "context", lock_file=lock)
    folder = tmp_path / "context" / "requirements"
    assert (folder / "lock.txt").read_text() == f"--require-hashes\n--only-binary :all:\n{Path(lock).read_text()}"
    assert (folder / "requirements.txt").read_text() == (
        '-c constraints.txt\npillow==13.0.0\nuvloop==0.23.0; sys_platform != "win32"\nray[serve]>=2\n'
    )
    assert (folder / "constraints.txt").read_text() == "anyio<5\n"


@pytest.mark.parametrize("file", ["requirements.txt", "constraints.txt"])
@pytest.mark.parametrize(
    "line",
    [
        f"evil==1 --hash=sha256:{'1' * 64}",
        "evil @ https://packages.example/evil-1.tar.gz",
        f"evil @ https://packages.example/evil-1.tar.gz#sha256={'1' * 64}",
        "git+https://packages.example/evil",
        "./evil",
        "-e ./evil",
        "-r more.txt",
        "--no-binary :all:",
        "--find-links https://packages.example",
        "pillow==13.0.0 \\",
    ],
)
def test_with_a_lock_a_model_cannot_name_another_source(line: str, file: str, lock: str, tmp_path: Path):
    model = tmp_path / "model"
    model.mkdir()
    (model / "MLmodel").write_text("flavors: {}")
    (model / file).write_text(f"{line}\n")
    with pytest.raises(MlflowException) as refused:
        build.write_context(model, tmp_path / "context", lock_file=lock)
    assert f"the model's {file} has the line {line!r}, which lock_file cannot hold pip to" in refused.value.message


def test_where_a_lock_does_not_fit_the_error_names_the_package_and_how_to_update_it(model: Path, lock: str):
    log = ["ERROR: THESE PACKAGES DO NOT MATCH THE HASHES\n", "  numpy==2.4.6:\n", "    Expected sha256 00\n"]
    log += ["    Expected     or 11\n"] * 100 + ["       Got        22\n"]

    class Api:
        def build(self, **options: Any) -> Iterator[dict[str, Any]]:
            yield from ({"stream": line} for line in log)
            yield {"error": self.error}

        error = "The command '/bin/sh -c python -m pip install' returned a non-zero code: 1"

    api, fetched = Api(), build.FetchedModel(model, str(model), "models:/cats/3")
    arguments = (SimpleNamespace(api=api), fetched, "python:3.11-slim", "tag", {})
    with pytest.raises(MlflowException) as refused:
        build.build(*arguments, lock)  # type: ignore[arg-type]
    assert "numpy==2.4.6" in refused.value.message
    assert f"pip may install nothing but what {lock} has" in refused.value.message
    python = ".".join(platform.python_version_tuple()[:2])
    runtime = Path(build.__file__).parents[1] / "runtime" / "requirements.txt"
    options = f"--universal --python-version {python} --only-binary :all: --generate-hashes"
    command = f"uv pip compile {options} requirements.txt {runtime} -o {lock}"
    assert refused.value.message.endswith(
        f"\n  mlflow artifacts download -u models:/cats/3/requirements.txt -d .\n  {command}"
    )
    for error, given in ((api.error, ""), ("The command '/bin/sh -c python -m runtime.internals' returned 1", lock)):
        api.error = error
        with pytest.raises(MlflowException) as refused:
            build.build(*arguments, given)  # type: ignore[arg-type]
        assert "uv pip compile" not in refused.value.message


@pytest.mark.parametrize(
    ("uri", "name", "version"),
    [
        ("models:/cats/3", "cats", "3"),
        ("models:/cats@production", "model", ""),
        ("runs:/0123456789abcdef/model", "model", ""),
        ("models:/m-0123456789abcdef", "model", ""),
        ("", "model", ""),
    ],
)
def test_a_registered_model_is_served_under_its_name(uri: str, name: str, version: str, model: Path, tmp_path: Path):
    build.write_context(model, tmp_path, uri)
    served = json.loads((tmp_path / "served.json").read_text())
    assert served == {"image_column": "photo", "name": name, "version": version}


def test_the_context_holds_all_that_the_server_reads_and_no_listener(model: Path, tmp_path: Path):
    build.write_context(model, tmp_path)
    copied = {str(path.relative_to(tmp_path / "runtime")) for path in (tmp_path / "runtime").rglob("*") if path.is_file()}
    assert {"page.html", "routes/predict.py", "cpu.py"} <= copied
    assert not {"listener.py", "requirements.txt", "Dockerfile"} & copied


def test_the_image_counts_cores_by_this_projects_one_definition(model: Path, tmp_path: Path):
    build.write_context(model, tmp_path)
    assert (tmp_path / "runtime" / "cpu.py").read_text() == Path(cpu.__file__).read_text()


def test_an_alias_is_resolved_before_the_model_is_fetched(monkeypatch: pytest.MonkeyPatch, model: Path, tmp_path: Path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    client = mlflow.MlflowClient()
    client.create_registered_model("cats")
    for _ in range(2):
        client.create_model_version("cats", str(model))
    client.set_registered_model_alias("cats", "production", "1")
    with build.fetched("models:/cats@production") as fetched:
        client.set_registered_model_alias("cats", "production", "2")
        assert (fetched.uri, fetched.version) == ("models:/cats@production", "models:/cats/1")
        assert (fetched.folder / "MLmodel").is_file()
    with build.fetched(str(model)) as fetched:
        assert fetched.version == str(model)
    with pytest.raises(MlflowException, match=r"cannot load model models:/cats@staging from sqlite"):
        build.fetched("models:/cats@staging").__enter__()
