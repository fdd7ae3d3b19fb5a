"""The MLflow data source of an image folder: opens a run's images again, or says that they have changed."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from mlflow.data.dataset_source import DatasetSource
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from catdog_pyfunc import internals
from catdog_pyfunc.errors import InvalidData, first_line
from catdog_pyfunc.pipeline.data import catalog
from catdog_pyfunc.pipeline.data.corrections import NO_CORRECTIONS, Corrections, read_corrections
from catdog_pyfunc.pipeline.data.corrupt import find_corrupt
from catdog_pyfunc.pipeline.data.dataset import ALL, SUFFIXES, Dataset, split_folders
from catdog_pyfunc.preprocessing import Preprocess

SOURCE_TYPE = "image_folder"


@dataclass(frozen=True)
class ImageFolderSource(DatasetSource):
    """One split of an image dataset.

    Attributes:
        data: A folder, "sample" or "oxford-iiit-pet".
        split: "train", "val", "test" or "all".
        digest: Digest of the split's content; see `Dataset.digest`.
        corrected_by: See `Dataset.corrected_by`.
    """

    data: str
    split: str
    digest: str
    corrected_by: Mapping[str, str] = field(default_factory=dict)

    def load(self) -> Dataset:
        """Open the dataset again.

        Returns:
            The dataset, whose `split` has exactly the run's images and labels: corrected as they were there, and without
            those that the run left out as corrupt.

        Raises:
            InvalidData: The dataset or a correction is gone, or the images have changed.
        """
        listed = catalog.load_dataset(self.data, self.split, self._corrections())
        listed = replace(listed, corrected_by=self.corrected_by)
        if listed.digest(self.split) == self.digest:
            return listed
        # The run may have left out corrupt images, which are found only by decoding.
        dataset = listed.drop(find_corrupt(listed.examples(self.split), Preprocess()), self.split)
        if dataset.digest(self.split) != self.digest:
            raise InvalidData(
                f"{self.data} has other images in {self.split!r} than the run had: digest {listed.digest(self.split)}, not "
                f"{self.digest}; restore the folder, or train or evaluate again"
            )
        return dataset

    def _corrections(self) -> Corrections:
        if not self.corrected_by:
            return NO_CORRECTIONS
        from mlflow.artifacts import download_artifacts  # MLflow imports this module before it is complete

        try:
            with tempfile.TemporaryDirectory() as scratch:
                files = {
                    name: Path(download_artifacts(artifact_uri=uri, dst_path=scratch))
                    for name, uri in self.corrected_by.items()
                }
                # Other splits may have changed; whether this one has, its digest tells.
                return replace(read_corrections(files), strict=False)
        except (MlflowException, OSError) as error:
            raise InvalidData(
                f"the corrections {', '.join(self.corrected_by.values())} are not available ({first_line(error)})"
            ) from None

    def to_dict(self) -> dict[str, Any]:
        """Convert to what JSON can hold."""
        return asdict(self)

    @classmethod
    def from_dict(cls, source_dict: dict[Any, Any]) -> ImageFolderSource:
        """Convert back from `to_dict`."""
        corrected_by = dict(source_dict.get("corrected_by", {}))
        return cls(str(source_dict["data"]), str(source_dict["split"]), str(source_dict["digest"]), corrected_by)

    @staticmethod
    def _get_source_type() -> str:
        return SOURCE_TYPE

    @staticmethod
    def _can_resolve(raw_source: Any) -> bool:
        """Accept only a local folder with two classes: MLflow asks about every source that anybody passes in."""
        if not isinstance(raw_source, (str, Path)):
            return False
        try:
            folder = Path(raw_source)
            return folder.is_dir() and any(_has_classes(root) for root in split_folders(folder).values())
        except (OSError, ValueError):  # not a path, or not readable
            return False

    @classmethod
    def _resolve(cls, raw_source: Any) -> ImageFolderSource:
        dataset = catalog.load_dataset(str(raw_source), ALL)
        return cls(dataset.source, ALL, dataset.digest())


def source_of(run: Run, context: str = "testing") -> ImageFolderSource | None:
    """Find the images of a run from what MLflow has stored; works without the plugin.

    Args:
        run: A training or evaluation run of this project.
        context: "training", "validation", "testing", or "evaluation" for all splits together.

    Returns:
        The source of the images; None if the run has no such input.
    """
    for entry in run.inputs.dataset_inputs if run.inputs else ():
        contexts = {tag.value for tag in entry.tags if tag.key == internals.DATASET_CONTEXT_TAG}
        if context in contexts and entry.dataset.source_type == SOURCE_TYPE:
            return ImageFolderSource.from_dict(json.loads(entry.dataset.source))
    return None


def _has_classes(root: Path) -> bool:
    filled = 0
    for entry in root.iterdir():
        if entry.is_dir() and not entry.name.startswith(".") and any(p.suffix.lower() in SUFFIXES for p in entry.iterdir()):
            filled += 1
            if filled == 2:
                return True
    return False
