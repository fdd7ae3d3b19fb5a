"""Corrections of a dataset: files that list images to leave out, or to give another label."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from catdog_pyfunc.errors import InvalidData, first_line
from catdog_pyfunc.pipeline.data import label_studio

Labelled = Mapping[str, Sequence[tuple[Path, str]]]
"""Split → (file, class name) pairs."""
_MAX_NAMED = 5  # in a message


@dataclass(frozen=True)
class Corrections:
    """Which images are left out of a dataset, and which have another label than their folder says.

    Attributes:
        labels: Path relative to the data folder, with slashes → class name.
        excluded: Paths, of which none is in `labels`.
        strict: Whether a path or a class that the data does not have is an error; if not, it is passed over.
    """

    labels: Mapping[str, str] = field(default_factory=dict)
    excluded: frozenset[str] = frozenset()
    strict: bool = True

    def apply(self, labelled: Labelled, root: Path) -> Labelled:
        """Leave out and relabel.

        Args:
            labelled: The listed files.
            root: The data folder.

        Returns:
            The corrected list.

        Raises:
            InvalidData: A path or a class is not in the data; the message names some.
        """
        if not self.labels and not self.excluded:
            return labelled
        if self.strict:
            self._check(labelled, root)
        return {
            split: [
                (path, self.labels.get(relative, name))
                for path, name in files
                if (relative := _relative(path, root)) not in self.excluded
            ]
            for split, files in labelled.items()
        }

    def _check(self, labelled: Labelled, root: Path) -> None:
        known = {_relative(path, root) for files in labelled.values() for path, _ in files}
        classes = {name for files in labelled.values() for _, name in files}
        if unknown := sorted({*self.labels, *self.excluded} - known):
            raise InvalidData(
                f"{len(unknown)} of the images to correct are not in {root}: {_named(unknown)}; give paths relative to the "
                "data folder, as in 'train/cat/1.jpg'"
            )
        if unknown := sorted(set(self.labels.values()) - classes):
            raise InvalidData(f"the corrected labels {_named(unknown)} are no classes of {root}: {_named(sorted(classes))}")


NO_CORRECTIONS = Corrections()


def read_corrections(files: Mapping[str, Path]) -> Corrections:
    """Read the files that name what is to be corrected.

    Each is CSV or parquet with a column `path` and maybe `suggestion`, as `catdog audit` writes it, or Label Studio's JSON
    export. Other columns do not matter.

    Args:
        files: At most two. "relabel": those of its images that have a suggestion get it as label. "exclude": its images are
            left out; a row with a suggestion does not count if that is applied.

    Returns:
        The corrections.

    Raises:
        InvalidData: A file is missing or cannot be read, or has two suggestions for one image.
    """
    rows = {name: _rows(file) for name, file in files.items()}
    labels: dict[str, str] = {}
    for path, suggestion in rows.get("relabel", ()):
        if suggestion and labels.setdefault(path, suggestion) != suggestion:
            raise InvalidData(
                f"{files['relabel']} suggests both {labels[path]!r} and {suggestion!r} for {path}: keep one row"
            )
    excluded = {path for path, suggestion in rows.get("exclude", ()) if not suggestion or path not in labels}
    return Corrections({path: label for path, label in labels.items() if path not in excluded}, frozenset(excluded))


def file_digest(file: Path) -> str:
    """16 hex digits over a file's content."""
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]


def _rows(file: Path) -> list[tuple[str, str]]:
    """(path, suggestion) pairs; "" for no suggestion."""
    if not file.is_file():
        raise InvalidData(f"the corrections {file} do not exist: give CSV, parquet, or Label Studio's JSON")
    if file.suffix == ".json":
        return label_studio.read_export(file)
    try:
        table = pd.read_parquet(file) if file.suffix == ".parquet" else pd.read_csv(file, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:  # pandas and pyarrow raise ValueErrors
        raise InvalidData(
            f"cannot read the corrections in {file} ({first_line(error)}): give CSV, parquet, or Label Studio's JSON"
        ) from None
    if "path" not in table.columns:
        raise InvalidData(
            f"{file} has the columns {', '.join(map(str, table.columns))}: call the one with the images 'path'"
        )
    suggestions = table["suggestion"] if "suggestion" in table.columns else [""] * len(table)
    return [
        (str(path), "" if pd.isna(label) else str(label)) for path, label in zip(table["path"], suggestions, strict=True)
    ]


def _relative(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


def _named(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    return ", ".join(map(repr, names[:_MAX_NAMED])) + more
