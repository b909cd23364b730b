"""A batch kept moving: while one case is computed, the next is read and the one before is written.

    for case, outcome in convey(cases, read=…, compute=…, finish=…, beside=…, report=report):
        ...                                                    # what `finish` returned, or the typed error

Under `torchrun` each process takes its share of the cases (`my_share`) and all meet again at the end (`gather`).
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
Given = TypeVar("Given")
Computed = TypeVar("Computed")
Done = TypeVar("Done")
_LONG = timedelta(days=30)  # a process with the larger scans is waited for


def run_pipeline(
    items: Sequence[Item],
    *,
    read: Callable[[Item], Given],
    compute: Callable[[Item, Given], Computed],
    finish: Callable[[Item, Computed], Done],
    beside: Callable[[Given], bool],
    report: Reporter,
) -> Iterator[tuple[Item, Done | HiEndMAEError]]:
    """(item, what `finish` returned or why it could not be used), as they come, each item once.

    `read` and `finish` run in a thread of their own, one at a time, `compute` in the caller's. beside(given): is there
    memory for reading and writing beside the computing? Else all is done in turn. Unusable input and lack of memory end
    one item; any other error, and a full disk, end the batch. When it ends early, what is being written is completed.
    """
    reader, writer = ThreadPoolExecutor(1, "reader"), ThreadPoolExecutor(1, "writer")
    coming: Future[Given] | None = None
    going: tuple[Item, Future[Done]] | None = None
    try:
        for index, item in enumerate(items):
            future, coming = coming or reader.submit(read, item), None
            try:
                given = _result(future, report)
                del future  # it would hold the scan
                together = beside(given)
                if together and index + 1 < len(items):
                    coming = reader.submit(read, items[index + 1])
                computed = compute(item, given)
                del given
            except Exception as error:
                yield item, _tolerated(error)
                continue
            if going is not None:
                yield going[0], _outcome(going[1], report)
            going = (item, writer.submit(finish, item, computed))
            del computed
            if not together:
                yield going[0], _outcome(going[1], report)
                going = None
        if going is not None:
            yield going[0], _outcome(going[1], report)
    finally:
        reader.shutdown(cancel_futures=True)
        writer.shutdown()


def _result(future: Future[Done], report: Reporter) -> Done:
    """The future's result; a request to cancel is heard while waiting."""
    while not future.done():
        wait([future], timeout=0.5)
        report.check()
    return future.result()


def _outcome(future: Future[Any], report: Reporter) -> Any:
    """What `finish` returned, or the typed error."""
    try:
        return _result(future, report)
    except (InputError, OutOfMemoryError, MemoryError) as error:
        return _tolerated(error)


def _tolerated(error: Exception) -> HiEndMAEError:
    known = error if isinstance(error, HiEndMAEError) else classify_exception(error)
    if not isinstance(known, InputError | OutOfMemoryError):
        raise error
    return known


def shard(items: Sequence[Item]) -> Sequence[Item]:
    """Every n-th item under `torchrun`, all of them elsewhere."""
    return items[rank_from_environment() :: world_size_from_environment()]


def gather_rows(rows: list[Item]) -> list[Item]:
    """The rows of all processes, in all of them. None leaves before all are done: `torchrun` would end the others."""
    import torch.distributed as dist

    count = world_size_from_environment()
    if count == 1:
        return rows
    dist.init_process_group("gloo", timeout=_LONG)
    parts: list[list[Item]] = [[] for _ in range(count)]
    dist.all_gather_object(parts, rows)
    dist.destroy_process_group()
    return [row for part in parts for row in part]
