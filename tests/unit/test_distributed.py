"""Fine-tuning in several processes, as far as one process can show it; the rest is in tests/integration/test_torchrun.py."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from catdog_pyfunc.errors import InvalidData, InvalidSetting
from catdog_pyfunc.pipeline.data.dataset import read_folder
from catdog_pyfunc.pipeline.training import distributed, finetuning
from catdog_pyfunc.pipeline.training.backbones import Backbone, load_backbone
from catdog_pyfunc.pipeline.training.distributed import Ranks


def untrained() -> Backbone:
    return load_backbone("shufflenet_v2_x0_5", "none", 2, seed=0, image_size=64)


def torchrun(monkeypatch: pytest.MonkeyPatch, **given: int) -> None:
    """The environment of the first of two processes, but for what is given."""
    usual = {"RANK": 0, "WORLD_SIZE": 2, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 2, "TORCHELASTIC_RESTART_COUNT": 0}
    for name, value in {"TORCHELASTIC_RUN_ID": "none", **usual, **given}.items():
        monkeypatch.setenv(name, str(value))


def test_without_torchrun_there_is_one_process_whatever_a_scheduler_has_set(monkeypatch: pytest.MonkeyPatch):
    torchrun(monkeypatch)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    with distributed.joined() as ranks:
        assert (ranks.rank, ranks.size) == (0, 1)


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch):
    torchrun(monkeypatch)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(InvalidSetting, match="2 processes on a machine with 1 GPUs; give --nproc-per-node 1"):
        distributed.joined().__enter__()


def test_processes_that_torchrun_has_restarted_are_refused(monkeypatch: pytest.MonkeyPatch):
    torchrun(monkeypatch, TORCHELASTIC_RESTART_COUNT=1)
    with pytest.raises(InvalidSetting, match="give --resume true to a new command, not --max-restarts"):
        distributed.joined().__enter__()


def test_a_machine_without_the_images_says_so(drawn: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    train, val = (read_folder(drawn).splits[split] for split in ("train", "val"))
    lost = [replace(example, path=tmp_path / "lost.jpg") for example in train]
    job = finetuning._job(untrained(), lost, val, finetuning.FinetuneConfig(1, 1e-3, 16, 0))
    monkeypatch.setattr(Ranks, "broadcast", lambda ranks: job)
    monkeypatch.setattr(finetuning, "joined", lambda: contextlib.nullcontext(Ranks(1, 2, torch.device("cpu"), 0)))
    with pytest.raises(InvalidData, match=r"lost\.jpg is not on .*: every machine needs the images at the same path"):
        finetuning.assist()


def test_batch_norm_is_shared_by_gpus_in_a_copy_with_the_same_weights():
    net = untrained().network
    assert Ranks(0, 2, torch.device("cpu"), 0).with_shared_batch_norm(net) is net
    shared = Ranks(0, 2, torch.device("cuda", 0), 0).with_shared_batch_norm(net)
    kinds = [[type(module) for module in each.modules()] for each in (net, shared)]
    assert kinds[0].count(torch.nn.BatchNorm2d) == kinds[1].count(torch.nn.SyncBatchNorm) > 0
    assert torch.nn.SyncBatchNorm not in kinds[0]
    images = torch.rand(2, 3, 64, 64)
    assert torch.allclose(net(images), shared(images), atol=1e-6)
    net.load_state_dict(shared.state_dict())
