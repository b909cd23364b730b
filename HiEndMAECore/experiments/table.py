"""The table of a comparison: one JSON object a line, appended by several processes, complete or absent.

Beside TABLE.jsonl lies the folder TABLE.work with the trained models, the logs and the lock files.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from HiEndMAECore.errors import InputError, UsageError
from HiEndMAECore.io.locks import file_lock, try_file_lock

DONE = "done"
FAILED = "failed"


class Table:
    """A table on disk.

    Args:
        path: TABLE.jsonl; it need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.work = path.with_name(f"{path.stem}.work")

    def lines(self) -> list[dict[str, Any]]:
        """Return the finished and failed lines. A line that a killed process left incomplete is ignored."""
        return read_lines(self.path) if self.path.exists() else []

    def finished_ids(self) -> set[str]:
        """Return the IDs of the jobs that are done."""
        return {line["job"] for line in self.lines() if line.get("status") == DONE}

    def append(self, line: Mapping[str, Any]) -> None:
        """Append one line, and return when it is on the disk."""
        text = json.dumps(line, ensure_ascii=True, allow_nan=False) + "\n"
        with file_lock(self.work / "table.lock"), self.path.open("ab") as file:
            if file.tell() and not _ends_with_newline(self.path):
                text = "\n" + text  # the incomplete line of a killed process ends here
            file.write(text.encode("ascii"))
            file.flush()
            os.fsync(file.fileno())

    @contextlib.contextmanager
    def claim(self, name: str) -> Iterator[bool]:
        """Hold a claim during the block.

        Args:
            name: What is claimed: the ID of a training, which several jobs may share.

        Yields:
            False when another process holds the claim. The claim of a process ends with it.
        """
        with try_file_lock(self.work / "claims" / f"{name}.lock") as is_held:
            yield is_held

    def check_split(self, split: str) -> None:
        """Raise `UsageError` when the table holds results of another split."""
        if others := {line["split"] for line in self.lines()} - {split}:
            message = f"The table {self.path} holds the split '{min(others)}', and '{split}' is to be run."
            raise UsageError("splits_mixed", message, "Give another --output: recipes are chosen on tune alone.")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a table.

    Raises:
        InputError: `table_unreadable`: the file cannot be read, or none of its lines is of a table.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        message = f"The table {path} cannot be read: {getattr(error, 'strerror', None) or error}."
        raise InputError("table_unreadable", message, "Give the --output of an earlier comparison.") from error
    found = [_parse(line) for line in text.splitlines() if line.strip()]
    lines = [line for line in found if line is not None]
    if found and not lines:
        raise InputError("table_unreadable", f"{path} is not a table of compare.", "Give a file that ends in .jsonl.")
    return lines


def read_results(paths: Sequence[Path], *, budget: Mapping[str, float] | None = None) -> list[dict[str, Any]]:
    """Return the finished lines of tables, the newest of each job.

    Args:
        paths: Tables of one split.
        budget: Only results with this budget, and those of scripts, which have none.

    Raises:
        InputError: `table_unreadable`, or `table_empty` where nothing is finished.
        UsageError: `splits_mixed` or `budgets_mixed`.
    """
    newest = {line["job"]: line for path in paths for line in read_lines(path) if line.get("status") == DONE}
    lines = [line for line in newest.values() if not budget or line["budget"] in (None, budget)]
    names = ", ".join(map(str, paths))
    if not lines:
        raise InputError("table_empty", f"No job of {names} is finished.", "Run compare first, without --report.")
    splits = {line["split"] for line in lines}
    if len(splits) > 1:
        raise UsageError("splits_mixed", f"{names} hold the splits {', '.join(sorted(splits))}.", "Report one of them.")
    budgets = {json.dumps(line["budget"]) for line in lines if line["budget"]}
    if len(budgets) > 1:
        message = f"{names} hold the budgets {', '.join(sorted(budgets))}."
        raise UsageError("budgets_mixed", message, "Choose one by --cpu-seconds or --steps.")
    return lines


def _parse(text: str) -> dict[str, Any] | None:
    """Return a line of a table; None for an incomplete or a foreign one."""
    try:
        line = json.loads(text)
    except ValueError:
        return None
    required = ("job", "status", "arm", "region", "split", "training_case", "seed", "budget")
    return line if isinstance(line, dict) and all(key in line for key in required) else None


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
