"""`log.jsonl`: one JSON line a step, written as the run goes, and TensorBoard's files beside it when asked for.

A line of a step: step, loss, learning_rate, crops_per_second, waited (share of the step spent waiting for crops). Other
lines hold `watch_loss`, the loss on the same crops each time, and once, at the start, what two predictors that learn
nothing reach on those crops (`zero_loss`, `nearest_loss`).
"""

from __future__ import annotations

import contextlib
import json
import math
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from HiEndMAECore.errors import MissingDependencyError
from HiEndMAECore.io.atomic import write_text

LOG = "log.jsonl"


class StepRecord(NamedTuple):
    """One line of the log."""

    step: int
    loss: float
    learning_rate: float
    crops_per_second: float
    waited: float


def read_log(folder: Path, *, until: int | None = None) -> list[dict[str, Any]]:
    """The lines of the log in `folder` with a step of at most `until`; a half-written last line is passed over."""
    lines = []
    with contextlib.suppress(FileNotFoundError):
        for text in (folder / LOG).read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError):
                lines.append(json.loads(text))
    return [line for line in lines if until is None or line["step"] <= until]


def step_records(lines: list[dict[str, Any]]) -> list[StepRecord]:
    """The lines that tell of a step."""
    return [StepRecord(*(line[name] for name in StepRecord._fields)) for line in lines if "loss" in line]


class TrainingLog:
    """Writes the log of the run in `folder`, from `first` on: what an interrupted run wrote beyond it is dropped."""

    def __init__(self, folder: Path, *, first: int = 0, tensorboard: bool = False) -> None:
        self.lines = read_log(folder, until=first) if first else []
        write_text(folder / LOG, "".join(json.dumps(line) + "\n" for line in self.lines))
        self._file: TextIO = (folder / LOG).open("a", encoding="utf-8")
        self._board = _board(folder, first) if tensorboard else None

    def step(self, record: StepRecord) -> None:
        """Add the line of one step."""
        self.write(**record._asdict())

    def write(self, *, step: int, **values: float) -> None:
        """Add a line; values that are no numbers (NaN) become null."""
        line = {"step": step, **{name: value if math.isfinite(value) else None for name, value in values.items()}}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        if "loss" not in values:
            self.lines.append(line)
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """Close the files."""
        self._file.close()
        if self._board is not None:
            self._board.close()


def _board(folder: Path, first: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingDependencyError.of("tensorboard", "to write TensorBoard's files") from error
    return SummaryWriter(str(folder / "tensorboard"), purge_step=first + 1 if first else None)
