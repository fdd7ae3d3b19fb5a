"""A run's images, opened again from what MLflow stores: exactly the same, or an error that they have changed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from catdog_pyfunc.errors import InvalidData
from catdog_pyfunc.pipeline.data import catalog
from catdog_pyfunc.pipeline.data.corrupt import find_corrupt
from catdog_pyfunc.pipeline.data.mlflow_source import ImageFolderSource
from catdog_pyfunc.preprocessing import Preprocess


@pytest.fixture
def photos(drawn: Path, tmp_path: Path) -> Path:
    shutil.copytree(drawn, tmp_path / "photos")
    return tmp_path / "photos"


def source_of_split(photos: Path, split: str) -> ImageFolderSource:
    dataset = catalog.load_dataset(str(photos))
    return ImageFolderSource(dataset.source, split, dataset.digest(split))


def test_the_same_images_are_opened_again(photos: Path):
    source = source_of_split(photos, "test")
    again = ImageFolderSource.from_json(source.to_json())
    assert again == source
    assert again.load().digest("test") == source.digest


def test_other_images_are_refused_with_both_digests(photos: Path):
    source = source_of_split(photos, "test")
    (photos / "test" / "cat" / "cat-0000.jpg").unlink()
    now = catalog.load_dataset(str(photos)).digest("test")
    with pytest.raises(InvalidData, match=f"other images in 'test' than the run had: digest {now}, not {source.digest}"):
        source.load()


def test_another_split_may_change(photos: Path):
    source = source_of_split(photos, "test")
    (photos / "train" / "cat" / "cat-0000.jpg").unlink()
    assert source.load().digest("test") == source.digest


def test_a_folder_that_is_gone_is_named(photos: Path):
    source = source_of_split(photos, "test")
    shutil.rmtree(photos)
    with pytest.raises(InvalidData, match="does not exist"):
        source.load()


def test_images_that_training_left_out_as_corrupt_are_left_out_again(photos: Path):
    corrupt = photos / "test" / "cat" / "corrupt.jpg"
    corrupt.write_bytes((photos / "test" / "cat" / "cat-0000.jpg").read_bytes()[:700])
    listed = catalog.load_dataset(str(photos))
    trained_on = listed.drop(find_corrupt(listed.examples("all"), Preprocess(96, 99)))
    loaded = ImageFolderSource(str(photos), "test", trained_on.digest("test")).load()
    assert len(loaded.splits["test"]) == 24
    assert str(corrupt) in loaded.problems[-1]
    assert len(ImageFolderSource(str(photos), "test", listed.digest("test")).load().splits["test"]) == 25


def test_only_a_local_folder_of_classes_is_resolved(photos: Path, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "table.csv").write_text("a,b")
    resolvable = ImageFolderSource._can_resolve
    assert resolvable(str(photos))
    assert resolvable(photos / "train")
    for other in (
        photos / "train" / "cat",
        tmp_path / "empty",
        tmp_path / "table.csv",
        "s3://bucket/photos",
        "nowhere",
        7,
        b"x",
    ):
        assert not resolvable(other)
    assert not resolvable("a\0b")
    assert not resolvable("long" * 5_000)
    resolved = ImageFolderSource._resolve(str(photos))
    assert resolved.load().digest() == resolved.digest


def test_the_sample_is_found_by_its_name(monkeypatch: pytest.MonkeyPatch, drawn: Path, tmp_path: Path):
    monkeypatch.setattr(catalog.synthetic, "make", lambda folder: drawn)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    dataset = catalog.load_dataset("sample")
    assert dataset.source == "sample"
    assert ImageFolderSource("sample", "val", dataset.digest("val")).load().counts("val") == {"cat": 12, "dog": 12}
