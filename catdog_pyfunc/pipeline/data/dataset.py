"""Class folders → a data set: listed, split by content digest; broken, empty, leaking and unreadable parts are named."""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from catdog_pyfunc.cpu import available_cores
from catdog_pyfunc.errors import InvalidData

SPLITS = ("train", "val", "test")
ALL = "all"  # every split at once, for measuring
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"})
_VAL_SHARE, _TEST_SHARE = 0.15, 0.15


@dataclass(frozen=True)
class Example:
    """One picture of a data set.

    Attributes:
        path: Its file.
        label: Index of its class in `Dataset.classes`.
        digest: SHA-256 of the file, hex.
    """

    path: Path
    label: int
    digest: str


@dataclass(frozen=True)
class Dataset:
    """Labelled pictures on three splits.

    Attributes:
        source: What was asked for: a folder or a name.
        classes: Class names, sorted: their order is that of the logits.
        splits: "train", "val", "test" → pictures.
        problems: What was left out and why, a sentence each.
    """

    source: str
    classes: tuple[str, ...]
    splits: dict[str, tuple[Example, ...]]
    problems: tuple[str, ...] = ()

    def examples(self, split: str) -> tuple[Example, ...]:
        """The pictures of a split, or of all."""
        return tuple(example for one in (SPLITS if split == ALL else (split,)) for example in self.splits[one])

    def counts(self, split: str) -> dict[str, int]:
        """Class name → number of pictures on a split, or on all."""
        counter = Counter(example.label for example in self.examples(split))
        return {name: counter[index] for index, name in enumerate(self.classes)}

    def digest(self, *splits: str) -> str:
        """Name the content of some splits (all, if none is given): 16 hex digits, equal for equal pictures and labels."""
        lines = (
            f"{split} {self.classes[example.label]} {example.digest}\n"
            for split in (SPLITS if ALL in (splits or (ALL,)) else splits)
            for example in sorted(self.splits[split], key=lambda example: (example.label, example.digest))
        )
        return hashlib.sha256("".join(lines).encode()).hexdigest()[:16]

    def drop(self, broken: dict[Path, str], split: str | None = None) -> Dataset:
        """Leave broken pictures out.

        Args:
            broken: File → what is wrong with it.
            split: As for `read_folder`.

        Returns:
            The rest, with the broken ones among its problems.

        Raises:
            InvalidData: Nothing is left to learn from, or to measure on.
        """
        if not broken:
            return self
        splits = {split: tuple(e for e in examples if e.path not in broken) for split, examples in self.splits.items()}
        named = tuple(f"{path}: {reason}" for path, reason in sorted(broken.items()))
        return _checked(replace(self, splits=splits, problems=self.problems + named), split)


def read_folder(folder: Path, split: str | None = None) -> Dataset:
    """List a folder of photos.

    Args:
        folder: Either `train`, `val`, `test` with class sub-folders, or class sub-folders alone. A split that isn't there is
            taken out of train by content digest: the same file is always on the same split.
        split: For measuring, the only split ("all": any) that must hold pictures; None, for training: all, of two classes.

    Returns:
        The data set; what had to be left out stands in its `problems`.

    Raises:
        InvalidData: No such folder, fewer than two classes, or nothing to learn from or to measure on.
    """
    if not folder.is_dir():
        raise InvalidData(
            f"data folder {folder} {'is not a folder' if folder.exists() else 'does not exist'}: give a folder "
            "with one sub-folder a class, or 'sample', or 'oxford-iiit-pet'"
        )
    problems: list[str] = []
    found = {one: _list_classes(root, problems) for one, root in split_folders(folder).items()}
    labelled = {one: [(path, name) for name, paths in classes.items() for path in paths] for one, classes in found.items()}
    return assemble(str(folder), labelled, {name for classes in found.values() for name in classes}, problems, split)


def split_folders(folder: Path) -> dict[str, Path]:
    """Side → the folder of its class folders; one that holds class folders alone is train's."""
    there = {entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")}
    # Without train, `val` and `test` are splits only if there is nothing else: a class may be called "test".
    named = bool(there) and ("train" in there or there <= set(SPLITS))
    return {split: folder / split for split in SPLITS if split in there} if named else {"train": folder}


def assemble(
    source: str,
    labelled: dict[str, list[tuple[Path, str]]],
    names: Iterable[str],
    problems: Sequence[str] = (),
    split: str | None = None,
) -> Dataset:
    """Make a data set of labelled files: digests, missing splits, duplicates across splits.

    Args:
        source: What to call the data set.
        labelled: Side → (file, class name); what is missing is taken out of "train", if that is there.
        names: Every class that was found, also empty ones.
        problems: What is wrong already.
        split: As for `read_folder`.

    Returns:
        The data set.

    Raises:
        InvalidData: Fewer than two classes, or nothing to learn from or to measure on.
    """
    named = list(problems)
    filled = {name for files in labelled.values() for _, name in files}
    named += [f"class {name!r} has no pictures: left out" for name in sorted(set(names) - filled)]
    classes = tuple(sorted(filled))
    index = {name: label for label, name in enumerate(classes)}
    splits = {one: _digest_all(files, index, named) for one, files in labelled.items()}
    missing = [one for one in SPLITS if one not in splits]
    if missing:
        splits = {**splits, **_take_out(splits.get("train", []), missing)}
    splits = _without_leaks(splits, classes, named)
    return _checked(Dataset(source, classes, {one: tuple(splits[one]) for one in SPLITS}, tuple(named)), split)


def _checked(dataset: Dataset, split: str | None) -> Dataset:
    about = "".join(f"\n  {problem}" for problem in dataset.problems[:10])
    if not any(dataset.splits.values()):
        raise InvalidData(f"{dataset.source} holds no readable pictures ({', '.join(sorted(SUFFIXES))}){about}")
    if split is not None:
        if not dataset.examples(split):
            raise InvalidData(f"{dataset.source} has no pictures in {split!r}: give another split, or {ALL!r}{about}")
        return dataset
    in_train = [name for name, count in dataset.counts("train").items() if count]
    if len(in_train) < 2:
        raise InvalidData(
            f"{dataset.source} has training pictures of {len(in_train)} class ({', '.join(in_train)}); "
            f"at least 2 classes are needed, one sub-folder each{about}"
        )
    for one in ("val", "test"):
        if not dataset.splits[one]:
            raise InvalidData(f"{dataset.source} has nothing in {one!r}: add pictures, {one} gets 15 % of them{about}")
    return dataset


def _list_classes(root: Path, problems: list[str]) -> dict[str, list[Path]]:
    classes: dict[str, list[Path]] = {}
    for entry in sorted(root.iterdir()):
        if entry.is_dir() and not entry.name.startswith("."):
            classes[entry.name] = _list_pictures(entry, problems)
    return classes


def _list_pictures(folder: Path, problems: list[str]) -> list[Path]:
    def unreadable(error: OSError) -> None:
        problems.append(f"{error.filename}: can't be read ({error.strerror}): left out")

    pictures = []
    for parent, folders, files in os.walk(folder, onerror=unreadable):
        folders.sort()
        for name in sorted(files):
            path = Path(parent, name)
            if path.suffix.lower() in SUFFIXES:
                pictures.append(path)
            elif not name.startswith("."):
                problems.append(f"{path}: {path.suffix or 'no suffix'} is not a picture's suffix: left out")
    return pictures


def _digest_all(files: Sequence[tuple[Path, str]], index: dict[str, int], problems: list[str]) -> list[Example]:
    with ThreadPoolExecutor(available_cores()) as pool:
        digests = list(pool.map(lambda file: _digest(file[0]), files))
    examples = []
    for (path, name), digest in zip(files, digests, strict=True):
        if isinstance(digest, OSError):
            problems.append(f"{path}: can't be read ({digest.strerror}): left out")
        else:
            examples.append(Example(path, index[name], digest))
    return examples


def _digest(path: Path) -> str | OSError:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as unreadable:
        return unreadable


def _take_out(train: Sequence[Example], missing: Sequence[str]) -> dict[str, list[Example]]:
    """Take the missing splits out of train, each picture by its digest alone: adding files moves none of the others."""
    splits: dict[str, list[Example]] = {"train": [], **{split: [] for split in missing}}
    for example in train:
        place = int(example.digest[:13], 16) / 16**13  # uniform in 0..1, the same for the same content
        if "test" in missing and place < _TEST_SHARE:
            splits["test"].append(example)
        elif "val" in missing and place >= 1 - _VAL_SHARE:
            splits["val"].append(example)
        else:
            splits["train"].append(example)
    return splits


def _without_leaks(
    splits: dict[str, list[Example]], classes: Sequence[str], problems: list[str]
) -> dict[str, list[Example]]:
    """Keep a picture that is on two splits only on the one that measures: test before val before train."""
    aliases_by_name: dict[str, set[str]] = defaultdict(set)
    labels: dict[str, set[int]] = defaultdict(set)
    for split, examples in splits.items():
        for example in examples:
            aliases_by_name[example.digest].add(split)
            labels[example.digest].add(example.label)
    kept: dict[str, list[Example]] = {}
    for split, examples in splits.items():
        kept[split] = []
        for example in examples:
            owner = max(aliases_by_name[example.digest], key=SPLITS.index)
            if owner == split:
                kept[split].append(example)
            else:
                problems.append(f"{example.path}: the same picture is in {owner!r} too: left out of {split!r}")
    for digest, several in labels.items():
        if len(several) > 1:
            names = ", ".join(classes[label] for label in sorted(several))
            problems.append(f"picture {digest[:12]} stands in several classes ({names}): one of them is wrong")
    return kept
