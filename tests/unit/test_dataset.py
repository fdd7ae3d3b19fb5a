"""Class folders → splits: by content digest, without leaks, with everything left out named."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from catdog_pyfunc.errors import InvalidData
from catdog_pyfunc.pipeline.data import catalog, synthetic
from catdog_pyfunc.pipeline.data import dataset as dataset_module
from catdog_pyfunc.pipeline.data.dataset import SPLITS, read_folder


@pytest.fixture
def flat(drawn: Path, tmp_path: Path) -> Path:
    """Class folders only, 54 images each."""
    for label in ("cat", "dog"):
        for split in SPLITS:
            for path in (drawn / split / label).iterdir():
                target = tmp_path / "flat" / label / f"{split}-{path.name}"
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, target)
    return tmp_path / "flat"


def test_three_splits_are_taken_as_they_are(drawn: Path):
    dataset = read_folder(drawn)
    assert dataset.classes == ("cat", "dog")
    assert dataset.counts("train") == {"cat": 30, "dog": 30}
    assert dataset.counts("test") == {"cat": 12, "dog": 12}
    assert not dataset.problems


def test_class_folders_are_split_by_content_and_adding_moves_nothing(flat: Path, drawn: Path):
    before = read_folder(flat)
    assert all(min(before.counts(split).values()) > 0 for split in SPLITS)
    place = {example.digest: split for split in SPLITS for example in before.splits[split]}
    (flat / "cat" / "new.jpg").write_bytes(synthetic.draw("cat", np.random.default_rng(99)))
    moved = flat / "cat" / "train-cat-0000.jpg"
    moved.rename(moved.with_name("renamed.jpg"))
    after = {e.digest: split for split in SPLITS for e in read_folder(flat).splits[split]}
    assert len(after) == len(place) + 1
    assert all(after[digest] == split for digest, split in place.items())


def test_val_and_test_get_15_percent_each(tmp_path: Path):
    for label in ("cat", "dog"):
        (tmp_path / label).mkdir()
        for number in range(1_000):
            (tmp_path / label / f"{number}.jpg").write_text(f"{label} {number}")  # listing does not decode
    counts = {split: len(images) for split, images in read_folder(tmp_path).splits.items()}
    assert sum(counts.values()) == 2_000
    assert counts["val"] == pytest.approx(300, abs=60)  # 4 standard deviations
    assert counts["test"] == pytest.approx(300, abs=60)


def test_a_missing_split_is_taken_out_of_train(drawn: Path, tmp_path: Path):
    shutil.copytree(drawn / "train", tmp_path / "train")
    shutil.copytree(drawn / "test", tmp_path / "test")
    dataset = read_folder(tmp_path)
    assert dataset.counts("test") == {"cat": 12, "dog": 12}
    assert 0 < len(dataset.splits["val"]) < len(dataset.splits["train"]) < 60


def test_any_number_of_classes_in_sorted_order(drawn: Path, tmp_path: Path):
    for name, source in (("zebra", "cat"), ("ant", "dog"), ("mole", "cat")):
        for number, path in enumerate(sorted((drawn / "train" / source).iterdir())):
            target = tmp_path / name / path.name
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(path.read_bytes() + name.encode() + bytes([number]))
    assert read_folder(tmp_path).classes == ("ant", "mole", "zebra")


def test_an_image_in_several_splits_stays_only_in_the_one_that_evaluates(drawn: Path, tmp_path: Path):
    shutil.copytree(drawn, tmp_path / "photos")
    leak = tmp_path / "photos" / "train" / "cat" / "leak.jpg"
    shutil.copy(drawn / "test" / "cat" / "cat-0000.jpg", leak)
    dataset = read_folder(tmp_path / "photos")
    assert dataset.counts("train")["cat"] == 30
    assert dataset.counts("test")["cat"] == 12
    assert dataset.problems == (f"{leak}: the same image is in 'test' too: left out of 'train'",)


def test_an_image_in_two_classes_is_named(drawn: Path, tmp_path: Path):
    shutil.copytree(drawn, tmp_path / "photos")
    shutil.copy(drawn / "train" / "cat" / "cat-0000.jpg", tmp_path / "photos" / "train" / "dog" / "no-dog.jpg")
    (problem,) = read_folder(tmp_path / "photos").problems
    assert "is in several classes (cat, dog)" in problem


def test_what_is_left_out_is_named(drawn: Path, tmp_path: Path):
    root = tmp_path / "photos"
    shutil.copytree(drawn, root)
    (root / "train" / "bird").mkdir()
    (root / "train" / "cat" / "notes.txt").write_text("hello")
    (root / "train" / "cat" / ".DS_Store").write_text("")
    (root / "train" / "dog" / "gone.jpg").symlink_to(root / "nowhere.jpg")
    problems = "\n".join(read_folder(root).problems)
    assert "class 'bird' has no images" in problems
    assert "notes.txt: .txt is not an image suffix" in problems
    assert "gone.jpg: cannot be read" in problems
    assert "DS_Store" not in problems


def test_an_unreadable_folder_is_named(drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    root = tmp_path / "photos"
    shutil.copytree(drawn, root)
    locked = root / "train" / "cat" / "locked"
    locked.mkdir()
    scandir = dataset_module.os.scandir

    def guarded(path: str):  # tests may run as root, who may read everything
        if str(path) == str(locked):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(dataset_module.os, "scandir", guarded)
    assert read_folder(root).problems == (f"{locked}: cannot be read (Permission denied): left out",)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda root: None, "does not exist"),
        (lambda root: root.write_text("x"), "is not a folder"),
        (lambda root: root.mkdir(), "has no readable images"),
        (lambda root: (root / "cat").mkdir(parents=True), "class 'cat' has no images"),
    ],
)
def test_nothing_to_train_on_is_an_error(build, message: str, tmp_path: Path):
    build(tmp_path / "photos")
    with pytest.raises(InvalidData, match=message):
        read_folder(tmp_path / "photos")


def test_one_class_is_too_few(drawn: Path, tmp_path: Path):
    shutil.copytree(drawn / "train" / "cat", tmp_path / "photos" / "cat")
    with pytest.raises(InvalidData, match=r"training images of 1 class .cat.; at least 2"):
        read_folder(tmp_path / "photos")


def test_one_split_is_enough_for_evaluation(drawn: Path, tmp_path: Path):
    shutil.copytree(drawn / "test", tmp_path / "photos" / "test")
    dataset = read_folder(tmp_path / "photos", "test")
    assert dataset.counts("test") == {"cat": 12, "dog": 12}
    assert dataset.digest("test") == read_folder(drawn).digest("test")
    with pytest.raises(InvalidData, match="no images in 'train': give another split, or 'all'"):
        read_folder(tmp_path / "photos", "train")
    with pytest.raises(InvalidData, match="training images of 0 class"):
        read_folder(tmp_path / "photos")


def test_all_is_every_image(flat: Path, drawn: Path, tmp_path: Path):
    assert read_folder(flat, dataset_module.ALL).counts(dataset_module.ALL) == {"cat": 54, "dog": 54}
    assert read_folder(flat).digest(dataset_module.ALL) == read_folder(flat).digest()
    few = tmp_path / "few" / "cat"
    few.mkdir(parents=True)
    shutil.copy(drawn / "test" / "cat" / "cat-0000.jpg", few)
    assert len(read_folder(few.parent, dataset_module.ALL).examples(dataset_module.ALL)) == 1


def test_a_class_may_be_called_test(drawn: Path, tmp_path: Path):
    for name, label in (("test", "cat"), ("control", "dog")):
        shutil.copytree(drawn / "train" / label, tmp_path / "photos" / name)
    assert read_folder(tmp_path / "photos").classes == ("control", "test")


def test_the_digest_is_of_the_content(drawn: Path, tmp_path: Path):
    shutil.copytree(drawn, tmp_path / "photos")
    assert read_folder(tmp_path / "photos").digest() == read_folder(drawn).digest()
    (tmp_path / "photos" / "train" / "cat" / "cat-0000.jpg").unlink()
    changed = read_folder(tmp_path / "photos")
    assert changed.digest() != read_folder(drawn).digest()
    assert changed.digest("test") == read_folder(drawn).digest("test")


def test_the_pets_are_read_by_torchvisions_own_class(drawn: Path, tmp_path: Path):
    """In a small tree with the layout of what torchvision downloads."""
    root = tmp_path / "oxford-iiit-pet"
    (root / "images").mkdir(parents=True)
    (root / "annotations" / "trimaps").mkdir(parents=True)
    lines: dict[str, list[str]] = {"trainval": [], "test": []}
    for torchvision_split, split in (("trainval", "train"), ("test", "test")):
        for number, path in enumerate(sorted((drawn / split).glob("*/*.jpg"))):
            breed, species = ("Abyssinian", 1) if path.parent.name == "cat" else ("beagle", 2)
            name = f"{breed}_{split}_{number}"
            shutil.copy(path, root / "images" / f"{name}.jpg")
            lines[torchvision_split].append(f"{name} {species} {species} {number}")
    for split, text in lines.items():
        (root / "annotations" / f"{split}.txt").write_text("\n".join(text) + "\n")
    dataset = catalog.load_pets(tmp_path)
    assert dataset.classes == ("cat", "dog")
    assert dataset.counts("test") == {"cat": 12, "dog": 12}
    assert len(dataset.splits["train"]) + len(dataset.splits["val"]) == 60


def test_pets_without_a_network_name_the_alternatives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def unreachable(*args: object, **options: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.datasets.oxford_iiit_pet.download_and_extract_archive", unreachable)
    with pytest.raises(InvalidData, match=r"cannot download .*no route to host.*'sample'"):
        catalog.load_pets(tmp_path)
