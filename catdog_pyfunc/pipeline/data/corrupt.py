"""Images that cannot be decoded, found before anything is trained or evaluated on them."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from catdog_pyfunc.cpu import available_cores
from catdog_pyfunc.errors import InvalidImage
from catdog_pyfunc.pipeline.console import progress
from catdog_pyfunc.pipeline.data.dataset import Example
from catdog_pyfunc.preprocessing import Pixels, Preprocess, preprocess


def read_image(example: Example, spec: Preprocess) -> Pixels | str:
    """Read and preprocess one image.

    Args:
        example: The image's file.
        spec: How to preprocess it.

    Returns:
        (size, size, 3) uint8, or what is wrong with the file.
    """
    try:
        return preprocess(example.path.read_bytes(), spec)
    except (InvalidImage, OSError) as error:
        return str(error)


def find_corrupt(examples: Sequence[Example], spec: Preprocess) -> dict[Path, str]:
    """Decode every image once, for data that is not embedded first.

    Args:
        examples: The images.
        spec: How they will be preprocessed.

    Returns:
        Corrupt file → what is wrong with it.
    """
    with ThreadPoolExecutor(available_cores()) as pool:
        checked = pool.map(lambda example: _error(read_image(example, spec)), examples)
        errors = list(progress(checked, "checking images", len(examples)))
    return {example.path: error for example, error in zip(examples, errors, strict=True) if error is not None}


def _error(outcome: Pixels | str) -> str | None:
    return outcome if isinstance(outcome, str) else None
