"""Class folders → a dataset: listed, split by content digest, with whatever had to be left out named."""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from catdog_pyfunc.cpu import available_cores
from catdog_pyfunc.errors import InvalidData
from catdog_pyfunc.pipeline.data.corrections import NO_CORRECTIONS, Corrections

SPLITS = ("train", "val", "test")
ALL = "all"  # all splits together, for evaluation
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"})
_VAL_FRACTION, _TEST_FRACTION = 0.15, 0.15
_MAX_PROBLEMS = 10  # in a message


@dataclass(frozen=True, slots=True)  # there may be millions
class Example:
    """One labelled image.

    Attributes:
        path: The image file.
        label: Index of its class in `Dataset.classes`.
        digest: SHA-256 of the file, in hex.
    """

    path: Path
    label: int
    digest: str


@dataclass(frozen=True)
class Dataset:
    """Labelled images in three splits.

    Attributes:
        source: What opens the dataset again: a folder or a name.
        classes: Class names in sorted order, which is the order of the logits.
        splits: "train", "val", "test" → images.
        problems: What was left out and why, one sentence each.
        corrected_by: "exclude", "relabel" → URI of the file, in an MLflow run, that corrected the data.
        leaks: The split and the image, of those left out because the same file is in a later split.
    """

    source: str
    classes: tuple[str, ...]
    splits: Mapping[str, tuple[Example, ...]]
    problems: tuple[str, ...] = ()
    corrected_by: Mapping[str, str] = field(default_factory=dict)
    leaks: tuple[tuple[str, Example], ...] = ()

    def examples(self, split: str) -> tuple[Example, ...]:
        """The images of a split, or of "all"."""
        return tuple(example for name in _names(split) for example in self.splits[name])

    def counts(self, split: str) -> dict[str, int]:
        """Class name → number of images in a split, or in "all"."""
        counter = Counter(example.label for example in self.examples(split))
        return {name: counter[index] for index, name in enumerate(self.classes)}

    def digest(self, *splits: str) -> str:
        """16 hex digits over the content of some splits (by default all): equal for equal images and labels."""
        lines = (
            f"{name} {self.classes[example.label]} {example.digest}\n"
            for split in splits or (ALL,)
            for name in _names(split)
            for example in sorted(self.splits[name], key=lambda example: (example.label, example.digest))
        )
        return hashlib.sha256("".join(lines).encode()).hexdigest()[:16]

    def drop(self, corrupt: Mapping[Path, str], split: str | None = None) -> Dataset:
        """Leave out corrupt images.

        Args:
            corrupt: File → what is wrong with it.
            split: As for `read_folder`.

        Returns:
            The rest, with the corrupt images among its problems.

        Raises:
            InvalidData: Too few classes or images are left.
        """
        if not corrupt:
            return self
        splits = {
            name: tuple(example for example in examples if example.path not in corrupt)
            for name, examples in self.splits.items()
        }
        problems = tuple(f"{path}: {reason}" for path, reason in sorted(corrupt.items()))
        return _checked(replace(self, splits=splits, problems=self.problems + problems), split)


def _names(split: str) -> tuple[str, ...]:
    return SPLITS if split == ALL else (split,)


def read_folder(folder: Path, split: str | None = None, corrections: Corrections = NO_CORRECTIONS) -> Dataset:
    """List a folder of images.

    Args:
        folder: Contains either `train`, `val` and `test` with class sub-folders, or class sub-folders only. A missing split
            is taken out of train by content digest, 15 % for val and for test: the same file is always in the same split.
        split: For evaluation, the one split that must have images ("all": any split); None for training, which needs images
            in all splits and two classes.
        corrections: What is to be left out, or to have another label than its folder's.

    Returns:
        The dataset; its `problems` say what was left out.

    Raises:
        InvalidData: The folder does not exist, has too few classes or images, or not those that are to be corrected.
    """
    if not folder.is_dir():
        raise InvalidData(
            f"data folder {folder} {'is not a folder' if folder.exists() else 'does not exist'}: give a folder "
            "with one sub-folder per class, or 'sample', or 'oxford-iiit-pet'"
        )
    problems: list[str] = []
    found = {name: _list_classes(root, problems) for name, root in split_folders(folder).items()}
    labelled = {
        name: [(path, label) for label, paths in classes.items() for path in paths] for name, classes in found.items()
    }
    names = {label for classes in found.values() for label in classes}
    return assemble(str(folder), corrections.apply(labelled, folder), names, problems, split)


def split_folders(folder: Path) -> dict[str, Path]:
    """Split → the folder with its class folders; a folder with class folders only is train."""
    entries = {entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")}
    # Without train, `val` and `test` are splits only if there is nothing else: a class may be called "test".
    named = bool(entries) and ("train" in entries or entries <= set(SPLITS))
    return {split: folder / split for split in SPLITS if split in entries} if named else {"train": folder}


def assemble(
    source: str,
    labelled: Mapping[str, Sequence[tuple[Path, str]]],
    class_names: Iterable[str],
    problems: Sequence[str] = (),
    split: str | None = None,
) -> Dataset:
    """Build a dataset from labelled files: compute digests, fill missing splits, remove duplicates across splits.

    Args:
        source: What opens the dataset again.
        labelled: Split → (file, class name) pairs; a missing split is taken out of train.
        class_names: Every class that was found, including empty ones.
        problems: Problems that are known already.
        split: As for `read_folder`.

    Returns:
        The dataset.

    Raises:
        InvalidData: There are too few classes or images.
    """
    found = list(problems)
    filled = {name for files in labelled.values() for _, name in files}
    found += [f"class {name!r} has no images: left out" for name in sorted(set(class_names) - filled)]
    classes = tuple(sorted(filled))
    index = {name: label for label, name in enumerate(classes)}
    splits = {name: _digest_all(files, index, found) for name, files in labelled.items()}
    missing = [name for name in SPLITS if name not in splits]
    if missing:
        splits |= _fill_splits(splits.get("train", []), missing)
    kept, leaks = _without_leaks(splits, classes, found)
    dataset = Dataset(source, classes, {name: tuple(kept[name]) for name in SPLITS}, tuple(found), leaks=tuple(leaks))
    return _checked(dataset, split)


def _checked(dataset: Dataset, split: str | None) -> Dataset:
    problems = "".join(f"\n  {problem}" for problem in dataset.problems[:_MAX_PROBLEMS])
    if not any(dataset.splits.values()):
        raise InvalidData(f"{dataset.source} has no readable images ({', '.join(sorted(SUFFIXES))}){problems}")
    if split is not None:
        if not dataset.examples(split):
            raise InvalidData(f"{dataset.source} has no images in {split!r}: give another split, or {ALL!r}{problems}")
        return dataset
    trained = [name for name, count in dataset.counts("train").items() if count]
    if len(trained) < 2:
        raise InvalidData(
            f"{dataset.source} has training images of {len(trained)} class ({', '.join(trained)}); "
            f"at least 2 classes are needed, one sub-folder each{problems}"
        )
    for name in ("val", "test"):
        if not dataset.splits[name]:
            raise InvalidData(f"{dataset.source} has no images in {name!r}: add some, {name} gets 15 % of them{problems}")
    return dataset


def _list_classes(root: Path, problems: list[str]) -> dict[str, list[Path]]:
    classes: dict[str, list[Path]] = {}
    for entry in sorted(root.iterdir()):
        if entry.is_dir() and not entry.name.startswith("."):
            classes[entry.name] = _list_images(entry, problems)
    return classes


def _list_images(folder: Path, problems: list[str]) -> list[Path]:
    def on_error(error: OSError) -> None:
        problems.append(f"{error.filename}: cannot be read ({error.strerror}): left out")

    images = []
    for parent, folders, files in os.walk(folder, onerror=on_error):
        folders.sort()
        for name in sorted(files):
            path = Path(parent, name)
            if path.suffix.lower() in SUFFIXES:
                images.append(path)
            elif not name.startswith("."):
                problems.append(f"{path}: {path.suffix or 'no suffix'} is not an image suffix: left out")
    return images


def _digest_all(files: Sequence[tuple[Path, str]], index: Mapping[str, int], problems: list[str]) -> list[Example]:
    with ThreadPoolExecutor(available_cores()) as pool:
        digests = list(pool.map(lambda file: _digest(file[0]), files))
    examples = []
    for (path, name), digest in zip(files, digests, strict=True):
        if isinstance(digest, OSError):
            problems.append(f"{path}: cannot be read ({digest.strerror}): left out")
        else:
            examples.append(Example(path, index[name], digest))
    return examples


def _digest(path: Path) -> str | OSError:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        return error


def _fill_splits(train: Sequence[Example], missing: Sequence[str]) -> dict[str, list[Example]]:
    """Take the missing splits out of train. Each image goes by its own digest, so that adding files moves no other."""
    splits: dict[str, list[Example]] = {"train": [], **{split: [] for split in missing}}
    for example in train:
        position = int(example.digest[:13], 16) / 16**13  # uniform in [0, 1)
        if "test" in missing and position < _TEST_FRACTION:
            splits["test"].append(example)
        elif "val" in missing and position >= 1 - _VAL_FRACTION:
            splits["val"].append(example)
        else:
            splits["train"].append(example)
    return splits


def _without_leaks(
    splits: Mapping[str, Sequence[Example]], classes: Sequence[str], problems: list[str]
) -> tuple[dict[str, list[Example]], list[tuple[str, Example]]]:
    """Keep an image that is in several splits only in the last of train, val, test; report labels that contradict."""
    owners: dict[str, str] = {}
    labels: dict[str, set[int]] = defaultdict(set)
    for split in (name for name in SPLITS if name in splits):
        for example in splits[split]:
            owners[example.digest] = split
            labels[example.digest].add(example.label)
    kept: dict[str, list[Example]] = {split: [] for split in splits}
    leaks = []
    for split, examples in splits.items():
        for example in examples:
            owner = owners[example.digest]
            if owner == split:
                kept[split].append(example)
            else:
                leaks.append((split, example))
                problems.append(f"{example.path}: the same image is in {owner!r} too: left out of {split!r}")
    for digest, several in labels.items():
        if len(several) > 1:
            names = ", ".join(classes[label] for label in sorted(several))
            problems.append(f"image {digest[:12]} is in several classes ({names}): all but one of them are wrong")
    return kept, leaks
