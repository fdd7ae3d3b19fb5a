"""What `data=` may name: a folder, `sample`, or `oxford-iiit-pet`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from catdog_pyfunc import internals
from catdog_pyfunc.errors import InvalidData
from catdog_pyfunc.pipeline.cache import cache_dir
from catdog_pyfunc.pipeline.data import synthetic
from catdog_pyfunc.pipeline.data.dataset import Dataset, assemble, read_folder

SAMPLE, PETS = "sample", "oxford-iiit-pet"


def load_dataset(data: str, split: str | None = None) -> Dataset:
    """Find and list a data set.

    Args:
        data: A folder, "sample" (drawn, needs nothing) or "oxford-iiit-pet" (downloaded once by torchvision, 800 MB).
        split: For measuring, the only split ("all": any) that must hold pictures; None: all must, for training.

    Returns:
        The data set; its `source` names it so that it can be opened again, a folder by its absolute path.

    Raises:
        InvalidData: It isn't there, can't be downloaded, or can't be trained or measured on.
    """
    if data == SAMPLE:
        return replace(read_folder(synthetic.make(cache_dir() / "sample")), source=SAMPLE)
    if data == PETS:
        return open_pets(cache_dir())
    return read_folder(Path(data).expanduser().resolve(), split)


def open_pets(root: Path) -> Dataset:
    """Cats and dogs of the Oxford-IIIT Pet data set (Parkhi et al., "Cats and Dogs", CVPR 2012), by torchvision's own class.

    Args:
        root: Holds `oxford-iiit-pet/`, or gets it by a download.

    Returns:
        The data set with classes cat and dog: its "test" as it is, "val" taken out of its "trainval" by content digest.

    Raises:
        InvalidData: It isn't there and can't be downloaded.
    """
    from torchvision.datasets import OxfordIIITPet

    labelled: dict[str, list[tuple[Path, str]]] = {}
    for split, torchvision_split in (("train", "trainval"), ("test", "test")):
        try:
            pets = OxfordIIITPet(str(root), split=torchvision_split, target_types="binary-category", download=True)
        except (OSError, RuntimeError) as unavailable:
            raise InvalidData(
                f"{PETS} can't be downloaded to {root} ({unavailable}): check the network, put the data set there, "
                "or give a folder or 'sample'"
            ) from None
        labelled[split] = internals.oxford_pets(pets)
    return assemble(PETS, labelled, {name for files in labelled.values() for _, name in files})
