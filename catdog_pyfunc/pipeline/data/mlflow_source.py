"""Where a run's pictures came from, as MLflow stores it: enough to have the same ones again, or hear that they changed."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mlflow.data.dataset_source import DatasetSource
from mlflow.entities import Run

from catdog_pyfunc import internals
from catdog_pyfunc.errors import InvalidData
from catdog_pyfunc.pipeline.data import catalog
from catdog_pyfunc.pipeline.data.corrupt import find_corrupt
from catdog_pyfunc.pipeline.data.dataset import ALL, SUFFIXES, Dataset, split_folders
from catdog_pyfunc.preprocessing import Preprocess

SOURCE_TYPE = "image_folder"


@dataclass(frozen=True)
class ImageFolderSource(DatasetSource):
    """One split of a data set of pictures.

    Attributes:
        data: A folder, "sample" or "oxford-iiit-pet".
        split: "train", "val", "test" or "all".
        digest: Names the content; see `Dataset.digest`.
    """

    data: str
    split: str
    digest: str

    def load(self) -> Dataset:
        """Open the data set again.

        Returns:
            The data set, whose `split` holds the very pictures that the run had; what the run left out as broken, too.

        Raises:
            InvalidData: It is gone, or holds other pictures by now.
        """
        listed = catalog.load_dataset(self.data, self.split)
        if listed.digest(self.split) == self.digest:
            return listed
        # Training leaves broken pictures out, which shows only in decoding.
        dataset = listed.drop(find_corrupt(listed.examples(self.split), Preprocess()), self.split)
        if dataset.digest(self.split) != self.digest:
            raise InvalidData(
                f"{self.data} has other pictures in {self.split!r} than the run had: digest {listed.digest(self.split)}, not "
                f"{self.digest}; restore the folder, or train or evaluate again"
            )
        return dataset

    def to_dict(self) -> dict[str, Any]:
        """The fields, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, source_dict: dict[Any, Any]) -> ImageFolderSource:
        """The reverse of `to_dict`."""
        return cls(str(source_dict["data"]), str(source_dict["split"]), str(source_dict["digest"]))

    @staticmethod
    def _get_source_type() -> str:
        return SOURCE_TYPE

    @staticmethod
    def _can_resolve(raw_source: Any) -> bool:
        """Only a local folder of two classes at least: MLflow asks of every source that anybody gives."""
        if not isinstance(raw_source, (str, Path)):
            return False
        try:
            folder = Path(raw_source)
            return folder.is_dir() and any(_has_classes(root) for root in split_folders(folder).values())
        except (OSError, ValueError):  # no path at all, or one that may not be read
            return False

    @classmethod
    def _resolve(cls, raw_source: Any) -> ImageFolderSource:
        dataset = catalog.load_dataset(str(raw_source), ALL)
        return cls(dataset.source, ALL, dataset.digest())


def source_of(run: Run, context: str = "testing") -> ImageFolderSource | None:
    """Which pictures a run had, from the run alone and without the plugin.

    Args:
        run: Of this project's training or evaluation.
        context: "training", "validation", "testing", or "evaluation" for all splits at once.

    Returns:
        Where they came from; None if the run has no such input.
    """
    for given in run.inputs.dataset_inputs if run.inputs else ():
        contexts = {tag.value for tag in given.tags if tag.key == internals.DATASET_CONTEXT_TAG}
        if context in contexts and given.dataset.source_type == SOURCE_TYPE:
            return ImageFolderSource.from_dict(json.loads(given.dataset.source))
    return None


def _has_classes(root: Path) -> bool:
    filled = 0
    for entry in root.iterdir():
        if entry.is_dir() and not entry.name.startswith(".") and any(p.suffix.lower() in SUFFIXES for p in entry.iterdir()):
            filled += 1
            if filled == 2:
                return True
    return False
