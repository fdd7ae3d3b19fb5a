"""The parameters of a training run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from catdog_pyfunc.errors import InvalidSetting
from catdog_pyfunc.pipeline.data import catalog
from catdog_pyfunc.pipeline.registry import versions
from catdog_pyfunc.pipeline.spark import LOCAL, check_engine

AUTO, IMAGENET, NONE = "auto", "imagenet", "none"
_SAMPLE_SIZE = 96  # shows all there is in the synthetic images, and trains five times as fast as 224
_SCRATCH_EPOCHS = 8
_SCRATCH_LEARNING_RATE, _PRETRAINED_LEARNING_RATE = 3e-3, 1e-4
_MINIMUM = {"image_size": 0, "finetune_epochs": -1, "learning_rate": 0.0, "batch_size": 2, "seed": 0}
_MIN_IMAGE_SIZE = 32


@dataclass(frozen=True)
class TrainingConfig:
    """Parameters of a training run, checked when they are created.

    Attributes:
        data: Folder with one sub-folder per class, 'sample' (synthetic, no download) or 'oxford-iiit-pet' (800 MB download).
        exclude: CSV, parquet or Label Studio's JSON with the paths (relative to `data`) of images to leave out.
        relabel: The same, with suggestions: those images that have one get it as their label.
        weights: 'imagenet', path to a state_dict, 'none', or 'auto': imagenet for a folder of photos, none for the sample.
        backbone: Classification model of torchvision.models that ends in globally pooled features, or timm/<name>.
        image_size: Side of the network's square input in pixels; 0 for the backbone's own, or 96 for the sample.
        horizontal_flip: Train the head on mirrored images as well.
        finetune_epochs: Epochs of training the whole network; -1 for 0 with pretrained weights and 8 without.
        learning_rate: Peak learning rate of fine-tuning; 0 for 1e-4 with pretrained weights and 3e-3 without.
        batch_size: Images per fine-tuning step, of all processes together.
        quantize: Serve an int8 graph if it is at least 1.25 times as fast on this machine, and not worse on val.
        seed: Seed of everything random.
        resume: Continue an interrupted fine-tuning from its last epoch.
        engine: Where images are embedded: local (all cores of this machine), spark (the active session, or Spark on this
            machine), or the URL of a Spark master.
        registered_model: Registered model that gets the new version; 'none' for no registration.

    Raises:
        InvalidSetting: A parameter is out of range, or there would be nothing to train: random weights and no epochs.

    Example:
        >>> TrainingConfig(data="photos", weights="imagenet", finetune_epochs=3).title()
        'lr 0.0001 × 3 · mobilenet_v2 · photos'
    """

    data: str = catalog.SAMPLE
    exclude: str = ""
    relabel: str = ""
    weights: str = AUTO
    backbone: str = "mobilenet_v2"
    image_size: int = 0
    horizontal_flip: bool = False
    finetune_epochs: int = -1
    learning_rate: float = 0.0
    batch_size: int = 16
    quantize: bool = False
    seed: int = 0
    resume: bool = False
    engine: str = LOCAL
    registered_model: str = versions.NAME

    def __post_init__(self) -> None:
        check_engine(self.engine)
        for name, minimum in _MINIMUM.items():
            value = getattr(self, name)
            if not value >= minimum:  # so that NaN fails, too
                raise InvalidSetting(f"{name} is {value}; give at least {minimum}")
        if 0 < self.image_size < _MIN_IMAGE_SIZE:
            raise InvalidSetting(
                f"image_size is {self.image_size}; give 0 (the backbone's own) or at least {_MIN_IMAGE_SIZE}"
            )
        if self._weights() == NONE and self.finetune_epochs == 0:
            default = " (the default for the sample)" if self.weights == AUTO else ""
            raise InvalidSetting(
                f"finetune_epochs is 0 and weights are 'none'{default}, so nothing would be trained; give at least 1 epoch, "
                "or pretrained weights"
            )

    def resolved(self) -> TrainingConfig:
        """Replace "auto", 0, -1 and "none" by what they stand for; `image_size` stays 0 if the backbone decides it."""
        sample = self.data == catalog.SAMPLE
        scratch = self._weights() == NONE
        epochs = _SCRATCH_EPOCHS if scratch else 0
        return replace(
            self,
            weights=self._weights(),
            image_size=self.image_size or (_SAMPLE_SIZE if sample else 0),
            finetune_epochs=epochs if self.finetune_epochs < 0 else self.finetune_epochs,
            learning_rate=self.learning_rate or (_SCRATCH_LEARNING_RATE if scratch else _PRETRAINED_LEARNING_RATE),
            registered_model="" if self.registered_model.lower() == NONE else self.registered_model,
        )

    def check_processes(self, count: int) -> None:
        """Check that this many processes of `torchrun` can share the fine-tuning equally.

        Args:
            count: How many there are.

        Raises:
            InvalidSetting: They cannot.
        """
        if count > 1 and self.resolved().finetune_epochs == 0:
            raise InvalidSetting(
                f"finetune_epochs is 0, and fine-tuning is all that the {count} processes of torchrun could share: "
                "give at least 1 epoch, or train without torchrun"
            )
        if count > 1 and (self.batch_size % count or self.batch_size < 2 * count):
            raise InvalidSetting(
                f"batch_size is {self.batch_size} for {count} processes together; give a multiple of {count}, "
                f"and at least {2 * count}, as batch norm needs two images in each"
            )

    def title(self) -> str:
        """Name for the run: what varies most comes first, because lists of runs show some twenty characters."""
        config = self.resolved()
        how = f"lr {config.learning_rate:g} × {config.finetune_epochs}" if config.finetune_epochs else "head"
        parts = [how, config.backbone, Path(config.data).resolve().name]
        parts += [f"seed {self.seed}"] if self.seed else []
        return " · ".join([*parts, "horizontal flip"] if self.horizontal_flip else parts)

    def _weights(self) -> str:
        if self.weights != AUTO:
            return self.weights
        return NONE if self.data == catalog.SAMPLE else IMAGENET
