"""Jobs in processes of their own: one that dies (no memory left, most often) costs its job and nothing else.

Not `concurrent.futures`: there one dead process ends the whole pool, and orphans wait for ever when the parent is killed.
Here each process has a pipe of its own; when the other end is gone, it goes too.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

from HiEndMAECore.errors import HiEndMAEError, OutOfMemoryError, classify_exception

_LOOK_EVERY = 0.5  # seconds
_ONE_THREAD = (
    *("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"),
    "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS",
)
Job = TypeVar("Job")


def run_jobs(
    work: Callable[[Job], Any],
    jobs: Iterable[Job],
    *,
    workers: int,
    watch: Callable[[], object],
    cost: Callable[[Job], float] = lambda job: 0.0,
    budget: float = float("inf"),
) -> Iterator[tuple[Job, Any]]:
    """`(job, work(job))` as the jobs get done, in no order; what `work` raises comes in place of its result, as a
    typed error. Raises what `watch` raises, which is called twice a second.

    work: a function at the top of a module, or a `partial` of one. workers: processes; 0 does the work here.
    cost, budget: jobs run at the same time as long as their costs stay within the budget; one alone always may.
    """
    waiting = deque(jobs)
    if workers == 0:
        for job in waiting:
            yield job, _outcome(work, job)
            watch()
        return
    crew: list[_Worker] = []
    try:
        while waiting or any(worker.busy for worker in crew):
            busy = [worker for worker in crew if worker.busy]
            while waiting:
                price = cost(waiting[0])
                if busy and (len(busy) >= workers or sum(worker.cost for worker in busy) + price > budget):
                    break
                free = [worker for worker in crew if not worker.busy]
                if not free:
                    free = [_Worker(work)]
                    crew += free
                free[0].take(waiting.popleft(), price)
                busy.append(free[0])
            heard = wait([worker.connection for worker in busy], _LOOK_EVERY)
            watch()
            for worker in busy:
                if worker.connection in heard:
                    outcome = worker.hear()
                    if worker.gone:
                        crew.remove(worker)
                    if not worker.busy:
                        yield worker.job, outcome
    finally:
        for worker in crew:
            worker.end()


class _Worker:
    """A process, its end of the pipe, and what it is doing."""

    def __init__(self, work: Callable[[Any], Any]) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, work), daemon=True)
        with _one_thread():
            self.process.start()
        theirs.close()
        self.job: Any = None
        self.busy, self.cost = False, 0.0
        self.started = self.gone = False

    def take(self, job: Any, cost: float) -> None:
        self.job, self.cost, self.busy = job, cost, True
        with suppress(OSError):  # it has died: `hear` tells
            self.connection.send(job)

    def hear(self) -> Any:
        """What came through the pipe: the outcome of its job, which is over then, or that it has started."""
        try:
            heard = self.connection.recv()
        except (EOFError, OSError):
            self.end()
            self.busy, self.gone = False, True
            code = f"exit code {self.process.exitcode}"
            if not self.started:
                message = f"A process of its own could not be started ({code})."
                raise HiEndMAEError("worker_not_started", message, "Use --workers 0.") from None
            message = f"The process that worked on it died ({code}); most often there was too little memory."
            return OutOfMemoryError("worker_died", message, "Give fewer --workers.")
        if self.started:
            self.busy = False
        self.started = True
        return heard

    def end(self) -> None:
        self.process.kill()  # files are renamed into place: a half-written one never counts
        self.process.join()
        self.connection.close()


def _serve(connection: Connection, work: Callable[[Any], Any]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    try:
        connection.send("started")
        while True:
            connection.send(_outcome(work, connection.recv()))
    except (EOFError, OSError):
        return  # the parent is gone


def _outcome(work: Callable[[Any], Any], job: Any) -> Any:
    try:
        return work(job)
    except HiEndMAEError as error:
        return error
    except Exception as error:  # one strange scan among thousands must not end the run; it is told with its reason
        known = classify_exception(error)
        if known is None:
            traceback.print_exc(file=sys.stderr)
            known = HiEndMAEError("internal_fault", f"A fault in HiEndMAE: {type(error).__name__}: {error}.")
        return known


@contextmanager
def _one_thread() -> Iterator[None]:
    """What a child inherits, so that as many processes as cores do not become as many threads each."""
    kept = {name: os.environ.get(name) for name in _ONE_THREAD}
    os.environ.update(dict.fromkeys(_ONE_THREAD, "1"))
    try:
        yield
    finally:
        for name, value in kept.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
