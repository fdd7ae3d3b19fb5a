"""Scoring on this machine: every image exactly once, whatever happens in between."""

from __future__ import annotations

import errno
import hashlib
import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from catdog_pyfunc import flavor
from catdog_pyfunc.errors import InvalidBundle, InvalidData, InvalidSetting, JobFailed, MissingDependency, TrackingError
from catdog_pyfunc.pipeline import ScoringConfig, score
from catdog_pyfunc.pipeline.cli.main import catdog
from catdog_pyfunc.pipeline.scoring import output as outputs
from catdog_pyfunc.pipeline.scoring import score as scores
from catdog_pyfunc.pipeline.scoring.inputs import open_images
from catdog_pyfunc.pipeline.scoring.output import columns as output_columns
from catdog_pyfunc.pipeline.scoring.output import open_output
from catdog_pyfunc.pipeline.scoring.summary import BINS, plot, summarise

COLUMNS = ["path", "digest", "image_bytes", "label", "confidence", "probabilities", "in_domain", "domain_score", "error"]


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store") / "mlflow.db"


@pytest.fixture(autouse=True)
def client(database: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[mlflow.MlflowClient]:
    monkeypatch.chdir(database.parent)
    mlflow.set_tracking_uri(f"sqlite:///{database}")
    yield mlflow.MlflowClient()
    mlflow.set_tracking_uri(None)


@pytest.fixture
def photos(drawn: Path, tmp_path: Path) -> Path:
    """A folder with 24 images at two depths, one of them corrupt, and a text file."""
    folder = tmp_path / "photos"
    shutil.copytree(drawn / "val", folder / "some" / "where")
    (folder / "a broken one.PNG").write_bytes(b"\x89PNG and no more")
    (folder / "notes.txt").write_text("not an image")
    return folder


def rows(output: Path) -> list[dict[str, Any]]:
    return ds.dataset(output, format="parquet").to_table().to_pylist()


def config(photos: Path, output: Path, model: Path, **settings: Any) -> ScoringConfig:
    return ScoringConfig(str(photos), str(output), str(model), **settings)


def test_a_folder_becomes_one_row_per_image_with_what_the_model_says(photos: Path, tiny_model: Path, tmp_path: Path):
    result = score(config(photos, tmp_path / "out", tiny_model))
    scored = rows(result.output)
    files = sorted(photos.rglob("*.jpg"))
    assert [row["path"] for row in scored] == [str(photos / "a broken one.PNG"), *map(str, files)]
    broken, *good = scored
    assert list(broken) == COLUMNS
    assert broken["error"].startswith("is not an image this model reads: starts with")
    assert {broken[name] for name in COLUMNS[3:-1]} == {None}
    predictions = flavor.load_model(str(tiny_model)).predict([file.read_bytes() for file in files])
    for row, file, prediction in zip(good, files, predictions, strict=True):
        assert row["digest"] == hashlib.sha256(file.read_bytes()).hexdigest()
        assert row["image_bytes"] == file.stat().st_size
        assert (row["label"], row["confidence"], row["error"]) == (
            prediction.label,
            pytest.approx(prediction.confidence),
            None,
        )
        assert dict(row["probabilities"]) == pytest.approx(prediction.probabilities)
        assert (row["in_domain"], row["domain_score"]) == (prediction.in_domain, pytest.approx(prediction.domain_score))
    assert (result.summary.images, result.summary.errors) == (25, 1)


def test_the_files_say_which_model_and_run_they_are_from(
    photos: Path, tiny_model: Path, tmp_path: Path, client: mlflow.MlflowClient
):
    result = score(config(photos, tmp_path / "out", tiny_model))
    (part,) = result.output.glob("*.parquet")
    metadata = {key.decode(): value.decode() for key, value in pq.read_schema(part).metadata.items()}
    run = client.get_run(metadata["catdog.run_id"])
    assert metadata["catdog.model"] == str(tiny_model)
    assert metadata["catdog.model_digest"] == flavor.load_model(str(tiny_model)).digest
    assert metadata["catdog.time"].endswith("+00:00")
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "score photos"
    assert run.data.params["input"] == str(photos)
    assert (run.data.metrics["scored/images"], run.data.metrics["scored/errors"]) == (25, 1)
    assert run.data.metrics["scored/images_per_second"] > 0
    assert [file.path for file in client.list_artifacts(run.info.run_id, "plots")] == ["plots/predictions.png"]


def test_heat_maps_are_a_column_on_request(photos: Path, tiny_model: Path, tmp_path: Path):
    broken, *good = rows(score(config(photos, tmp_path / "out", tiny_model, heatmaps=True)).output)
    assert broken["heatmap"] is None
    assert all(row["heatmap"].startswith(b"\x89PNG") for row in good)


def test_a_list_of_paths_names_what_cannot_be_read(photos: Path, tiny_model: Path, tmp_path: Path):
    good = next(photos.rglob("*.jpg"))
    (large := photos / "large.jpg").write_bytes(bytes(20_000_001))
    (tmp_path / "list.txt").write_text(f"{good}\n\n{photos / 'gone.jpg'}\n{large}\n")
    first, gone, too_large = rows(score(config(tmp_path / "list.txt", tmp_path / "out", tiny_model)).output)
    assert (first["path"], first["error"]) == (str(good), None)
    assert gone["error"] == "cannot be read (No such file or directory): give a file that exists and is readable"
    assert too_large["error"] == "has 20,000,001 bytes, more than 20,000,000; send a smaller file"


@pytest.mark.parametrize("column", ["image", "content", "bytes"])
def test_parquet_with_bytes_is_scored_row_by_row(column: str, images: list[bytes], tiny_model: Path, tmp_path: Path):
    (folder := tmp_path / "in").mkdir()
    pq.write_table(pa.table({column: [*images[:5], None], "other": range(6)}), folder / "a.parquet", row_group_size=2)
    pq.write_table(pa.table({column: images[5:8], "path": ["x", "y", None]}), folder / "b.parquet")
    scored = rows(score(config(folder / "a.parquet", tmp_path / "one", tiny_model)).output)
    assert [row["path"] for row in scored] == [f"{folder / 'a.parquet'}#{number}" for number in range(6)]
    assert [row["error"] for row in scored[:5]] == [None] * 5
    assert scored[5]["error"].startswith("is empty; ")
    assert len(rows(score(config(folder, tmp_path / "two", tiny_model)).output)) == 9


@pytest.mark.parametrize("start", range(10))
def test_parquet_is_read_from_any_row_on(start: int, tmp_path: Path):
    for name, first, count in (("a", 0, 6), ("b", 6, 3)):
        table = pa.table({"image": [bytes([n]) for n in range(first, first + count)]})
        pq.write_table(table, tmp_path / f"{name}.parquet", row_group_size=2)
    found = open_images(str(tmp_path), tmp_path / "listing")
    assert found.count == 9
    assert [item.content for item in found.items(start)] == [bytes([n]) for n in range(start, 9)]


class Stopped(BaseException):
    """The process was killed."""


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outputs, "PART_ROWS", 4)


@pytest.mark.parametrize("parts", range(7))
@pytest.mark.usefixtures("small_parts")
def test_a_call_that_was_killed_is_gone_on_with_and_each_image_is_there_once(
    parts: int, photos: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    real, written = pq.write_table, []

    def write(table: pa.Table, path: Path) -> None:
        if len(written) == parts:
            path.write_bytes(b"half a file")
            raise Stopped
        written.append(path)
        real(table, path)

    monkeypatch.setattr(pq, "write_table", write)
    with pytest.raises(Stopped):
        score(config(photos, tmp_path / "out", tiny_model))
    assert len(list((tmp_path / "out").glob("part-*"))) == parts
    (photos / "some" / "new.jpg").write_bytes(b"came later")
    sorted(photos.rglob("*.jpg"))[-1].unlink()
    monkeypatch.setattr(pq, "write_table", real)
    scored = rows(score(config(photos, tmp_path / "out", tiny_model)).output)
    paths = [row["path"] for row in scored]
    assert len(paths) == len(set(paths)) == 25
    assert str(photos / "some" / "new.jpg") not in paths
    assert sum(row["error"] is not None for row in scored) == 2
    assert not list((tmp_path / "out").glob(".*"))


def test_a_full_disk_loses_nothing(photos: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(table: pa.Table, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as context:
        context.setattr(pq, "write_table", full)
        with pytest.raises(JobFailed) as caught:
            score(config(photos, tmp_path / "out", tiny_model))
    assert str(caught.value) == (
        f"cannot write to {tmp_path / 'out'} (No space left on device): the predictions for 0 images are there; "
        "make room and run the same command again, which goes on from there"
    )
    assert not list((tmp_path / "out").glob("*part*"))
    assert score(config(photos, tmp_path / "out", tiny_model)).summary.images == 25


def test_an_output_that_is_there_already_is_refused_and_left_alone(photos: Path, tiny_model: Path, tmp_path: Path):
    score(config(photos, tmp_path / "out", tiny_model))
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").iterdir()}
    with pytest.raises(InvalidData, match="out is there already, and complete: give another folder, or remove it"):
        score(config(photos, tmp_path / "out", tiny_model))
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "out").iterdir()} == before
    with pytest.raises(InvalidData, match="photos holds something else: give a folder that does not exist"):
        score(config(photos, photos, tiny_model))
    with pytest.raises(InvalidData, match=r"notes\.txt is a file"):
        score(config(photos, photos / "notes.txt", tiny_model))
    assert len(list(photos.iterdir())) == 3


@pytest.mark.usefixtures("small_parts")
def test_an_output_of_other_settings_is_not_gone_on_with(
    photos: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def stopped(table: pa.Table, path: Path) -> None:
        raise Stopped

    with monkeypatch.context() as context:
        context.setattr(pq, "write_table", stopped)
        with pytest.raises(Stopped):
            score(config(photos, tmp_path / "out", tiny_model))
    with pytest.raises(InvalidData, match=r"begun with other settings \(heatmaps: 'False', now 'True'\)"):
        score(config(photos, tmp_path / "out", tiny_model, heatmaps=True))


def test_two_calls_cannot_write_to_one_output(tmp_path: Path):
    with open_output(tmp_path / "out", {"input": "x"}), pytest.raises(InvalidData, match="another process is writing to"):
        open_output(tmp_path / "out", {"input": "x"}).__enter__()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere", "nowhere does not exist: give a folder, a text file with one path per line, or parquet"),
        ("empty", r"empty has no images: give files with the suffixes \.bmp, "),
        ("photo.jpg", r"photo\.jpg is not text: give a folder, a text file with one path per line, or parquet"),
        ("fake.parquet", r"fake\.parquet is not parquet"),
        (
            "other.parquet",
            r"other\.parquet has the columns name: call the one with the images' bytes 'image' or 'content' or",
        ),
    ],
)
def test_an_input_that_cannot_be_scored_is_named_and_leaves_no_output_in_the_way(
    source: str, message: str, photos: Path, tiny_model: Path, tmp_path: Path
):
    (tmp_path / "empty").mkdir()
    (tmp_path / "photo.jpg").write_bytes(b"\xff\xd8\xff")
    (tmp_path / "fake.parquet").write_text("no parquet")
    pq.write_table(pa.table({"name": ["x"]}), tmp_path / "other.parquet")
    with pytest.raises(InvalidData, match=message):
        score(config(tmp_path / source, tmp_path / "out", tiny_model))
    assert not (tmp_path / "out").exists()


def test_a_model_of_another_kind_and_an_unknown_engine_are_refused(photos: Path, tmp_path: Path):
    (tmp_path / "model").mkdir()
    with pytest.raises(InvalidBundle, match="contains no catdog bundle"):
        score(config(photos, tmp_path / "out", tmp_path / "model"))
    with pytest.raises(InvalidSetting, match=r"engine is 'dask'; give local, spark or a master's URL"):
        config(photos, tmp_path / "out", tmp_path / "model", engine="dask")


def test_a_tracking_server_that_goes_away_costs_only_the_summary(
    photos: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def gone(*_: object, **__: object) -> None:
        raise mlflow.exceptions.MlflowException("Connection refused")

    monkeypatch.setattr(scores.mlflow, "log_metrics", gone)
    with pytest.raises(TrackingError, match=r"the predictions are complete, in .*out, but sqlite.* took no summary"):
        score(config(photos, tmp_path / "out", tiny_model))
    assert summarise(tmp_path / "out").images == 25


def test_spark_that_is_not_installed_is_named(
    photos: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(__import__("sys").modules, "pyspark.sql", None)
    with pytest.raises(MissingDependency, match=r"engine spark needs pyspark: pip install 'catdog-pyfunc\[spark\]'"):
        score(config(photos, tmp_path / "out", tiny_model, engine="spark"))


def test_the_command_prints_what_was_found(photos: Path, tiny_model: Path, tmp_path: Path):
    words = ["score", "--input", str(photos), "--output", str(tmp_path / "out"), "--model-uri", str(tiny_model)]
    done = CliRunner().invoke(catdog, words)
    assert done.exit_code == 0, done.output
    assert "cannot be read                1\n" in done.stdout
    assert f"25 predictions in {tmp_path / 'out'} (" in done.stdout
    assert "scoring images: 25/25 (" in done.stderr


def test_plot_and_table_show_all_images(photos: Path, tiny_model: Path, tmp_path: Path):
    summary = score(config(photos, tmp_path / "out", tiny_model)).summary
    labels, *histograms = plot(summary).axes
    assert [text.get_text() for text in labels.get_yticklabels()] == [*summary.labels, "cannot be read"]
    assert sum(patch.get_width() for patch in labels.patches) == 25
    assert [axes.get_xlabel() for axes in histograms] == ["confidence", "domain_score", "image_bytes"]
    table = pd.read_csv(io.StringIO(summary.table()))
    assert table.groupby("quantity")["images"].sum().to_dict() == dict.fromkeys(BINS, 24)


def test_a_histogram_counts_each_value_in_its_bin(tmp_path: Path):
    extremes = {"confidence": 1.0, "domain_score": 1.0000001, "image_bytes": 10, "label": "cat", "in_domain": True}
    pq.write_table(pa.Table.from_pylist([extremes], output_columns(False, {})), tmp_path / "part-00000.parquet")
    histograms = summarise(tmp_path).histograms
    assert [int(histograms[name].argmax()) for name in ("confidence", "domain_score", "image_bytes")] == [24, 99, 0]
    assert [histograms[name].sum() for name in BINS] == [1, 1, 1]
