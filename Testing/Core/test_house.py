"""The house stands as DESIGN draws it: arrows run one way, and its doors answer before anything is installed."""

from __future__ import annotations

import ast
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from bare_python import REPOSITORY, run_bare

from HiEndMAECore import DOORS

CORE = REPOSITORY / "HiEndMAECore"
# Floors of the house, the ground first: a module may use its own floor and those below.
FLOORS = {
    "HiEndMAECore": 0,
    "errors": 0,
    "configuration": 0,
    "devices": 0,
    "requirements": 0,
    "reporting": 1,
    "networks": 2,
    "checkpoints": 2,
    "volumes": 2,
    "metrics": 2,
    "inference": 3,
    "training": 4,
    **dict.fromkeys(DOORS, 5),
}
BARE = [
    "HiEndMAECore",
    "HiEndMAECore.errors",
    "HiEndMAECore.configuration",
    "HiEndMAECore.requirements",
    "HiEndMAECore.reporting.events",
    "HiEndMAECore.reporting.front_door",
    "HiEndMAECore.checkpoints.model_folder",
    "HiEndMAECore.checkpoints.catalogue",
    *(f"HiEndMAECore.{door}" for door in DOORS),
]


def name_of(file: Path) -> str:
    parts = file.relative_to(CORE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(file): file for file in sorted(CORE.rglob("*.py"))}


@cache
def tree_of(module: str) -> ast.Module:
    # Python 3.10 is the oldest that the engine promises to run on.
    return ast.parse(MODULES[module].read_text(encoding="utf-8"), str(MODULES[module]), feature_version=(3, 10))


def imports_of(module: str) -> set[str]:
    """Every module that `module` names in an import, at its top or inside a function."""
    package = module if MODULES[module].name == "__init__.py" else module.rpartition(".")[0]
    found: set[str] = set()
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                whole = f"{base}.{alias.name}"
                found.add(whole if whole in MODULES else base)
    return found


def room_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else parts[0]


@pytest.mark.parametrize("module", MODULES)
def test_arrows_run_one_way(module: str) -> None:
    assert room_of(module) in FLOORS, f"{module} is in no room that DESIGN names"
    for used in imports_of(module):
        if used.partition(".")[0] == "HiEndMAECore":
            assert FLOORS[room_of(used)] <= FLOORS[room_of(module)], f"{module} must not use {used}"


def test_no_module_needs_itself() -> None:
    used = {module: {name for name in imports_of(module) if name in MODULES} - {module} for module in MODULES}
    TopologicalSorter(used).prepare()  # raises CycleError, which names the circle


def test_the_imports_are_found() -> None:
    """The two tests above would pass on a house whose imports nobody sees."""
    assert {"HiEndMAECore.errors", "HiEndMAECore.reporting.events", "HiEndMAECore", "threading"} <= imports_of(
        "HiEndMAECore.reporting.reporter"
    )
    assert "HiEndMAECore.metrics.scores" in imports_of("HiEndMAECore.evaluate")


@pytest.mark.parametrize("module", MODULES)
def test_the_engine_knows_no_slicer_and_prints_nothing(module: str) -> None:
    foreign = {name.partition(".")[0].lower() for name in imports_of(module)}
    assert not foreign & {"slicer", "qt", "ctk", "vtk", "pythonqt"}
    calls = [node for node in ast.walk(tree_of(module)) if isinstance(node, ast.Call)]
    printed = [node.lineno for node in calls if isinstance(node.func, ast.Name) and node.func.id == "print"]
    assert not printed, f"{module} prints in line {printed}"


def test_every_door_is_there() -> None:
    assert [door for door in DOORS if f"HiEndMAECore.{door}" not in MODULES] == []


@pytest.mark.parametrize("module", BARE)
def test_it_imports_on_a_bare_python(module: str) -> None:
    told = run_bare(f"import {module}")
    assert told.returncode == 0, told.stderr


@pytest.mark.parametrize("door", DOORS)
def test_a_door_helps_on_a_bare_python(door: str) -> None:
    told = run_bare(f"from HiEndMAECore.{door} import main; main(['--help'])")
    assert told.returncode == 0, told.stderr
    assert told.stdout.startswith(f"usage: python -m HiEndMAECore.{door} ")
    assert "--config" in told.stdout


@pytest.mark.parametrize("door", DOORS)
def test_a_door_is_small(door: str) -> None:
    """A door parses, calls and reports; what is longer belongs into a room."""
    assert len(MODULES[f"HiEndMAECore.{door}"].read_text(encoding="utf-8").splitlines()) <= 200


def test_the_bare_python_is_bare() -> None:
    for package in ("numpy", "torch", "nibabel"):
        assert "ModuleNotFoundError" in run_bare(f"import {package}").stderr
