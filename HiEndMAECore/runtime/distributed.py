"""Training in one process or in many: the process group of `torchrun`, read from its environment."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from uuid import uuid4

import torch
from torch import Tensor, nn

from .processes import rank_from_environment, restarted_by_torchrun, world_size_from_environment

_CONFIRMATION_TIMEOUT = timedelta(seconds=1)  # before a process reads the rendezvous name again
_NAME_KEY = "meeting"  # of the store, for the rendezvous name
_CONFIRMED = "confirmed"


@dataclass(frozen=True)
class DistributedContext:
    """The processes of a run, seen from one of them.

    Attributes:
        rank: Number of this process.
        world_size: Number of processes; 1 without `torchrun`.
        restarted: True when `torchrun` has restarted the processes after one was lost.
    """

    rank: int = 0
    world_size: int = 1
    restarted: bool = False

    @property
    def is_main(self) -> bool:
        """True for the process that writes files and reports."""
        return self.rank == 0

    def shard(self, indices: range) -> range:
        """Return the samples of a batch that belong to this process."""
        return indices[self.rank :: self.world_size]

    def wrap(self, model: nn.Module, device: torch.device) -> nn.Module:
        """Return `model` with gradients that are averaged over the processes."""
        if self.world_size == 1:
            return model
        return nn.parallel.DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)

    def sync_context(self, network: nn.Module, *, last: bool) -> AbstractContextManager[None]:
        """Return the context of one part of an accumulated step; gradients are exchanged only in the `last` part."""
        if last or not isinstance(network, nn.parallel.DistributedDataParallel):
            return nullcontext()
        return network.no_sync()

    def all_reduce_sum(self, values: Tensor) -> Tensor:
        """Return the sum of `values` over the processes. Every process must call this."""
        if self.world_size > 1:
            torch.distributed.all_reduce(values)
        return values


def init_distributed(device: torch.device) -> DistributedContext:
    """Join the process group that `torchrun` started, if it did (nccl on CUDA, gloo elsewhere).

    Args:
        device: Device of this process.
    """
    world_size, rank = world_size_from_environment(), rank_from_environment()
    restarted_here = restarted_by_torchrun()
    if world_size == 1:
        return DistributedContext(restarted=restarted_here)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if not torch.distributed.is_initialized():
        store, *_ = next(torch.distributed.rendezvous("env://"))
        torch.distributed.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            store=torch.distributed.PrefixStore(rendezvous_name(store, rank, world_size), store),
            rank=rank,
            world_size=world_size,
        )
    # Each machine counts only its own restarts; a machine whose processes were not lost counts none.
    restarts = torch.tensor(float(restarted_here), device=device)
    torch.distributed.all_reduce(restarts)
    return DistributedContext(rank, world_size, restarted=bool(restarts > 0))


def rendezvous_name(store: torch.distributed.Store, rank: int, world_size: int) -> str:
    """Agree with the other processes on a name that no process of an earlier start knows.

    `torchrun` keeps one store over its restarts (PyTorch issue 135712). A process that read the address of a lost process
    there would wait for it forever. The first process therefore publishes a new name. Every other process answers to the
    name that it finds, and continues only when the first process has confirmed that answer.

    Args:
        store: Store that all processes share.
        rank: Number of this process.
        world_size: Number of processes.
    """
    if rank == 0:
        name = uuid4().hex
        store.set(_NAME_KEY, name)
        for other in range(1, world_size):
            answer = store.get(f"{name}/{other}").decode()
            store.set(f"{name}/{other}/{answer}", _CONFIRMED)
        return name
    answer = uuid4().hex
    while True:
        name = store.get(_NAME_KEY).decode()
        store.set(f"{name}/{rank}", answer)
        try:
            store.wait([f"{name}/{rank}/{answer}"], _CONFIRMATION_TIMEOUT)
        except RuntimeError:  # no confirmation in time: the name may be that of an earlier start
            continue
        return name
