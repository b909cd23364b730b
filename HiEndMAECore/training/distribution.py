"""One process or many: what `torchrun` sets up, read from its environment."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Processes:
    """This process's place among `count`; alone when `count` is 1."""

    rank: int = 0
    count: int = 1

    @property
    def leads(self) -> bool:
        """Does this process write files and speak?"""
        return self.rank == 0

    def share(self, indices: range) -> range:
        """The samples of one batch that are this process's."""
        return indices[self.rank :: self.count]

    def wrap(self, model: nn.Module, device: torch.device) -> nn.Module:
        """The model with gradients averaged over the processes."""
        if self.count == 1:
            return model
        return nn.parallel.DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)

    def in_step(self, network: nn.Module, *, last: bool) -> AbstractContextManager[None]:
        """Gradients are exchanged in the `last` part of an accumulated step alone."""
        if last or not isinstance(network, nn.parallel.DistributedDataParallel):
            return nullcontext()
        return network.no_sync()

    def summed(self, values: Tensor) -> Tensor:
        """`values` added up over the processes; all of them have to call it."""
        if self.count > 1:
            torch.distributed.all_reduce(values)
        return values


def restarted() -> bool:
    """Did `torchrun` start this process again after one of them was lost?"""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def join_processes(device: torch.device) -> Processes:
    """Join the group that `torchrun` started, if it did (nccl on CUDA, gloo elsewhere)."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        return Processes()
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return Processes(int(os.environ["RANK"]), count)
