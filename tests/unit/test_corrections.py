"""Corrections of a dataset: what is left out, what has another label, and what is refused by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import mlflow
import pandas as pd
import pytest

from catdog_pyfunc.errors import InvalidData
from catdog_pyfunc.pipeline import tracking
from catdog_pyfunc.pipeline.data import catalog
from catdog_pyfunc.pipeline.data.corrections import Corrections, read_corrections
from catdog_pyfunc.pipeline.data.dataset import Dataset, read_folder
from catdog_pyfunc.pipeline.data.label_studio import LEAVE_OUT
from catdog_pyfunc.pipeline.data.mlflow_source import ImageFolderSource, source_of
from catdog_pyfunc.pipeline.training import train
from catdog_pyfunc.pipeline.training.config import TrainingConfig

ROWS = pd.DataFrame(
    [
        ("train/cat/cat-0000.jpg", "dog", "label"),
        ("test/dog/dog-0001.jpg", "cat", "label"),
        ("test/cat/cat-0003.jpg", "", "duplicate"),
    ],
    columns=["path", "suggestion", "kind"],
)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    ROWS.to_csv(tmp_path / "audit #1%.csv", index=False)
    return tmp_path / "audit #1%.csv"


def labels(dataset: Dataset) -> dict[str, str]:
    """Path → class name."""
    root = Path(dataset.source)
    return {e.path.relative_to(root).as_posix(): dataset.classes[e.label] for e in dataset.examples("all")}


def test_suggestions_become_labels_and_the_rest_is_left_out(drawn: Path, table: Path):
    before = read_folder(drawn)
    after = read_folder(drawn, corrections=read_corrections({"exclude": table, "relabel": table}))
    expected = {**labels(before), "train/cat/cat-0000.jpg": "dog", "test/dog/dog-0001.jpg": "cat"}
    del expected["test/cat/cat-0003.jpg"]
    assert labels(after) == expected
    for split, changed in {"train": True, "val": False, "test": True}.items():
        assert (after.digest(split) != before.digest(split)) == changed


def test_each_file_does_only_what_it_is_given_for(drawn: Path, table: Path):
    relabelled = read_folder(drawn, corrections=read_corrections({"relabel": table}))
    assert labels(relabelled)["test/cat/cat-0003.jpg"] == "cat"
    assert labels(relabelled)["train/cat/cat-0000.jpg"] == "dog"
    excluded = read_folder(drawn, corrections=read_corrections({"exclude": table}))
    assert labels(read_folder(drawn)).keys() - labels(excluded).keys() == set(ROWS["path"])


def test_a_copy_with_a_wrong_label_is_left_out(tmp_path: Path):
    table = tmp_path / "audit.csv"
    table.write_text("path,suggestion,kind\na.jpg,dog,label_error\na.jpg,,near_duplicate\nb.jpg,dog,label_error\n")
    expected = Corrections({"b.jpg": "dog"}, frozenset({"a.jpg"}))
    assert read_corrections({"exclude": table, "relabel": table}) == expected


def test_parquet_and_missing_suggestions_are_read(tmp_path: Path, table: Path):
    ROWS.replace("", None).to_parquet(tmp_path / "audit.parquet")
    parquet = tmp_path / "audit.parquet"
    expected = read_corrections({"exclude": table, "relabel": table})
    assert read_corrections({"exclude": parquet, "relabel": parquet}) == expected
    (tmp_path / "paths.csv").write_text("path\na.jpg\n")
    assert read_corrections({"exclude": tmp_path / "paths.csv"}).excluded == {"a.jpg"}
    (tmp_path / "sodium.csv").write_text("path,suggestion\na.jpg,NA\n")  # a class that pandas takes for a missing value
    assert read_corrections({"relabel": tmp_path / "sodium.csv"}).labels == {"a.jpg": "NA"}


def test_a_class_that_loses_its_last_image_is_left_out(drawn: Path, tmp_path: Path):
    for label, numbers in {"cat": range(4), "dog": range(4), "owl": range(1)}.items():
        (tmp_path / label).mkdir()
        for number in numbers:
            (tmp_path / label / f"{number}.jpg").write_text(f"{label} {number}")
    dataset = read_folder(tmp_path, "all", Corrections({"owl/0.jpg": "cat"}))
    assert dataset.classes == ("cat", "dog")
    assert dataset.problems == ("class 'owl' has no images: left out",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "path,suggestion\n/train/cat/cat-0000.jpg,dog\ntrain/x.jpg,dog\n",
            "2 of the images to correct are not in .*: '/train/cat/cat-0000.jpg', 'train/x.jpg'; give paths relative",
        ),
        ("path,suggestion\ntrain/cat/cat-0000.jpg,Dog\n", "the corrected labels 'Dog' are no classes of .*: 'cat', 'dog'"),
        ("path,suggestion\na.jpg,cat\na.jpg,dog\n", "suggests both 'cat' and 'dog' for a.jpg: keep one row"),
        ("file,suggestion\na.jpg,cat\n", "has the columns file, suggestion: call the one with the images 'path'"),
        ("", "cannot read the corrections in .*table.csv .*: give CSV, parquet, or Label Studio's JSON"),
        (None, "the corrections .*table.csv do not exist"),
    ],
)
def test_what_cannot_be_corrected_is_named(content: str | None, message: str, drawn: Path, tmp_path: Path):
    file = tmp_path / "table.csv"
    if content is not None:
        file.write_text(content)
    with pytest.raises(InvalidData, match=message):
        read_folder(drawn, corrections=read_corrections({"relabel": file}))


def annotation(choice: str, **more: object) -> dict[str, object]:
    result = {"from_name": "label", "to_name": "image", "type": "choices", "value": {"choices": [choice]}}
    return {"id": 1, "result": [result], "was_cancelled": False, **more}


def exported(path: str, *annotations: dict[str, object]) -> dict[str, object]:
    """A task as Label Studio exports it."""
    return {"id": 7, "data": {"image": "/data/local-files/?d=x", "path": path}, "annotations": annotations, "project": 1}


def test_an_export_of_label_studio_is_read(tmp_path: Path):
    tasks = [
        exported("a.jpg", annotation("cat"), annotation("dog")),
        exported("b.jpg", annotation(LEAVE_OUT)),
        exported("c.jpg", annotation("dog", was_cancelled=True)),
        exported("d.jpg"),
    ]
    file = tmp_path / "export.json"
    file.write_text(json.dumps(tasks))
    assert read_corrections({"exclude": file, "relabel": file}) == Corrections({"a.jpg": "dog"}, frozenset({"b.jpg"}))


@pytest.mark.parametrize(
    "content", ["{", "{}x", '[{"image": "x", "label": "cat"}]', '["a"]', '[{"data": {}, "annotations": []}]']
)
def test_what_label_studio_does_not_export_is_refused(content: str, tmp_path: Path):
    (tmp_path / "export.json").write_text(content)
    with pytest.raises(InvalidData, match="is not what Label Studio exports as 'JSON'"):
        read_corrections({"relabel": tmp_path / "export.json"})


@pytest.fixture
def store(tmp_path: Path) -> mlflow.MlflowClient:
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'mlflow.db'}")
    mlflow.create_experiment("catdog", artifact_location=(tmp_path / "artifacts").as_uri())
    mlflow.set_experiment("catdog")
    yield mlflow.MlflowClient()
    mlflow.set_tracking_uri(None)


def test_a_corrected_test_split_is_opened_again_as_it_was_corrected(
    drawn: Path, table: Path, store: mlflow.MlflowClient, tmp_path: Path
):
    photos = shutil.copytree(drawn, tmp_path / "photos")
    config = TrainingConfig(str(photos), exclude=str(table), relabel=str(table))
    with tracking.run() as active:
        dataset = train._load_dataset(config, active.info.run_id)
        tracking.log_dataset(dataset, "test")
    table.write_text("edited since")
    (photos / ROWS["path"][0]).unlink()  # of another split
    run = store.get_run(active.info.run_id)
    assert {name: run.data.params[name] for name in ("data.relabelled", "data.excluded")} == {
        "data.relabelled": "2",
        "data.excluded": "1",
    }
    assert len(run.data.params["exclude.digest"]) == 16
    source = source_of(run)
    assert source is not None
    again = source.load()
    assert again.digest("test") == dataset.digest("test") != catalog.load_dataset(str(photos)).digest("test")
    assert again.corrected_by == dataset.corrected_by  # for the run of a promotion
    gone = ImageFolderSource(source.data, "test", source.digest, {"relabel": f"runs:/{active.info.run_id}/no"})
    with pytest.raises(InvalidData, match=r"the corrections runs:/[0-9a-f]+/no are not available"):
        gone.load()


def test_a_source_of_an_earlier_run_has_no_corrections():
    stored = {"data": "sample", "split": "test", "digest": "0"}
    assert ImageFolderSource.from_dict(stored) == ImageFolderSource("sample", "test", "0")
