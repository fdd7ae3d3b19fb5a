"""Fine-tuning of the whole network: augmentation, cosine schedule, mixed precision on CUDA, selection of the best epoch."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from torchvision.transforms import InterpolationMode, v2

from catdog_pyfunc.cpu import available_cores
from catdog_pyfunc.network import Network
from catdog_pyfunc.pipeline.console import log, progress
from catdog_pyfunc.pipeline.data.dataset import Example
from catdog_pyfunc.pipeline.training.linear_head import EpochMetrics
from catdog_pyfunc.preprocessing import DEFAULT_LIMITS, Preprocess, decode, preprocess

_WARM_UP = 0.2  # fraction of all steps in which the learning rate rises


@dataclass(frozen=True)
class FinetuneConfig:
    """Parameters of fine-tuning.

    Attributes:
        epochs: Number of passes over the training images.
        learning_rate: Peak learning rate, reached after a fifth of all steps; it falls along a cosine from there.
        batch_size: Images per step.
        seed: Seed of order and augmentation.
        weight_decay: Weight decay of AdamW.
    """

    epochs: int
    learning_rate: float
    batch_size: int
    seed: int
    weight_decay: float = 0.05


def augmentation(spec: Preprocess) -> v2.Compose:
    """Random crop, mirroring and colour jitter: RGB image → (3, size, size) uint8, resampled as `spec` says."""
    crop = v2.RandomResizedCrop(
        spec.size, scale=(0.7, 1.0), ratio=(0.85, 1.18), interpolation=InterpolationMode(spec.interpolation)
    )
    jitter = v2.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2)
    return v2.Compose([v2.PILToTensor(), crop, v2.RandomHorizontalFlip(), jitter])


class _Images(TorchDataset[tuple[Tensor, int]]):
    """Decoded images (3, size, size) uint8 with their labels: augmented for training, or preprocessed as in serving."""

    def __init__(self, examples: Sequence[Example], spec: Preprocess, *, augment: bool) -> None:
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


def finetune(
    network: Network,
    train: Sequence[Example],
    val: Sequence[Example],
    spec: Preprocess,
    config: FinetuneConfig,
    *,
    checkpoint: Path,
    resume: bool = False,
    on_epoch: Callable[[int, EpochMetrics], None] = lambda epoch, metrics: None,
) -> int:
    """Train the whole network and leave it with the weights of its best epoch on val, or of the start if none was better.

    Args:
        network: Changed in place; on CPU and in evaluation mode afterwards.
        train: Images to train on.
        val: Images that select the epoch, by loss.
        spec: How images are preprocessed.
        config: How long and how fast to train.
        checkpoint: File written after every epoch and removed at the end. Its name must identify everything else that is
            passed here, because it is resumed without a check.
        resume: Continue from `checkpoint` if it exists.
        on_epoch: Called with each epoch's number, from 1, and metrics.

    Returns:
        The epoch that was kept; 0 for the start.
    """
    trainer = _Trainer(network, train, val, spec, config)
    if resume and checkpoint.is_file():
        trainer.restore(checkpoint)
        log(f"resuming after epoch {trainer.epoch} of {config.epochs} from {checkpoint}")
    else:
        if resume:
            log(f"nothing to resume: no fine-tuning of these images with these parameters was interrupted ({checkpoint})")
        trainer.validate()  # the start may be better than every epoch
    while trainer.epoch < config.epochs:
        metrics = trainer.run_epoch()
        trainer.store(checkpoint)
        on_epoch(trainer.epoch, metrics)
    network.load_state_dict(trainer.best_state)
    network.cpu().eval()
    checkpoint.unlink(missing_ok=True)
    return trainer.best_epoch


class _Trainer:
    """Network, optimiser, schedule and data loaders of one fine-tuning, and the best weights so far."""

    def __init__(
        self, network: Network, train: Sequence[Example], val: Sequence[Example], spec: Preprocess, config: FinetuneConfig
    ) -> None:
        self.config, self.epoch, self.best_epoch, self.best_loss = config, 0, 0, float("inf")
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.network = network.requires_grad_(True).to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.best_state: dict[str, Tensor] = {}
        self.mean = 255 * torch.tensor(spec.mean, device=self.device).view(3, 1, 1)
        self.scale = 1 / (255 * torch.tensor(spec.std, device=self.device).view(3, 1, 1))
        self.order = torch.Generator().manual_seed(config.seed)
        # On CPU the network keeps every core busy: decoding in further processes would only get in its way.
        workers = available_cores() if self.device.type == "cuda" else 0
        self.train = DataLoader(
            _Images(train, spec, augment=True),
            config.batch_size,
            shuffle=True,
            drop_last=len(train) > config.batch_size,  # batch norm cannot train on a last batch of one image
            generator=self.order,
            num_workers=workers,
        )
        self.val = DataLoader(_Images(val, spec, augment=False), 2 * config.batch_size, num_workers=workers)
        self.optimizer = torch.optim.AdamW(network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, config.learning_rate, total_steps=config.epochs * len(self.train), pct_start=_WARM_UP
        )
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.device.type == "cuda")

    def run_epoch(self) -> EpochMetrics:
        """Train on every image once, then validate."""
        self.epoch += 1
        # Seeded by epoch, so that a resumed training draws what an uninterrupted one would have drawn.
        torch.manual_seed(self.config.seed * 10_007 + self.epoch)
        self.order.manual_seed(self.config.seed * 10_007 + self.epoch)
        self.network.train()
        batches = progress(self.train, f"epoch {self.epoch}/{self.config.epochs}", len(self.train))
        train_loss, train_accuracy = _average(self._step(images, labels) for images, labels in batches)
        return EpochMetrics(train_loss, train_accuracy, *self.validate())

    def validate(self) -> tuple[float, float]:
        """Measure loss and accuracy on val; remember the weights if they are the best so far."""
        self.network.eval()
        with torch.inference_mode():
            loss, accuracy = _average(self._measure(images, labels)[1] for images, labels in self.val)
        if loss < self.best_loss:
            self.best_loss, self.best_epoch = loss, self.epoch
            self.best_state = {name: value.detach().cpu().clone() for name, value in self.network.state_dict().items()}
        return loss, accuracy

    def _measure(self, images: Tensor, labels: Tensor) -> tuple[Tensor, tuple[float, int, int]]:
        """(N, 3, H, W) uint8 → the mean loss to train on, and the batch's summed loss, number of correct images and N."""
        batch = ((images.to(self.device).float() - self.mean) * self.scale).contiguous(memory_format=torch.channels_last)
        labels = labels.to(self.device)
        with torch.autocast(self.device.type, torch.float16, enabled=self.device.type == "cuda"):
            logits = self.network(batch)
        loss = functional.cross_entropy(logits.float(), labels)
        return loss, (loss.item() * len(labels), int((logits.argmax(1) == labels).sum()), len(labels))

    def _step(self, images: Tensor, labels: Tensor) -> tuple[float, int, int]:
        self.optimizer.zero_grad()
        loss, sums = self._measure(images, labels)
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.network.parameters(), 5.0)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.schedule.step()
        return sums

    def store(self, checkpoint: Path) -> None:
        """Write everything that `restore` needs; the previous checkpoint stays until the new one is complete."""
        state = {
            "counters": [self.epoch, self.best_epoch, self.best_loss],
            "network": self.network.state_dict(),
            "best": self.best_state,
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
        }
        with tempfile.NamedTemporaryFile(dir=checkpoint.parent, prefix=f".{checkpoint.name}-", delete=False) as scratch:
            try:
                torch.save(state, scratch)
                scratch.close()
                Path(scratch.name).replace(checkpoint)
            except BaseException:
                Path(scratch.name).unlink(missing_ok=True)
                raise

    def restore(self, checkpoint: Path) -> None:
        """Continue where `store` left off."""
        state = torch.load(checkpoint, map_location=self.device, weights_only=True)
        self.epoch, self.best_epoch, self.best_loss = state["counters"]
        self.network.load_state_dict(state["network"])
        self.best_state = state["best"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.scaler.load_state_dict(state["scaler"])


def _average(sums: Iterable[tuple[float, int, int]]) -> tuple[float, float]:
    """Summed loss, number of correct images and number of images per batch → mean loss and accuracy."""
    loss, correct, count = (float(sum(column)) for column in zip(*sums, strict=True))
    return loss / count, correct / count
