"""Batch pipeline: overlap of reading, computing and writing; failing items; cancelling; many processes."""

from __future__ import annotations

import threading
import time

import pytest

from HiEndMAECore.errors import Cancelled, InputError
from HiEndMAECore.inference.batch_pipeline import gather_rows, run_pipeline, shard
from HiEndMAECore.reporting.reporter import Reporter


def test_pipeline_reads_the_next_and_writes_the_last_item_while_one_is_computed() -> None:
    """Reading 2 waits for the start of computing 1, which waits for the start of reading 2."""
    reading, computing, log = threading.Event(), threading.Event(), []

    def read(item: int) -> int:
        if item == 2:
            reading.set()
            assert computing.wait(10)
        return item

    def compute(item: int, content: int) -> int:
        computing.set()
        assert reading.wait(10)
        return content * 10

    def write(item: int, computed: int) -> int:
        log.append((item, threading.current_thread().name))
        return computed + 1

    outcomes = run_pipeline(
        [1, 2, 3], read=read, compute=compute, write=write, can_overlap=lambda _: True, report=Reporter(quiet=True)
    )
    assert list(outcomes) == [(1, 11), (2, 21), (3, 31)]
    assert [item for item, _ in log] == [1, 2, 3]
    assert all(name.startswith("writer") for _, name in log)


@pytest.mark.parametrize("overlap", [True, False])
def test_pipeline_yields_the_error_of_an_item_that_fails_in_any_step(overlap: bool) -> None:
    def failing(step: str) -> object:
        def work(item: str, *content: object) -> str:
            if item == step:
                raise MemoryError if step == "compute" else InputError("bad", f"{step} failed")
            return item

        return work

    items = ["read", "a", "compute", "b", "write", "c"]
    steps = {step: failing(step) for step in ("read", "compute", "write")}
    pipeline = run_pipeline(items, **steps, can_overlap=lambda _: overlap, report=Reporter(quiet=True))  # type: ignore[arg-type]
    outcomes = dict(pipeline)
    assert sorted(outcomes) == sorted(items)
    assert [item for item in items if outcomes[item] == item] == ["a", "b", "c"]
    assert {item: outcomes[item].code for item in steps} == {  # type: ignore[attr-defined]
        "read": "bad", "compute": "out_of_memory", "write": "bad",
    }  # fmt: skip


def test_pipeline_that_is_cancelled_completes_what_is_being_written() -> None:
    report, written = Reporter(quiet=True), []

    def write(item: int, computed: int) -> None:
        report.cancel()
        time.sleep(0.3)
        written.append(item)

    def compute(item: int, content: int) -> int:
        if item == 2:
            time.sleep(0.1)
            report.check()
        return item

    pipeline = run_pipeline(
        [1, 2, 3], read=lambda i: i, compute=compute, write=write, can_overlap=lambda _: True, report=report
    )
    with pytest.raises(Cancelled):
        list(pipeline)
    assert written == [1]


def test_pipeline_raises_an_internal_fault() -> None:
    def write(item: int, computed: int) -> None:
        raise ZeroDivisionError

    pipeline = run_pipeline(
        [1, 2],
        read=lambda i: i,
        compute=lambda i, _: i,
        write=write,
        can_overlap=lambda _: True,
        report=Reporter(quiet=True),
    )
    with pytest.raises(ZeroDivisionError):
        list(pipeline)


def test_shards_of_all_processes_contain_every_item_once(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shard([1, 2, 3]) == [1, 2, 3]
    assert gather_rows([1, 2]) == [1, 2]
    monkeypatch.setenv("WORLD_SIZE", "3")
    items: list[int] = []
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        items += shard(list(range(8)))
    assert sorted(items) == list(range(8))
