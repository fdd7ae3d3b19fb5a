"""A program for tests: fine-tunes small networks, in as many processes as start it, without anything random in an image.

`[torchrun …] -m tests.integration.finetune_worker DATA OUTPUT` writes what rank 0 got to OUTPUT/networks.pt, and the digests
of the training images that each rank read, in order, to OUTPUT/<rank>.json.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchvision.transforms import v2

from catdog_pyfunc.network import Network
from catdog_pyfunc.pipeline.data.dataset import read_folder
from catdog_pyfunc.pipeline.processes import rank_and_size
from catdog_pyfunc.pipeline.training import augmentation, distributed, finetuning
from catdog_pyfunc.pipeline.training.backbones import Backbone
from catdog_pyfunc.preprocessing import Preprocess, decode

SPEC = Preprocess(size=32, resize=36)
CONFIG = finetuning.FinetuneConfig(epochs=2, learning_rate=1e-2, batch_size=12, seed=0)
WITHOUT_BATCH_NORM, WITH_BATCH_NORM = "without batch norm", "with batch norm"


def build_network(name: str, n_classes: int, *_: object, **__: object) -> Network:
    """Random weights that differ between ranks: rank 0's must become everybody's."""
    torch.manual_seed(rank_and_size()[0])
    normalise = [nn.BatchNorm2d(8)] if name == WITH_BATCH_NORM else []
    features = nn.Sequential(nn.Conv2d(3, 8, 4, stride=4), *normalise, nn.ReLU(), nn.Conv2d(8, 16, 3), nn.ReLU())
    return Network(features, 16, n_classes)


def main(data: Path, output: Path) -> None:
    read: list[str] = []

    def decode_and_note(content: bytes, *args: Any, **options: Any) -> Any:
        read.append(hashlib.sha256(content).hexdigest())
        return decode(content, *args, **options)

    centre = v2.Compose([v2.PILToTensor(), v2.CenterCrop(36), v2.Resize([32, 32])])
    augmentation.augmentation = lambda spec: centre
    augmentation.decode = decode_and_note
    finetuning.build_network = build_network
    with distributed.joined() as ranks:
        finetuning.joined = lambda: contextlib.nullcontext(ranks)  # type: ignore[assignment]
        results = {name: finetune(name, data, output) for name in (WITHOUT_BATCH_NORM, WITH_BATCH_NORM)}
    (output / f"{ranks.rank}.json").write_text(json.dumps(read))
    if ranks.rank == 0:
        torch.save(results, output / "networks.pt")


def finetune(name: str, data: Path, output: Path) -> dict[str, Any]:
    if rank_and_size()[0]:
        finetuning.assist()
        return {}
    losses: list[float] = []
    splits, backbone = read_folder(data).splits, Backbone(name, build_network(name, 2), "none", "", SPEC)
    finetuning.finetune(
        *(backbone, splits["train"], splits["val"], CONFIG),
        checkpoint=output / "checkpoint.pt",
        on_epoch=lambda epoch, metrics: losses.append(metrics.val_loss),
    )
    return {"losses": losses, "weights": backbone.network.state_dict()}


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
