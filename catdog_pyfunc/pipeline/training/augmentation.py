"""Images as fine-tuning reads them: augmented for training, or preprocessed as in serving."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset
from torchvision.transforms import InterpolationMode, v2

from catdog_pyfunc.pipeline.data.dataset import Example
from catdog_pyfunc.preprocessing import DEFAULT_LIMITS, Preprocess, decode, preprocess


def augmentation(spec: Preprocess) -> v2.Compose:
    """Random crop, mirroring and colour jitter: RGB image → (3, size, size) uint8, resampled as `spec` says."""
    crop = v2.RandomResizedCrop(
        spec.size, scale=(0.7, 1.0), ratio=(0.85, 1.18), interpolation=InterpolationMode(spec.interpolation)
    )
    jitter = v2.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2)
    return v2.Compose([v2.PILToTensor(), crop, v2.RandomHorizontalFlip(), jitter])


class LabelledImages(TorchDataset[tuple[Tensor, int]]):
    """Decoded images (3, size, size) uint8 with their labels: augmented for training, or preprocessed as in serving."""

    def __init__(self, examples: Sequence[Example], spec: Preprocess, *, augment: bool) -> None:
        """Prepare to read images.

        Args:
            examples: The images.
            spec: How they are preprocessed.
            augment: Whether to augment them.
        """
        self.examples = examples
        self.spec = spec
        self.augment: Callable[[Any], Tensor] | None = augmentation(spec) if augment else None

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        example = self.examples[index]
        content = example.path.read_bytes()
        if self.augment is None:
            return torch.from_numpy(preprocess(content, self.spec).copy()).permute(2, 0, 1), example.label
        return self.augment(decode(content, DEFAULT_LIMITS, least_side=self.spec.resize)), example.label
