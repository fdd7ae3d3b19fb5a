"""The processes that `torchrun` starts, of which each is a rank: which one this is, and what they exchange.

Rank 0 trains as a single process does; the other ranks only take part in its fine-tuning.
"""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from catdog_pyfunc.cpu import available_cores
from catdog_pyfunc.errors import InvalidSetting
from catdog_pyfunc.pipeline.processes import rank_and_size
from catdog_pyfunc.timm_backbone import TimmFeatures

_WAIT = timedelta(days=2)  # until rank 0 has embedded the images and fitted the head
_STEP = timedelta(minutes=30)  # until the slowest rank has done its step, and rank 0 has stored and logged an epoch


@dataclass(frozen=True)
class Ranks:
    """This process among the ranks that fine-tune together; their collective calls, which every rank must make.

    Attributes:
        rank: Number of this process; 0 is the one that stores, logs and goes on afterwards.
        size: Number of processes; 1 without torchrun.
        device: What this process computes on.
        workers: Number of processes that decode images for this one.
        group: What the ranks communicate through; None if there is only one.
    """

    rank: int
    size: int
    device: torch.device
    workers: int
    group: distributed.ProcessGroup | None = None

    def broadcast(self, content: bytes = b"") -> bytes:
        """Return rank 0's `content` in every rank, whatever the others pass. Not for a single rank."""
        length = torch.tensor(len(content))
        distributed.broadcast(length, 0)
        data = torch.frombuffer(bytearray(content if self.rank == 0 else int(length)), dtype=torch.uint8)
        distributed.broadcast(data, 0)
        return data.numpy().tobytes()

    def sum(self, values: Sequence[float]) -> list[float]:
        """Add up each of some numbers over all ranks."""
        total = torch.tensor(values, dtype=torch.float64)
        if self.size > 1:
            distributed.all_reduce(total, group=self.group)
        return total.tolist()

    def synchronise(self, tensors: Iterable[Tensor]) -> None:
        """Give each tensor rank 0's values, in place."""
        for tensor in tensors if self.size > 1 else ():
            distributed.broadcast(tensor, 0, group=self.group)

    def with_shared_batch_norm(self, network: nn.Module) -> nn.Module:
        """On several GPUs, return a copy whose batch norm computes statistics over the images of all ranks."""
        if self.size == 1 or self.device.type == "cpu":  # torch has no such batch norm for CPUs
            return network
        if any(isinstance(module, TimmFeatures) for module in network.modules()):
            from timm.layers import convert_sync_batchnorm as convert  # keeps the activation that timm's batch norm contains
        else:
            convert = nn.SyncBatchNorm.convert_sync_batchnorm
        shared: nn.Module = convert(copy.deepcopy(network), self.group)
        return shared

    def with_shared_gradients(self, network: nn.Module) -> nn.Module:
        """Wrap a network so that its gradients are means over all ranks. Before each step, buffers become rank 0's."""
        if self.size == 1:
            return network
        devices = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(network, devices, process_group=self.group)


@contextlib.contextmanager
def joined() -> Iterator[Ranks]:
    """Join the other ranks, through NCCL on GPUs and gloo on CPUs; without torchrun, be the only rank.

    Under torchrun this works once per process: torch mistakes a second group for the first.

    Yields:
        The ranks, once all have joined.

    Raises:
        InvalidSetting: There are more processes than GPUs on this machine, or torchrun has restarted them.
    """
    rank, size = rank_and_size()
    if size > 1 and os.environ["TORCHELASTIC_RESTART_COUNT"] != "0":  # gloo would look for the processes that are gone
        raise InvalidSetting("torchrun has restarted its processes; give --resume true to a new command, not --max-restarts")
    local_rank, local_size = (int(os.environ.get(name, only)) for name, only in (("LOCAL_RANK", 0), ("LOCAL_WORLD_SIZE", 1)))
    device = _device(local_rank, local_size)
    # On CPU the network keeps every core busy: decoding in further processes would only get in its way.
    workers = max(available_cores() // local_size, 1) if device.type == "cuda" else 0
    if size == 1:
        yield Ranks(rank, size, device, workers)
        return
    distributed.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=_WAIT)
    group = distributed.new_group(timeout=_STEP)
    assert not isinstance(group, int)  # as it is for a process that is not in the group
    yield Ranks(rank, size, device, workers, group)
    distributed.destroy_process_group()  # not after an error, as NCCL would wait for ranks that may be gone


def _device(local_rank: int, local_size: int) -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    if local_size > torch.cuda.device_count():
        raise InvalidSetting(
            f"torchrun has started {local_size} processes on a machine with {torch.cuda.device_count()} GPUs; "
            f"give --nproc-per-node {torch.cuda.device_count()}"
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)
