"""Fine-tuning of the whole network, in one process or several: cosine schedule, mixed precision on CUDA, best epoch kept."""

from __future__ import annotations

import io
import json
import signal
import socket
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, DistributedSampler

from catdog_pyfunc.errors import InvalidData
from catdog_pyfunc.network import Network, build_network
from catdog_pyfunc.pipeline.console import log, progress
from catdog_pyfunc.pipeline.data.dataset import Example
from catdog_pyfunc.pipeline.training.augmentation import LabelledImages
from catdog_pyfunc.pipeline.training.backbones import Backbone
from catdog_pyfunc.pipeline.training.distributed import Ranks, joined
from catdog_pyfunc.pipeline.training.linear_head import EpochMetrics
from catdog_pyfunc.preprocessing import Preprocess

_WARM_UP = 0.2  # fraction of all steps in which the learning rate rises


@dataclass(frozen=True)
class FinetuneConfig:
    """Parameters of fine-tuning.

    Attributes:
        epochs: Number of passes over the training images.
        learning_rate: Peak learning rate, reached after a fifth of all steps; it falls along a cosine from there.
        batch_size: Images per step, of all ranks together.
        seed: Seed of order and augmentation.
        weight_decay: Weight decay of AdamW.
    """

    epochs: int
    learning_rate: float
    batch_size: int
    seed: int
    weight_decay: float = 0.05


def finetune(
    backbone: Backbone,
    train: Sequence[Example],
    val: Sequence[Example],
    config: FinetuneConfig,
    *,
    checkpoint: Path,
    resume: bool = False,
    on_epoch: Callable[[int, EpochMetrics], None] = lambda epoch, metrics: None,
) -> int:
    """Train the whole network and leave it with the weights of its best epoch on val, or of the start if none was better.

    Under torchrun this is called in rank 0, and `assist` in the others.

    Args:
        backbone: Its network is changed in place; on CPU and in evaluation mode afterwards.
        train: Images to train on.
        val: Images that select the epoch, by loss.
        config: How long and how fast to train.
        checkpoint: File written after every epoch and removed at the end. Its name must identify everything else that is
            passed here, because it is resumed without a check.
        resume: Continue from `checkpoint` if it exists.
        on_epoch: Called with each epoch's number, from 1, and metrics.

    Returns:
        The epoch that was kept; 0 for the start.
    """
    with joined() as ranks:
        if ranks.size > 1:
            ranks.broadcast(_job(backbone, train, val, config))
        trainer = _Trainer(backbone.network, train, val, backbone.preprocess, config, ranks)
        if resume and checkpoint.is_file():
            with checkpoint.open("rb") as file:
                trainer.restore(file)
            log(f"resuming after epoch {trainer.epoch} of {config.epochs} from {checkpoint}")
        elif resume:
            log(f"nothing to resume: no fine-tuning of these images with these parameters was interrupted ({checkpoint})")
        for metrics in trainer.epochs():
            _replace(checkpoint, trainer)
            on_epoch(trainer.epoch, metrics)
    backbone.network.load_state_dict(trainer.best_state)
    backbone.network.cpu().eval()
    checkpoint.unlink(missing_ok=True)
    return trainer.best_epoch


def assist() -> None:
    """Take part in the fine-tuning of rank 0, from which this process learns everything but the content of the images.

    Raises:
        InvalidData: The images are not on this machine.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # torch waits for rank 0 without looking at Python's signals
    with joined() as ranks:
        job = json.loads(ranks.broadcast())
        train, val = ([Example(Path(path), label, "") for path, label in job[split]] for split in ("train", "val"))
        if not train[0].path.is_file():
            raise InvalidData(
                f"{train[0].path} is not on {socket.gethostname()}: every machine needs the images at the same path"
            )
        spec, config = Preprocess.from_dict(job["preprocess"]), FinetuneConfig(**job["config"])
        network = build_network(job["backbone"], job["classes"], spec.size, pretrained_head=job["pretrained_head"])
        for _ in _Trainer(network, train, val, spec, config, ranks).epochs():
            pass


def _job(backbone: Backbone, train: Sequence[Example], val: Sequence[Example], config: FinetuneConfig) -> bytes:
    """Describe a fine-tuning to the other ranks, as JSON; its weights follow in `_Trainer.epochs`."""
    job = {
        "backbone": backbone.name,
        "classes": backbone.network.head.out_features,
        "pretrained_head": backbone.network.pretrained_head is not None,
        "preprocess": backbone.preprocess.to_dict(),
        "config": asdict(config),
        "train": [(str(example.path.absolute()), example.label) for example in train],
        "val": [(str(example.path.absolute()), example.label) for example in val],
    }
    return json.dumps(job).encode()


def _replace(checkpoint: Path, trainer: _Trainer) -> None:
    """Write a checkpoint; the previous one stays until the new one is complete."""
    with tempfile.NamedTemporaryFile(dir=checkpoint.parent, prefix=f".{checkpoint.name}-", delete=False) as scratch:
        try:
            trainer.store(scratch)
            scratch.close()
            Path(scratch.name).replace(checkpoint)
        except BaseException:
            Path(scratch.name).unlink(missing_ok=True)
            raise


class _Trainer:
    """Network, optimiser, schedule and data loaders of one fine-tuning in one rank, and the best weights so far."""

    def __init__(
        self,
        network: Network,
        train: Sequence[Example],
        val: Sequence[Example],
        spec: Preprocess,
        config: FinetuneConfig,
        ranks: Ranks,
    ) -> None:
        self.config, self.ranks, self.device = config, ranks, ranks.device
        self.epoch, self.best_epoch, self.best_loss = 0, 0, float("inf")
        shared = ranks.with_shared_batch_norm(network.requires_grad_(True))
        self.network: nn.Module = shared.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.parallel = ranks.with_shared_gradients(self.network)
        self.best_state: dict[str, Tensor] = {}
        self.mean = 255 * torch.tensor(spec.mean, device=self.device).view(3, 1, 1)
        self.scale = 1 / (255 * torch.tensor(spec.std, device=self.device).view(3, 1, 1))
        drop_last = len(train) > config.batch_size  # batch norm cannot train on a last batch of one image
        images = LabelledImages(train, spec, augment=True)
        # Each step's batches make up the batch that a single process would have.
        self.sampler: DistributedSampler[int] = DistributedSampler(
            images, ranks.size, ranks.rank, seed=config.seed * 10_007, drop_last=drop_last
        )
        self.train = DataLoader(
            images, config.batch_size // ranks.size, sampler=self.sampler, drop_last=drop_last, num_workers=ranks.workers
        )
        share = LabelledImages(val[ranks.rank :: ranks.size], spec, augment=False)
        self.val = DataLoader(share, 2 * config.batch_size, num_workers=ranks.workers)
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, config.learning_rate, total_steps=config.epochs * len(self.train), pct_start=_WARM_UP
        )
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.device.type == "cuda")

    def epochs(self) -> Iterator[EpochMetrics]:
        """Run every epoch that is left, in step with the other ranks, from the state that rank 0 is in."""
        if self.ranks.size > 1:
            state = io.BytesIO()
            self.store(state)
            self.restore(io.BytesIO(self.ranks.broadcast(state.getvalue())))  # rank 0's
        if self.epoch == 0:
            self.validate()  # the start may be better than every epoch
        while self.epoch < self.config.epochs:
            yield self.run_epoch()

    def run_epoch(self) -> EpochMetrics:
        """Train on every image once, then validate."""
        self.epoch += 1
        # Seeded by epoch, so that a resumed training draws what an uninterrupted one would have drawn.
        torch.manual_seed((self.config.seed * 10_007 + self.epoch) * self.ranks.size + self.ranks.rank)
        self.sampler.set_epoch(self.epoch)
        self.network.train()
        batches: Iterable[tuple[Tensor, Tensor]] = self.train
        if self.ranks.rank == 0:
            batches = progress(batches, f"epoch {self.epoch}/{self.config.epochs}", len(self.train))
        train_loss, train_accuracy = self._average(self._step(images, labels) for images, labels in batches)
        self.ranks.synchronise(self.network.buffers())  # batch norm's running averages, as each rank's last batch left them
        return EpochMetrics(train_loss, train_accuracy, *self.validate())

    def validate(self) -> tuple[float, float]:
        """Measure loss and accuracy on val; remember the weights if they are the best so far."""
        self.network.eval()
        with torch.inference_mode():
            loss, accuracy = self._average(self._measure(self.network, *batch)[1] for batch in self.val)
        if loss < self.best_loss:
            self.best_loss, self.best_epoch = loss, self.epoch
            self.best_state = {name: value.detach().cpu().clone() for name, value in self.network.state_dict().items()}
        return loss, accuracy

    def _measure(self, network: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, tuple[float, int, int]]:
        """(N, 3, H, W) uint8 → the mean loss to train on, and the batch's summed loss, number of correct images and N."""
        batch = ((images.to(self.device).float() - self.mean) * self.scale).contiguous(memory_format=torch.channels_last)
        labels = labels.to(self.device)
        with torch.autocast(self.device.type, torch.float16, enabled=self.device.type == "cuda"):
            logits = network(batch)
        loss = functional.cross_entropy(logits.float(), labels)
        return loss, (loss.item() * len(labels), int((logits.argmax(1) == labels).sum()), len(labels))

    def _step(self, images: Tensor, labels: Tensor) -> tuple[float, int, int]:
        self.optimizer.zero_grad()
        loss, sums = self._measure(self.parallel, images, labels)
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.network.parameters(), 5.0)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.schedule.step()
        return sums

    def _average(self, sums: Iterable[tuple[float, int, int]]) -> tuple[float, float]:
        """Summed loss, number of correct images and number of images per batch → all ranks' mean loss and accuracy."""
        columns = zip((0.0, 0, 0), *sums, strict=True)  # a rank may have no image of a small val
        loss, correct, count = self.ranks.sum([float(sum(column)) for column in columns])
        return loss / count, correct / count

    def store(self, file: IO[bytes]) -> None:
        """Write everything that `restore` needs."""
        state = {
            "counters": [self.epoch, self.best_epoch, self.best_loss],
            "network": self.network.state_dict(),
            "best": self.best_state,
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
        }
        torch.save(state, file)

    def restore(self, file: IO[bytes]) -> None:
        """Continue where `store` left off."""
        state = torch.load(file, map_location=self.device, weights_only=True)
        self.epoch, self.best_epoch, self.best_loss = state["counters"]
        self.network.load_state_dict(state["network"])
        self.best_state = state["best"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.scaler.load_state_dict(state["scaler"])
