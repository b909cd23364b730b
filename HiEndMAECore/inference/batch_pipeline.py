"""The batch pipeline: while one item is computed, the next one is read and the previous one is written.

    for item, outcome in run_pipeline(items, read=…, compute=…, write=…, can_overlap=…, report=report):
        ...                                                    # what `write` returned, or the typed error

Under `torchrun` each process takes its part of the items (`shard`), and all of them meet again at the end (`gather_rows`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from datetime import timedelta
from typing import Any, TypeVar

from HiEndMAECore.errors import HiEndMAEError, InputError, OutOfMemoryError, classify_exception
from HiEndMAECore.reporting.reporter import Reporter
from HiEndMAECore.runtime.processes import rank_from_environment, world_size_from_environment

Item = TypeVar("Item")
Read = TypeVar("Read")
Computed = TypeVar("Computed")
Written = TypeVar("Written")
_GATHER_TIMEOUT = timedelta(days=30)  # the fastest process waits for the one with the largest scans
_CANCEL_INTERVAL_SECONDS = 0.5


def run_pipeline(
    items: Sequence[Item],
    *,
    read: Callable[[Item], Read],
    compute: Callable[[Item, Read], Computed],
    write: Callable[[Item, Computed], Written],
    can_overlap: Callable[[Read], bool],
    report: Reporter,
) -> Iterator[tuple[Item, Written | HiEndMAEError]]:
    """Yield each item once with what `write` returned, or with the reason why it could not be processed.

    Unusable input and a lack of memory end one item. Any other error ends the batch. If the batch ends early, what is being
    written is completed first.

    Args:
        items: The items to process, in order.
        read: Reads an item. It runs in a thread of its own.
        compute: Computes what was read. It runs in the caller's thread.
        write: Writes what was computed. It runs in a thread of its own.
        can_overlap: Whether the next item may be read, and this one be written, while something is computed. If not, the
            steps of this item run one after the other.
        report: Receives requests to cancel.

    Raises:
        Cancelled: The run was cancelled.
    """
    reader, writer = ThreadPoolExecutor(1, "reader"), ThreadPoolExecutor(1, "writer")
    next_read: Future[Read] | None = None
    writing: tuple[Item, Future[Written]] | None = None
    try:
        for index, item in enumerate(items):
            future, next_read = next_read or reader.submit(read, item), None
            try:
                content = _wait_for(future, report)
                del future  # it keeps a reference to the content
                overlap = can_overlap(content)
                if overlap and index + 1 < len(items):
                    next_read = reader.submit(read, items[index + 1])
                computed = compute(item, content)
                del content
            except Exception as error:
                yield item, _case_error(error)
                continue
            if writing is not None:
                yield writing[0], _outcome(writing[1], report)
            writing = (item, writer.submit(write, item, computed))
            del computed
            if not overlap:
                yield writing[0], _outcome(writing[1], report)
                writing = None
        if writing is not None:
            yield writing[0], _outcome(writing[1], report)
    finally:
        reader.shutdown(cancel_futures=True)
        writer.shutdown()


def _wait_for(future: Future[Written], report: Reporter) -> Written:
    """Return the future's result, and react to requests to cancel while waiting."""
    while not future.done():
        wait([future], timeout=_CANCEL_INTERVAL_SECONDS)
        report.check()
    return future.result()


def _outcome(future: Future[Any], report: Reporter) -> Any:
    """Return what `write` returned, or the typed error that ends this item alone."""
    try:
        return _wait_for(future, report)
    except (InputError, OutOfMemoryError, MemoryError) as error:
        return _case_error(error)


def _case_error(error: Exception) -> HiEndMAEError:
    """Return the typed error that ends one item; raise `error` if it ends the batch."""
    known = error if isinstance(error, HiEndMAEError) else classify_exception(error)
    if not isinstance(known, InputError | OutOfMemoryError):
        raise error
    return known


def shard(items: Sequence[Item]) -> Sequence[Item]:
    """Return this process's part of the items: every n-th one under `torchrun`, otherwise all of them."""
    return items[rank_from_environment() :: world_size_from_environment()]


def gather_rows(rows: list[Item]) -> list[Item]:
    """Return the rows of all processes, in every process.

    No process returns before all of them have called it, because `torchrun` would end the others.
    """
    import torch.distributed as dist

    count = world_size_from_environment()
    if count == 1:
        return rows
    dist.init_process_group("gloo", timeout=_GATHER_TIMEOUT)
    parts: list[list[Item]] = [[] for _ in range(count)]
    dist.all_gather_object(parts, rows)
    dist.destroy_process_group()
    return [row for part in parts for row in part]
