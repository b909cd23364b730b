"""Pretraining in many processes, as `torchrun` starts them: the same run, also when one of them is lost."""

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

REPOSITORY = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="gloo and torchrun are not offered on Windows")
SPOKEN = {"text": True, "encoding": "utf-8", "errors": "replace"}  # whatever the machine's own encoding is
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY), "PYTHONUTF8": "1"}
SETTINGS = (
    "--variant", "hi_end_mae_vit_tiny_8p", "--crop", "16", "16", "16", "--batch-size", "4", "--steps", "20",
    "--learning-rate", "1e-3", "--device", "cpu", "--precision", "fp32", "--workers", "1",
)  # fmt: skip


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("many") / "store"
    rng = np.random.default_rng(0)
    arrays = [rng.random((1, 20, 24, depth), dtype=np.float32) for depth in (12, 18, 30)]  # one is padded
    scans = [write_scan(folder, f"scan{index}", array) for index, array in enumerate(arrays)]
    write_manifest(folder, {"scans": scans, "channels": 1, "preparation": {}})
    return folder


def command(*arguments: object, processes: int, restarts: int = 0) -> list[str]:
    start = [sys.executable, "-m", "HiEndMAECore.pretrain"]
    if processes > 1:
        many = ["--standalone", f"--nproc-per-node={processes}", f"--max-restarts={restarts}"]
        start = [sys.executable, "-m", "torch.distributed.run", *many, *start[1:]]
    return [*start, *map(str, arguments), *SETTINGS]


def losses(run: Path) -> list[float]:
    return [record.loss for record in step_records(read_log(run))]


@pytest.fixture(scope="module")
def alone(store: Path) -> list[float]:
    run = store.parent / "alone"
    subprocess.run(command("--data", store, "--output", run, processes=1), check=True, env=ENVIRONMENT, timeout=300)
    assert len(losses(run)) == 20
    return losses(run)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_two_processes_train_to_the_loss_of_one(store: Path, alone: list[float], accumulate: int) -> None:
    run = store.parent / f"two{accumulate}"
    asked = command("--data", store, "--output", run, "--accumulate", accumulate, processes=2)
    said = subprocess.run(asked, check=True, env=ENVIRONMENT, timeout=300, capture_output=True, **SPOKEN)
    assert losses(run) == pytest.approx(alone, abs=1e-4)
    assert said.stderr.count("To beat:") == 1  # one of them speaks


def test_the_second_stage_learns_in_two_processes_as_in_one(store: Path) -> None:
    """The encoder is frozen, and has no gradient to share."""
    asked = ("--data", store, "--objective", "inpainting", "--init", "hi-end-mae-tiny")
    found = []
    for processes in (1, 2):
        run = store.parent / f"second{processes}"
        line = command(*asked, "--output", run, processes=processes)
        subprocess.run(line, check=True, env=ENVIRONMENT, timeout=300)
        found.append(losses(run))
    assert len(found[0]) == 20
    assert found[1] == pytest.approx(found[0], abs=1e-4)


def test_a_lost_process_is_made_up_for(store: Path, alone: list[float]) -> None:
    run = store.parent / "lost"
    asked = command("--data", store, "--output", run, "--snapshot-minutes", 0.0001, processes=2, restarts=1)
    process = subprocess.Popen(asked, env=ENVIRONMENT, stderr=subprocess.PIPE, **SPOKEN)
    wait_for_a_snapshot(run, process)
    victims = [pid for pid in _children(process.pid) if "HiEndMAECore.pretrain" in _line(pid)]
    assert len(victims) == 2
    os.kill(victims[-1], signal.SIGKILL)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert "Going on from step" in said
    assert losses(run) == pytest.approx(alone, abs=1e-4)


def test_a_lost_process_of_another_machine_is_made_up_for(store: Path, alone: list[float]) -> None:
    """Two `torchrun`s, as on two machines: the one whose process was well counts no restart."""
    run = store.parent / "machines"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meet = f"127.0.0.1:{free.getsockname()[1]}"
    line = command("--data", store, "--output", run, "--snapshot-minutes", 0.0001, processes=1)
    machine = ["--nnodes=2", "--nproc-per-node=1", "--max-restarts=1", "--rdzv-backend=c10d", f"--rdzv-endpoint={meet}"]
    asked = [sys.executable, "-m", "torch.distributed.run", *machine, *line[1:]]
    heard = store.parent / "machines.txt"
    with heard.open("w") as ear:
        machines = [subprocess.Popen(asked, env=ENVIRONMENT, stderr=ear, text=True) for _ in range(2)]
        wait_for_a_snapshot(run, *machines)
        victims = [pid for pid in _children(machines[1].pid) if "HiEndMAECore.pretrain" in _line(pid)]
        assert len(victims) == 1
        os.kill(victims[0], signal.SIGKILL)
        codes = [machine.wait(timeout=300) for machine in machines]
    said = heard.read_text(encoding="utf-8", errors="replace")
    assert codes == [0, 0], said
    assert "Going on from step" in said
    assert losses(run) == pytest.approx(alone, abs=1e-4)


def test_processes_do_not_meet_those_that_were_lost() -> None:
    """`torchrun` keeps its store over restarts, with what the lost ones left."""
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, timeout=timedelta(seconds=30))
    names = set()
    for _ in range(2):
        clients = [torch.distributed.TCPStore("127.0.0.1", store.port, is_master=False) for _ in range(3)]
        with ThreadPoolExecutor(3) as pool:
            others = [pool.submit(rendezvous_name, clients[rank], rank, 3) for rank in (1, 2)]
            time.sleep(0.2)  # they have read the name of those before, if there is one
            name = rendezvous_name(clients[0], 0, 3)
            assert [other.result(timeout=30) for other in others] == [name, name]
        names.add(name)
    assert len(names) == 2


def wait_for_a_snapshot(run: Path, *processes: subprocess.Popen[str]) -> None:
    while all(process.poll() is None for process in processes) and not list(
        run.glob("snapshots/step-*[1-9].safetensors")
    ):
        time.sleep(0.02)


def _children(pid: int) -> list[int]:
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    return [int(number) for number in listed.stdout.split()]


def _line(pid: int) -> str:
    return subprocess.run(["ps", "-o", "args=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
