"""A pool of worker processes in which a process that dies costs its job and nothing else.

A process most often dies because no memory is left. `concurrent.futures` is not used, because one dead process ends its whole
pool, and because its workers wait forever when their parent is killed. Here each worker has a pipe of its own, and ends when
the other end of the pipe is closed.
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

_CHECK_INTERVAL_SECONDS = 0.5
_THREAD_LIMITS = (
    *("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"),
    "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS",
)
_STARTED = "started"  # the first message of a worker
Job = TypeVar("Job")


def run_jobs(
    work: Callable[[Job], Any],
    jobs: Iterable[Job],
    *,
    workers: int,
    check: Callable[[], object],
    cost: Callable[[Job], float] = lambda job: 0.0,
    budget: float = float("inf"),
) -> Iterator[tuple[Job, Any]]:
    """Run jobs in worker processes, and yield each job with its outcome as soon as it is done, in any order.

    Args:
        work: What to do with a job: a function at the top of a module, or a `partial` of one.
        jobs: The jobs; they are sent to other processes.
        workers: Number of processes; with 0 the jobs run in this process.
        check: Called twice a second; what it raises ends all jobs.
        cost: Cost of a job in the unit of `budget`, such as bytes of memory.
        budget: Jobs run at the same time while the sum of their costs stays within it. A single job always may run.

    Yields:
        (job, outcome): what `work` returned, or the typed error that it raised.

    Raises:
        HiEndMAEError: `worker_not_started`, when no process can be started; and whatever `check` raises.
    """
    waiting = deque(jobs)
    if workers == 0:
        for job in waiting:
            yield job, _outcome(work, job)
            check()
        return
    pool: list[_Worker] = []
    try:
        while waiting or any(worker.busy for worker in pool):
            _assign(waiting, pool, work, workers=workers, cost=cost, budget=budget)
            busy = [worker for worker in pool if worker.busy]
            ready = wait([worker.connection for worker in busy], _CHECK_INTERVAL_SECONDS)
            check()
            for worker in busy:
                if worker.connection in ready:
                    message = worker.receive()
                    if worker.dead:
                        pool.remove(worker)
                    if not worker.busy:
                        yield worker.job, message
    finally:
        for worker in pool:
            worker.stop()


def _assign(
    waiting: deque[Job],
    pool: list[_Worker],
    work: Callable[[Job], Any],
    *,
    workers: int,
    cost: Callable[[Job], float],
    budget: float,
) -> None:
    """Give waiting jobs to idle workers, in order, while the budget lasts; start workers up to their number."""
    busy = [worker for worker in pool if worker.busy]
    while waiting:
        next_cost = cost(waiting[0])
        if busy and (len(busy) >= workers or sum(worker.cost for worker in busy) + next_cost > budget):
            return
        idle = next((worker for worker in pool if not worker.busy), None)
        if idle is None:
            idle = _Worker(work)
            pool.append(idle)
        idle.assign(waiting.popleft(), next_cost)
        busy.append(idle)


class _Worker:
    """A worker process, this process's end of the pipe to it, and its present job.

    Attributes:
        job: The present or the last job.
        busy: True while the outcome of the job is awaited.
        cost: Cost of the job.
        dead: True when the process has died.
    """

    def __init__(self, work: Callable[[Any], Any]) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, child_connection = context.Pipe()
        self.process = context.Process(target=_serve, args=(child_connection, work), daemon=True)
        with _single_threaded_children():
            self.process.start()
        child_connection.close()
        self.job: Any = None
        self.busy, self.cost = False, 0.0
        self.started = self.dead = False

    def assign(self, job: Any, cost: float) -> None:
        """Send a job to the process."""
        self.job, self.cost, self.busy = job, cost, True
        with suppress(OSError):  # the process has died, and `receive` finds out
            self.connection.send(job)

    def receive(self) -> Any:
        """Return the next message: that the process has started, or the outcome of its job, which then is done."""
        try:
            message = self.connection.recv()
        except (EOFError, OSError):
            return self._died()
        if self.started:
            self.busy = False
        self.started = True
        return message

    def _died(self) -> OutOfMemoryError:
        """Return the outcome of a job whose process died; raise `worker_not_started` when it never ran."""
        self.stop()
        self.busy, self.dead = False, True
        code = f"exit code {self.process.exitcode}"
        if not self.started:
            message = f"A worker process could not be started ({code})."
            raise HiEndMAEError("worker_not_started", message, "Use --workers 0.") from None
        message = f"The worker process died ({code}); most often there was too little memory."
        return OutOfMemoryError("worker_died", message, "Give fewer --workers.")

    def stop(self) -> None:
        """Kill the process. Files are renamed when they are complete, so none is damaged."""
        self.process.kill()
        self.process.join()
        self.connection.close()


def _serve(connection: Connection, work: Callable[[Any], Any]) -> None:
    """Run jobs from the pipe until the other end is closed. This is the main function of a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process of the group, and the parent decides
    try:
        connection.send(_STARTED)
        while True:
            connection.send(_outcome(work, connection.recv()))
    except (EOFError, OSError):
        return  # the parent has ended


def _outcome(work: Callable[[Any], Any], job: Any) -> Any:
    """Return what `work` returns or, because one job must not end the others, the typed error of what it raises."""
    try:
        return work(job)
    except HiEndMAEError as error:
        return error
    except Exception as error:
        known = classify_exception(error)
        if known is None:
            traceback.print_exc(file=sys.stderr)
            known = HiEndMAEError("internal_fault", f"A fault in HiEndMAE: {type(error).__name__}: {error}.")
        return known


@contextmanager
def _single_threaded_children() -> Iterator[None]:
    """Let processes that are started in this block inherit a limit of one thread, so that n of them use n cores."""
    previous = {name: os.environ.get(name) for name in _THREAD_LIMITS}
    os.environ.update(dict.fromkeys(_THREAD_LIMITS, "1"))
    try:
        yield
    finally:
        for name, value in previous.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
