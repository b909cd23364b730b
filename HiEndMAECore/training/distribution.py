"""One process or many: what `torchrun` sets up, read from its environment."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
from torch import nn


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

    def agree(self, flag: bool, device: torch.device) -> bool:
        """True on all when it is true on any: processes have to stop at the same step."""
        if self.count == 1:
            return flag
        flags = torch.tensor(int(flag), device=device)
        torch.distributed.all_reduce(flags, op=torch.distributed.ReduceOp.MAX)
        return bool(flags.item())


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
