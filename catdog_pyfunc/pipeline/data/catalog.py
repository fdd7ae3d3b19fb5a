"""Datasets by name: a folder, `sample`, or `oxford-iiit-pet`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from catdog_pyfunc import internals
from catdog_pyfunc.errors import InvalidData, first_line
from catdog_pyfunc.pipeline.cache import cache_dir
from catdog_pyfunc.pipeline.data import synthetic
from catdog_pyfunc.pipeline.data.corrections import NO_CORRECTIONS, Corrections
from catdog_pyfunc.pipeline.data.dataset import Dataset, assemble, read_folder

SAMPLE, PETS = "sample", "oxford-iiit-pet"


def load_dataset(data: str, split: str | None = None, corrections: Corrections = NO_CORRECTIONS) -> Dataset:
    """List the images of a dataset; none is decoded yet.

    Args:
        data: A folder, "sample" (synthetic, no download) or "oxford-iiit-pet" (downloaded once by torchvision, 800 MB).
        split: For evaluation, the one split that must have images ("all": any split); None for training, which needs all.
        corrections: What is to be left out, or to have another label than its folder's.

    Returns:
        The dataset. Its `source` opens it again: a folder's is the absolute path.

    Raises:
        InvalidData: The dataset is missing, cannot be downloaded, has too few classes or images, or not those that are to be
            corrected.
    """
    if data == SAMPLE:
        return replace(read_folder(synthetic.make(cache_dir() / "sample"), corrections=corrections), source=SAMPLE)
    if data == PETS:
        return load_pets(cache_dir(), corrections)
    return read_folder(Path(data).expanduser().resolve(), split, corrections)


def load_pets(root: Path, corrections: Corrections = NO_CORRECTIONS) -> Dataset:
    """List the Oxford-IIIT Pet dataset (Parkhi et al., "Cats and Dogs", CVPR 2012), with torchvision's own class.

    Args:
        root: Folder that contains `oxford-iiit-pet/`, or that it is downloaded to.
        corrections: As for `load_dataset`; paths are relative to `oxford-iiit-pet/`.

    Returns:
        The dataset with classes cat and dog: test is the original "test", val is taken out of "trainval" by digest.

    Raises:
        InvalidData: The dataset is missing and cannot be downloaded.
    """
    from torchvision.datasets import OxfordIIITPet

    labelled: dict[str, list[tuple[Path, str]]] = {}
    for split, torchvision_split in (("train", "trainval"), ("test", "test")):
        try:
            pets = OxfordIIITPet(str(root), split=torchvision_split, target_types="binary-category", download=True)
        except (OSError, RuntimeError) as error:
            raise InvalidData(
                f"cannot download {PETS} to {root} ({first_line(error)}): check the network, put the dataset there, "
                "or give a folder or 'sample'"
            ) from None
        labelled[split] = internals.oxford_pets(pets)
    names = {name for files in labelled.values() for _, name in files}
    return assemble(PETS, corrections.apply(labelled, root / PETS), names)
