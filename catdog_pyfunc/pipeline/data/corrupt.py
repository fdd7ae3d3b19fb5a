"""Pictures that can't be decoded, found before anything learns from them or is measured on them."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from catdog_pyfunc.cpu import available_cores
from catdog_pyfunc.errors import InvalidImage
from catdog_pyfunc.pipeline.console import progress
from catdog_pyfunc.pipeline.data.dataset import Example
from catdog_pyfunc.preprocessing import Preprocess, preprocess


def find_corrupt(examples: Sequence[Example], spec: Preprocess) -> dict[Path, str]:
    """Decode every picture once, for data that isn't embedded first.

    Args:
        examples: The pictures.
        spec: How they will be prepared.

    Returns:
        File → what is wrong with it.
    """

    def reason(example: Example) -> str | None:
        try:
            preprocess(example.path.read_bytes(), spec)
        except (InvalidImage, OSError) as wrong:
            return str(wrong)
        return None

    with ThreadPoolExecutor(available_cores()) as pool:
        reasons = list(progress(pool.map(reason, examples), "checking pictures", len(examples)))
    return {example.path: wrong for example, wrong in zip(examples, reasons, strict=True) if wrong}
