"""Files and functions stay short: 350 lines a file, 60 lines a function, 120 lines a command."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from bare_python import REPOSITORY

from HiEndMAECore import COMMANDS

FOLDERS = ("HiEndMAECore", "HiEndMAESegmentation", "Testing")
MAX_FILE_LINES = 350
MAX_FUNCTION_LINES = 60
MAX_COMMAND_LINES = 120

# Each exception is a file, or FILE::FUNCTION, with the reason. A test fails when an exception is no longer needed.
EXCEPTIONS: dict[str, str] = {
    "HiEndMAECore/demo.py": "its steps run the other commands, and no lower layer may do that",
    "HiEndMAECore/finetune.py": "it declares twenty options and checks which exclude each other",
    "HiEndMAECore/pretrain.py": "it declares thirty options, and preprocesses a folder of scans by another command",
}


def relative_name(file: Path) -> str:
    return file.relative_to(REPOSITORY).as_posix()


FILES = {relative_name(file): file for folder in FOLDERS for file in sorted((REPOSITORY / folder).rglob("*.py"))}
COMMAND_FILES = [f"HiEndMAECore/{command}.py" for command in COMMANDS]


def line_count(name: str) -> int:
    return len(FILES[name].read_text(encoding="utf-8").splitlines())


def function_lengths(name: str) -> dict[str, int]:
    """Return the lines of each function of a file, without those of its decorators."""
    tree = ast.parse(FILES[name].read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return {f"{name}::{node.name}": (node.end_lineno or node.lineno) - node.lineno + 1 for node in functions}


def too_long() -> set[str]:
    """Return every file and function above its limit."""
    files = {name for name in FILES if line_count(name) > MAX_FILE_LINES}
    commands = {name for name in COMMAND_FILES if line_count(name) > MAX_COMMAND_LINES}
    lengths = {function: lines for name in FILES for function, lines in function_lengths(name).items()}
    return files | commands | {function for function, lines in lengths.items() if lines > MAX_FUNCTION_LINES}


@pytest.mark.parametrize("name", FILES)
def test_file_is_within_the_limit(name: str) -> None:
    if name not in EXCEPTIONS:
        assert line_count(name) <= MAX_FILE_LINES


@pytest.mark.parametrize("name", COMMAND_FILES)
def test_command_is_within_the_limit(name: str) -> None:
    if name not in EXCEPTIONS:
        assert line_count(name) <= MAX_COMMAND_LINES


@pytest.mark.parametrize("name", FILES)
def test_functions_are_within_the_limit(name: str) -> None:
    lengths = {function: lines for function, lines in function_lengths(name).items() if function not in EXCEPTIONS}
    assert {function: lines for function, lines in lengths.items() if lines > MAX_FUNCTION_LINES} == {}


def test_exceptions_are_still_needed() -> None:
    assert set(EXCEPTIONS) - too_long() == set()


def test_lengths_are_measured() -> None:
    """The tests above would pass if nothing were measured."""
    name = "Testing/Core/test_size_limits.py"
    assert line_count(name) > 50
    assert function_lengths(name)[f"{name}::test_lengths_are_measured"] == 5
