"""One process or many: what `torchrun` sets up, read from its environment."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from uuid import uuid4

import torch
from torch import Tensor, nn

from .processes import rank_from_environment, restarted_by_torchrun, world_size_from_environment

_ASKING = timedelta(seconds=1)  # between two looks at whether the name that was found is still the newest


@dataclass(frozen=True)
class DistributedContext:
    """This process's place among `count`; alone when `count` is 1. restarted: `torchrun` started them again, after one was
    lost."""

    rank: int = 0
    count: int = 1
    restarted: bool = False

    @property
    def is_main(self) -> bool:
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

    def sync_context(self, network: nn.Module, *, last: bool) -> AbstractContextManager[None]:
        """Gradients are exchanged in the `last` part of an accumulated step alone."""
        if last or not isinstance(network, nn.parallel.DistributedDataParallel):
            return nullcontext()
        return network.no_sync()

    def all_reduce_sum(self, values: Tensor) -> Tensor:
        """`values` added up over the processes; all of them have to call it."""
        if self.count > 1:
            torch.distributed.all_reduce(values)
        return values


def init_distributed(device: torch.device) -> DistributedContext:
    """Join the group that `torchrun` started, if it did (nccl on CUDA, gloo elsewhere)."""
    count, rank = world_size_from_environment(), rank_from_environment()
    again = restarted_by_torchrun()
    if count == 1:
        return DistributedContext(restarted=again)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if not torch.distributed.is_initialized():
        store, *_ = next(torch.distributed.rendezvous("env://"))
        torch.distributed.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            store=torch.distributed.PrefixStore(rendezvous_name(store, rank, count), store),
            rank=rank,
            world_size=count,
        )
    # Each machine counts its own restarts: one whose processes were all well counts none.
    anyone = torch.tensor(float(again), device=device)
    torch.distributed.all_reduce(anyone)
    return DistributedContext(rank, count, restarted=bool(anyone > 0))


def rendezvous_name(store: torch.distributed.Store, rank: int, count: int) -> str:
    """A name on which these processes agree, and that no process lost before them knows.

    `torchrun` keeps one store over its restarts (pytorch issue 135712): a process that read there where a lost one could be
    reached would wait for it. So the first process invents a name; the others answer to what they find, and go on only when
    that very answer was heard.
    """
    if rank == 0:
        name = uuid4().hex
        store.set("meeting", name)
        for other in range(1, count):
            answer = store.get(f"{name}/{other}").decode()
            store.set(f"{name}/{other}/{answer}", "heard")
        return name
    answer = uuid4().hex
    while True:
        name = store.get("meeting").decode()
        store.set(f"{name}/{rank}", answer)
        try:
            store.wait([f"{name}/{rank}/{answer}"], _ASKING)
        except RuntimeError:  # not within that time: the name may be a lost one's
            continue
        return name
