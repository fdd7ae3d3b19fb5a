"""Training of the whole network: augmentation, cosine schedule, mixed precision on CUDA, the best epoch on val kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from torchvision.transforms import v2

from catdog_pyfunc.cpu import available_cores
from catdog_pyfunc.errors import InvalidSetting
from catdog_pyfunc.network import Network
from catdog_pyfunc.pipeline.console import log, progress
from catdog_pyfunc.pipeline.data.dataset import Example
from catdog_pyfunc.pipeline.training.linear_head import EpochMetrics
from catdog_pyfunc.preprocessing import DEFAULT_LIMITS, Preprocess, decode, preprocess

_WARM_UP = 0.2  # of all steps, in which the learning rate rises


@dataclass(frozen=True)
class FinetuneConfig:
    """How to fine-tune.

    Attributes:
        epochs: How often each picture is seen.
        learning_rate: The highest, reached after a fifth of all steps; falls along a cosine from there.
        batch_size: Pictures a step.
        seed: Of order and augmentation.
        weight_decay: Of AdamW.
    """

    epochs: int
    learning_rate: float
    batch_size: int
    seed: int
    weight_decay: float = 0.05


class _Pictures(TorchDataset[tuple[Tensor, int]]):
    """Decoded and prepared pictures: random crop, mirror and light for training, `preprocess` for measuring."""

    def __init__(self, examples: Sequence[Example], spec: Preprocess, *, augment: bool) -> None:
        self.examples = examples
        self.spec = spec
        self.augment: Callable[[Any], Tensor] | None = None
        if augment:
            crop = v2.RandomResizedCrop(spec.size, scale=(0.7, 1.0), ratio=(0.85, 1.18))
            light = v2.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2)
            self.augment = v2.Compose([v2.PILToTensor(), crop, v2.RandomHorizontalFlip(), light])

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
    plan: FinetuneConfig,
    *,
    checkpoint: Path,
    resume: bool = False,
    on_epoch: Callable[[int, EpochMetrics], None] = lambda epoch, scores: None,
) -> int:
    """Train the whole network from where it stands; it is left with the weights of its best epoch on val, or those it had.

    Args:
        network: Changed in place; on CPU afterwards.
        train: Pictures to learn from.
        val: Pictures that choose the epoch, by loss.
        spec: How pictures are prepared.
        plan: How long and how fast.
        checkpoint: Written after every epoch, for `resume`.
        resume: Go on from `checkpoint` if there is one; it must be of the same plan and data.
        on_epoch: Told the scores of each epoch, counted from 1.

    Returns:
        The epoch that was kept; 0 if none was better than the start.

    Raises:
        InvalidSetting: `checkpoint` is of another plan or other data.
    """
    trainer = _Trainer(network, train, val, spec, plan)
    if resume and checkpoint.is_file():
        trainer.restore(checkpoint)
        log(f"resuming after epoch {trainer.epoch} of {plan.epochs} from {checkpoint}")
    else:
        trainer.validate()  # where it starts from may be the best there is
    while trainer.epoch < plan.epochs:
        scores = trainer.run_epoch()
        trainer.store(checkpoint)
        on_epoch(trainer.epoch, scores)
    network.load_state_dict(trainer.best_state)
    network.cpu().eval()
    checkpoint.unlink(missing_ok=True)
    return trainer.best_epoch


class _Trainer:
    def __init__(
        self, network: Network, train: Sequence[Example], val: Sequence[Example], spec: Preprocess, plan: FinetuneConfig
    ) -> None:
        self.plan, self.epoch, self.best_epoch, self.best_loss = plan, 0, 0, float("inf")
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.network = network.requires_grad_(True).to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.best_state: dict[str, Tensor] = {}
        self.mean = 255 * torch.tensor(spec.mean, device=self.device).view(3, 1, 1)
        self.scale = 1 / (255 * torch.tensor(spec.std, device=self.device).view(3, 1, 1))
        self.order = torch.Generator().manual_seed(plan.seed)
        # On CPU every core is busy with the network: decoding in further processes would only get in its way.
        workers = available_cores() if self.device.type == "cuda" else 0
        self.train = DataLoader(
            _Pictures(train, spec, augment=True),
            plan.batch_size,
            shuffle=True,
            drop_last=len(train) > plan.batch_size,  # batch norm can't learn from a last batch of one
            generator=self.order,
            num_workers=workers,
        )
        self.val = DataLoader(_Pictures(val, spec, augment=False), 2 * plan.batch_size, num_workers=workers)
        self.optimizer = torch.optim.AdamW(network.parameters(), lr=plan.learning_rate, weight_decay=plan.weight_decay)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, plan.learning_rate, total_steps=plan.epochs * len(self.train), pct_start=_WARM_UP
        )
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.device.type == "cuda")
        self.identity = {**asdict(plan), "pictures": [example.digest for example in (*train, *val)], "spec": spec.to_dict()}

    def run_epoch(self) -> EpochMetrics:
        self.epoch += 1
        # Randomness depends on seed and epoch alone: a resumed run sees what an uninterrupted one would have seen.
        torch.manual_seed(self.plan.seed * 10_007 + self.epoch)
        self.order.manual_seed(self.plan.seed * 10_007 + self.epoch)
        self.network.train()
        batches = progress(self.train, f"epoch {self.epoch}/{self.plan.epochs}", len(self.train))
        train_loss, train_accuracy = self._mean(self._step(images, labels) for images, labels in batches)
        return EpochMetrics(train_loss, train_accuracy, *self.validate())

    def validate(self) -> tuple[float, float]:
        """Loss and accuracy on val; the weights are remembered if they are the best so far."""
        self.network.eval()
        with torch.inference_mode():
            loss, accuracy = self._mean(self._measure(images, labels)[1] for images, labels in self.val)
        if loss < self.best_loss:
            self.best_loss, self.best_epoch = loss, self.epoch
            self.best_state = {name: value.detach().cpu().clone() for name, value in self.network.state_dict().items()}
        return loss, accuracy

    def _measure(self, images: Tensor, labels: Tensor) -> tuple[Tensor, tuple[float, int, int]]:
        """(N, 3, H, W) uint8 → loss, and for the epoch's mean: summed loss, how many right, N."""
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

    @staticmethod
    def _mean(sums: Iterable[tuple[float, int, int]]) -> tuple[float, float]:
        loss, right, count = (float(sum(column)) for column in zip(*sums, strict=True))
        return loss / count, right / count

    def store(self, checkpoint: Path) -> None:
        """Write all that going on needs; a file half written never takes the last one's place."""
        scratch = checkpoint.with_suffix(".tmp")
        state = {
            "identity": self.identity,
            "counters": [self.epoch, self.best_epoch, self.best_loss],
            "network": self.network.state_dict(),
            "best": self.best_state,
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
        }
        torch.save(state, scratch)
        scratch.replace(checkpoint)

    def restore(self, checkpoint: Path) -> None:
        state = torch.load(checkpoint, map_location=self.device, weights_only=True)
        if state["identity"] != self.identity:
            raise InvalidSetting(f"checkpoint {checkpoint} is of another plan or other pictures: resume with the same ones")
        self.epoch, self.best_epoch, self.best_loss = state["counters"]
        self.network.load_state_dict(state["network"])
        self.best_state = state["best"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.scaler.load_state_dict(state["scaler"])
