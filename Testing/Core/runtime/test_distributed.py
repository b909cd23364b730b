"""Pretraining in several processes, as `torchrun` starts them: the same losses, also when a process is lost."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch

from HiEndMAECore.data.store_writer import write_manifest, write_scan
from HiEndMAECore.runtime.distributed import rendezvous_name
from HiEndMAECore.training.training_log import read_log, step_records

REPOSITORY = Path(__file__).resolve().parents[3]
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="gloo and torchrun are not offered on Windows")
TEXT = {"text": True, "encoding": "utf-8", "errors": "replace"}  # independent of the machine's encoding
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY), "PYTHONUTF8": "1"}
SETTINGS = (
    "--variant", "hi_end_mae_vit_tiny_8p", "--crop", "16", "16", "16", "--batch-size", "4", "--steps", "20",
    "--learning-rate", "1e-3", "--device", "cpu", "--precision", "fp32", "--workers", "1",
)  # fmt: skip


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("distributed") / "store"
    rng = np.random.default_rng(0)
    arrays = [rng.random((1, 20, 24, depth), dtype=np.float32) for depth in (12, 18, 30)]  # one is padded
    scans = [write_scan(folder, f"scan{index}", array) for index, array in enumerate(arrays)]
    write_manifest(folder, {"scans": scans, "channels": 1, "preparation": {}})
    return folder


def command(*arguments: object, processes: int, restarts: int = 0) -> list[str]:
    start = [sys.executable, "-m", "HiEndMAECore.pretrain"]
    if processes > 1:
        torchrun = ["--standalone", f"--nproc-per-node={processes}", f"--max-restarts={restarts}"]
        start = [sys.executable, "-m", "torch.distributed.run", *torchrun, *start[1:]]
    return [*start, *map(str, arguments), *SETTINGS]


def losses(run: Path) -> list[float]:
    return [record.loss for record in step_records(read_log(run))]


@pytest.fixture(scope="module")
def single_process_losses(store: Path) -> list[float]:
    run = store.parent / "single"
    subprocess.run(command("--data", store, "--output", run, processes=1), check=True, env=ENVIRONMENT, timeout=300)
    assert len(losses(run)) == 20
    return losses(run)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_pretrain_in_two_processes_has_the_losses_of_one(
    store: Path, single_process_losses: list[float], accumulate: int
) -> None:
    run = store.parent / f"two{accumulate}"
    line = command("--data", store, "--output", run, "--accumulate", accumulate, processes=2)
    result = subprocess.run(line, check=True, env=ENVIRONMENT, timeout=300, capture_output=True, **TEXT)
    assert losses(run) == pytest.approx(single_process_losses, abs=1e-4)
    assert result.stderr.count("Trivial losses to beat:") == 1  # only one process reports


def test_inpainting_in_two_processes_has_the_losses_of_one(store: Path) -> None:
    """The encoder is frozen and has no gradients to exchange."""
    options = ("--data", store, "--objective", "inpainting", "--init", "hi-end-mae-tiny")
    all_losses = []
    for processes in (1, 2):
        run = store.parent / f"inpainting{processes}"
        line = command(*options, "--output", run, processes=processes)
        subprocess.run(line, check=True, env=ENVIRONMENT, timeout=300)
        all_losses.append(losses(run))
    assert len(all_losses[0]) == 20
    assert all_losses[1] == pytest.approx(all_losses[0], abs=1e-4)


def test_pretrain_after_a_lost_process_continues_with_the_same_losses(
    store: Path, single_process_losses: list[float]
) -> None:
    run = store.parent / "lost"
    line = command("--data", store, "--output", run, "--snapshot-minutes", 0.0001, processes=2, restarts=1)
    process = subprocess.Popen(line, env=ENVIRONMENT, stderr=subprocess.PIPE, **TEXT)
    wait_for_checkpoint(run, process)
    victims = [pid for pid in _children(process.pid) if "HiEndMAECore.pretrain" in _command_line(pid)]
    assert len(victims) == 2
    os.kill(victims[-1], signal.SIGKILL)
    _, messages = process.communicate(timeout=300)
    assert process.returncode == 0, messages
    assert "Continuing from step" in messages
    assert losses(run) == pytest.approx(single_process_losses, abs=1e-4)


def test_pretrain_after_a_lost_process_on_another_machine_continues_with_the_same_losses(
    store: Path, single_process_losses: list[float]
) -> None:
    """Two `torchrun`s stand for two machines; the one whose process was not lost counts no restart."""
    run = store.parent / "machines"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"127.0.0.1:{free.getsockname()[1]}"
    line = command("--data", store, "--output", run, "--snapshot-minutes", 0.0001, processes=1)
    rendezvous = ("--rdzv-backend=c10d", f"--rdzv-endpoint={endpoint}")
    machine = ["--nnodes=2", "--nproc-per-node=1", "--max-restarts=1", *rendezvous]
    torchrun = [sys.executable, "-m", "torch.distributed.run", *machine, *line[1:]]
    log = store.parent / "machines.txt"
    with log.open("w") as stream:
        machines = [subprocess.Popen(torchrun, env=ENVIRONMENT, stderr=stream, text=True) for _ in range(2)]
        wait_for_checkpoint(run, *machines)
        victims = [pid for pid in _children(machines[1].pid) if "HiEndMAECore.pretrain" in _command_line(pid)]
        assert len(victims) == 1
        os.kill(victims[0], signal.SIGKILL)
        codes = [machine.wait(timeout=300) for machine in machines]
    messages = log.read_text(encoding="utf-8", errors="replace")
    assert codes == [0, 0], messages
    assert "Continuing from step" in messages
    assert losses(run) == pytest.approx(single_process_losses, abs=1e-4)


def test_rendezvous_name_after_a_restart_is_a_new_one() -> None:
    """`torchrun` keeps its store over restarts, with the entries of lost processes."""
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, timeout=timedelta(seconds=30))
    names = set()
    for _ in range(2):
        clients = [torch.distributed.TCPStore("127.0.0.1", store.port, is_master=False) for _ in range(3)]
        with ThreadPoolExecutor(3) as pool:
            others = [pool.submit(rendezvous_name, clients[rank], rank, 3) for rank in (1, 2)]
            time.sleep(0.2)  # they have read the name of the earlier start, if there is one
            name = rendezvous_name(clients[0], 0, 3)
            assert [other.result(timeout=30) for other in others] == [name, name]
        names.add(name)
    assert len(names) == 2


def wait_for_checkpoint(run: Path, *processes: subprocess.Popen[str]) -> None:
    while all(process.poll() is None for process in processes) and not list(
        run.glob("snapshots/step-*[1-9].safetensors")
    ):
        time.sleep(0.02)


def _children(pid: int) -> list[int]:
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    return [int(number) for number in listed.stdout.split()]


def _command_line(pid: int) -> str:
    return subprocess.run(["ps", "-o", "args=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
