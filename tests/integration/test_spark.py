"""A real Spark cluster on this machine, a master and two workers: the same predictions, whatever dies in between."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import psutil
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from catdog_pyfunc.pipeline.processes import free_port
from tests.project import REPOSITORY, Project, make_project

pytestmark = [
    pytest.mark.slow,
    pytest.mark.spark,
    pytest.mark.skipif(not find_spec("pyspark"), reason="pyspark is not installed: pip install 'catdog-pyfunc[spark]'"),
    pytest.mark.skipif(not shutil.which("java"), reason="no java: Spark wants Java 17, such as openjdk-17-jre-headless"),
]
DEADLINE_S = 180


def wait_for(condition: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + DEADLINE_S
    while not (found := condition()):
        assert time.monotonic() < deadline, f"no {what} within {DEADLINE_S} s"
        time.sleep(0.2)
    return found


@pytest.fixture(scope="module")
def master(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a standalone cluster: a master and two workers of one core each."""
    folder, port = tmp_path_factory.mktemp("spark"), free_port()
    (home,) = find_spec("pyspark").submodule_search_locations  # type: ignore[union-attr, misc]
    java_class = [f"{home}/bin/spark-class"]
    url = f"spark://127.0.0.1:{port}"
    environment = {
        **os.environ,
        "SPARK_LOCAL_IP": "127.0.0.1",
        "SPARK_WORKER_DIR": str(folder),
        "PYTHONPATH": str(REPOSITORY),
    }
    commands = [["org.apache.spark.deploy.master.Master", "-h", "127.0.0.1", "-p", str(port), "--webui-port", "0"]]
    worker = ["org.apache.spark.deploy.worker.Worker", "-h", "127.0.0.1", "-c", "1", "-m", "2g", "--webui-port", "0", url]
    commands += [worker, worker]
    with contextlib.ExitStack() as stack:
        log = stack.enter_context((folder / "log").open("w"))
        for command in commands:
            process = subprocess.Popen(
                [*java_class, *command], stdout=log, stderr=log, env=environment, start_new_session=True
            )
            stack.callback(process.wait, timeout=30)
            stack.callback(os.killpg, process.pid, signal.SIGKILL)
        wait_for(
            lambda: (folder / "log").read_text().count("Successfully registered with master") == 2, "registered workers"
        )
        yield url


@pytest.fixture(scope="module")
def project_of_spark(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return make_project(tmp_path_factory.mktemp("project"))


@pytest.fixture
def photos(drawn: Path, tmp_path: Path) -> Path:
    """A folder with images of both classes, and corrupt ones."""
    folder = tmp_path / "photos"
    shutil.copytree(drawn / "train", folder / "deep" / "down")
    for number in range(8):
        (folder / f"broken {number}.jpg").write_bytes(b"\xff\xd8\xff and no more")
    return folder


@pytest.fixture(scope="module")
def model(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model of a small network."""
    import numpy as np
    import torch

    from catdog_pyfunc import flavor
    from catdog_pyfunc.bundle import Description
    from catdog_pyfunc.network import Network
    from catdog_pyfunc.preprocessing import Preprocess

    torch.manual_seed(1)
    features = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 8, stride=8), torch.nn.ReLU())
    images = [path.read_bytes() for path in sorted(drawn.glob("val/*/*.jpg"))][:4]
    path = tmp_path_factory.mktemp("model") / "model"
    flavor.save_model(
        *(path, Network(features, 8, 2).eval(), Description("mobilenet_v2", ("cat", "dog"), Preprocess(64, 72))),
        np.eye(4, 8, dtype=np.float32),
        images=images,
    )
    return path


def score(project: Project, photos: Path, output: Path, model: Path, engine: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "scripts.score", "--input", str(photos), "--output", str(output)]
    command += ["--model-uri", str(model), "--engine", engine]
    environment = {**project.environment, "SPARK_LOCAL_IP": "127.0.0.1", "PYTHONPATH": str(REPOSITORY)}
    return subprocess.Popen(
        command,
        cwd=REPOSITORY,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finished(process: subprocess.Popen[str]) -> str:
    printed, errors = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, errors[-3000:]
    return printed


def rows(output: Path) -> list[dict[str, Any]]:
    return sorted(ds.dataset(output, format="parquet").to_table().to_pylist(), key=lambda row: row["path"])


def assert_same(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert [row["path"] for row in found] == [row["path"] for row in expected]
    for row, other in zip(found, expected, strict=True):
        for name in ("digest", "label", "in_domain", "error"):
            assert row[name] == other[name], name
        for name in ("confidence", "domain_score"):
            assert row[name] == pytest.approx(other[name], abs=1e-5), name
        assert dict(row["probabilities"] or []) == pytest.approx(dict(other["probabilities"] or []), abs=1e-5)


def test_a_cluster_gives_the_rows_that_this_machine_gives(
    master: str, project_of_spark: Project, photos: Path, model: Path, tmp_path: Path
):
    finished(score(project_of_spark, photos, tmp_path / "local", model, "local"))
    printed = finished(score(project_of_spark, photos, tmp_path / "spark", model, master))
    assert "68 predictions in " in printed
    expected = rows(tmp_path / "local")
    assert sum(row["error"] is not None for row in expected) == 8
    assert_same(rows(tmp_path / "spark"), expected)
    (folder := tmp_path / "parquet").mkdir()
    files = sorted(photos.rglob("*.jpg"))
    table = pa.table({"path": list(map(str, files)), "content": [file.read_bytes() for file in files]})
    pq.write_table(table, folder / "all.parquet", row_group_size=16)
    finished(score(project_of_spark, folder, tmp_path / "spark parquet", model, master))
    assert_same(rows(tmp_path / "spark parquet"), expected)


class HeldUp:
    """An image that nobody can finish reading before it is released: a pipe that this process keeps open."""

    def __init__(self, path: Path) -> None:
        self.path = path
        os.mkfifo(path)
        self._pipe = os.open(path, os.O_RDWR)

    def readers(self) -> set[int]:
        """The processes that wait for the image."""
        found = set()
        for link in Path("/proc").glob("[0-9]*/fd/*"):
            with contextlib.suppress(OSError):
                if link.readlink() == self.path:
                    found.add(int(link.parts[2]))
        return found - {os.getpid()}

    def release(self, content: bytes) -> None:
        os.write(self._pipe, content)
        os.close(self._pipe)


def executor_of(worker: int) -> psutil.Process:
    parents = psutil.Process(worker).parents()
    return next(process for process in parents if "CoarseGrainedExecutorBackend" in " ".join(process.cmdline()))


def test_an_executor_that_is_killed_is_replaced_and_each_image_is_there_once(
    master: str, project_of_spark: Project, photos: Path, model: Path, drawn: Path, tmp_path: Path
):
    held_up = HeldUp(photos / "held up.jpg")
    process = score(project_of_spark, photos, tmp_path / "out", model, master)
    killed: set[int] = wait_for(held_up.readers, "worker that reads the image")
    for worker in killed:
        executor_of(worker).kill()
        psutil.Process(worker).kill()
    wait_for(lambda: held_up.readers() - killed, "second worker that reads the image")
    held_up.release((drawn / "val" / "cat" / "cat-0000.jpg").read_bytes())
    finished(process)
    found = rows(tmp_path / "out")
    assert [row["path"] for row in found] == sorted(str(file) for file in photos.rglob("*.jpg"))
    assert next(row for row in found if row["path"] == str(held_up.path))["error"] is None


def test_a_driver_that_is_killed_leaves_nothing_half_done_and_can_be_started_again(
    master: str, project_of_spark: Project, photos: Path, model: Path, tmp_path: Path
):
    held_up = HeldUp(photos / "held up.jpg")
    process = score(project_of_spark, photos, tmp_path / "out", model, master)
    workers: set[int] = wait_for(held_up.readers, "worker that reads the image")
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=DEADLINE_S)
    for worker in workers:
        psutil.Process(worker).kill()
    assert not list((tmp_path / "out").glob("*.parquet"))
    held_up.path.unlink()
    held_up.path.write_bytes(b"corrupt")
    finished(score(project_of_spark, photos, tmp_path / "out", model, master))
    assert [row["path"] for row in rows(tmp_path / "out")] == sorted(str(file) for file in photos.rglob("*.jpg"))


def train(project: Project, data: Path, weights: Path, cache: Path, engine: str) -> dict[str, float]:
    """Train without the embeddings of any other run; returns the run's metrics."""
    command = [sys.executable, "-m", "scripts.train", "--data", str(data), "--weights", str(weights), "--engine", engine]
    command += ["--image-size", "96", "--registered-model", "none"]
    environment = {
        **project.environment,
        "SPARK_LOCAL_IP": "127.0.0.1",
        "PYTHONPATH": str(REPOSITORY),
        "XDG_CACHE_HOME": str(cache),
    }
    trained = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=DEADLINE_S)
    assert trained.returncode == 0, trained.stderr[-3000:]
    assert ("embedding images on Spark" in trained.stderr) == (engine != "local")
    (run_id,) = re.findall(r"runs:/(\w+)/model", trained.stdout)
    return dict(project.client().get_run(run_id).data.metrics)


def test_training_on_a_cluster_gives_the_model_that_this_machine_gives(
    master: str, project_of_spark: Project, drawn: Path, weights: Path, tmp_path: Path
):
    shutil.copytree(drawn, tmp_path / "images")
    (tmp_path / "images" / "train" / "cat" / "broken.jpg").write_bytes(b"\xff\xd8\xff and no more")
    here, there = (
        train(project_of_spark, tmp_path / "images", weights, tmp_path / name, engine)
        for name, engine in (("here", "local"), ("there", master))
    )
    assert there.keys() == here.keys()
    same = [name for name in here if name.startswith(("test/", "head/")) and "latency" not in name]
    assert len(same) > 15
    assert {name: there[name] for name in same} == {name: here[name] for name in same}


@pytest.mark.filterwarnings("ignore:PySpark does not yet fully support pandas >= 3:FutureWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # sockets of pyspark's own
def test_mlflows_own_udf_gives_every_column_with_and_without_a_result_type(
    master: str, photos: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from pyspark.sql import SparkSession, functions

    monkeypatch.setenv("SPARK_LOCAL_IP", "127.0.0.1")
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.setenv("PYSPARK_PYTHON", sys.executable)
    expected = mlflow.pyfunc.load_model(str(model)).predict(
        pd.DataFrame({"image": [file.read_bytes() for file in sorted(photos.rglob("*.jpg"))]})
    )
    spark = SparkSession.builder.master(master).getOrCreate()
    try:
        files = spark.read.format("binaryFile").option("recursiveFileLookup", "true").load(photos.as_uri())
        nothing = spark.createDataFrame([("~", None)], "path string, content binary")
        images = files.select("path", "content").union(nothing)
        everything = mlflow.pyfunc.spark_udf(spark, str(model), env_manager="local")
        some = mlflow.pyfunc.spark_udf(spark, str(model), "label string, error string", env_manager="local")
        found = images.select(
            functions.regexp_replace("path", "^file:/+", "/").alias("path"),
            everything("content").alias("all"),
            some("content").alias("some"),
        )
        answered = sorted((row.asDict(recursive=True) for row in found.collect()), key=lambda row: row["path"])
    finally:
        spark.stop()
    *answered, null = answered
    assert null["all"]["error"].startswith("image ")
    assert len(answered) == len(expected) == 68
    for row, (_, wanted) in zip(answered, expected.iterrows(), strict=True):
        assert list(row["all"]) == list(wanted.index)
        # MLflow turns a null among a batch's texts into "None".
        nulls = (None, "None")
        if wanted["error"] is None:
            assert row["all"]["error"] in nulls
            assert row["some"]["label"] == row["all"]["label"] == wanted["label"]
            assert row["all"]["confidence"] == pytest.approx(wanted["confidence"], abs=1e-5)
            assert row["all"]["probabilities"] == pytest.approx(wanted["probabilities"], abs=1e-5)
        else:
            assert row["all"]["label"] in nulls
            assert row["some"]["error"] == row["all"]["error"]
            assert row["all"]["error"].startswith("image ")
            assert row["all"]["confidence"] is None
            assert set(row["all"]["probabilities"].values()) == {None}
