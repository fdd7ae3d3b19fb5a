"""What a training is called with."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from catdog_pyfunc.errors import InvalidSetting
from catdog_pyfunc.pipeline.data import catalog
from catdog_pyfunc.pipeline.registry import versions

AUTO, IMAGENET, NONE = "auto", "imagenet", "none"
_SAMPLE_SIZE = 96  # drawn pictures show all they have at this size, and train five times as fast as at 224
_SCRATCH_EPOCHS = 8
_SCRATCH_RATE, _PRETRAINED_RATE = 3e-3, 1e-4


@dataclass(frozen=True)
class TrainingConfig:
    """What the training is called with; every one makes the result.

    Attributes:
        data: A folder, "sample" or "oxford-iiit-pet".
        weights: "imagenet", a path, "none", or "auto": imagenet for photos, none for the sample.
        backbone: In `torchvision.models`.
        image_size: Side of the square that the network sees, pixels; 0 for the backbone's own (96 for the sample).
        horizontal_flip: Whether the head also learns from mirrored pictures.
        finetune_epochs: How long the whole network is trained; -1 for 0 with pretrained weights and 8 without.
        learning_rate: Of fine-tuning; 0 for 1e-4 with pretrained weights and 3e-3 without.
        batch_size: Of fine-tuning.
        seed: Of all that is random.
        resume: Go on with the fine-tuning that was interrupted.
        registered_model: The registered model that gets the new version; "" for none.
    """

    data: str = catalog.SAMPLE
    weights: str = AUTO
    backbone: str = "mobilenet_v2"
    image_size: int = 0
    horizontal_flip: bool = False
    finetune_epochs: int = -1
    learning_rate: float = 0.0
    batch_size: int = 16
    seed: int = 0
    resume: bool = False
    registered_model: str = versions.NAME

    def __post_init__(self) -> None:
        least = {"image_size": 0, "finetune_epochs": -1, "learning_rate": 0.0, "batch_size": 2, "seed": 0}
        for name, limit in least.items():
            if getattr(self, name) < limit:
                raise InvalidSetting(f"{name} is {getattr(self, name)}; give at least {limit}")
        if 0 < self.image_size < 32:
            raise InvalidSetting(f"image_size is {self.image_size}; give 0 (the backbone's own) or at least 32")

    def resolved(self) -> TrainingConfig:
        """What "auto", 0 and -1 stand for here, put in their places (an `image_size` that is the backbone's own stays 0)."""
        sample = self.data == catalog.SAMPLE
        weights = self.weights
        if weights == AUTO:
            weights = NONE if sample else IMAGENET
        epochs = self.finetune_epochs
        if epochs < 0:
            epochs = _SCRATCH_EPOCHS if weights == NONE else 0
        return replace(
            self,
            weights=weights,
            image_size=self.image_size or (_SAMPLE_SIZE if sample else 0),
            finetune_epochs=epochs,
            learning_rate=self.learning_rate or (_SCRATCH_RATE if weights == NONE else _PRETRAINED_RATE),
        )

    def title(self) -> str:
        """A run's name: what is most often varied first, as lists of runs show some twenty characters."""
        config = self.resolved()
        how = f"lr {config.learning_rate:g} × {config.finetune_epochs}" if config.finetune_epochs else "head"
        parts = [how, config.backbone, Path(config.data).resolve().name]
        parts += [f"seed {self.seed}"] if self.seed else []
        return " · ".join([*parts, "horizontal flip"] if self.horizontal_flip else parts)
