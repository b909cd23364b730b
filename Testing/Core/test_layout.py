"""The packages of the engine import one another in one direction, and commands answer on a bare Python."""

from __future__ import annotations

import ast
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from bare_python import REPOSITORY, run_bare

from HiEndMAECore import COMMANDS

CORE = REPOSITORY / "HiEndMAECore"
SLICER_MODULE = REPOSITORY / "HiEndMAESegmentation"
# From the lowest layer to the highest. A package imports itself and the layers before its own; packages of one layer do
# not import each other.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("HiEndMAECore",),  # the version and the names of the commands
    ("errors",),
    ("runtime",),
    ("io",),
    ("reporting",),
    ("preprocessing", "networks", "cli"),
    ("models", "registration"),
    ("checkpoints",),  # compatibility imports of `models`
    ("data",),
    ("evaluation",),
    ("inference",),
    ("training",),
    ("experiments",),
    tuple(command for command in COMMANDS if command != "demo"),
    ("demo", "__main__"),
)
LAYER_OF = {package: number for number, layer in enumerate(LAYERS) for package in layer}
# A command may call another one where that is its purpose.
ALLOWED = {("pretrain", "prepare"): "a folder of scans is preprocessed before it is pretrained on"}
# These import with the standard library alone. The Slicer module imports nothing else of the engine.
BARE = [
    "HiEndMAECore",
    "HiEndMAECore.__main__",
    "HiEndMAECore.errors",
    "HiEndMAECore.cli.options",
    "HiEndMAECore.cli.runner",
    "HiEndMAECore.runtime.requirements",
    "HiEndMAECore.reporting.events",
    "HiEndMAECore.reporting.reporter",
    "HiEndMAECore.io.atomic",
    "HiEndMAECore.io.structure",
    "HiEndMAECore.models.description",
    "HiEndMAECore.io.itk_headers",
    "HiEndMAECore.models.folder",
    "HiEndMAECore.models.catalogue",
    "HiEndMAECore.networks.registry",
    "HiEndMAECore.networks.variants",
    *(f"HiEndMAECore.{command}" for command in COMMANDS),
]


def name_of(file: Path) -> str:
    """Return the dotted name of a module."""
    parts = file.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(file): file for file in sorted(CORE.rglob("*.py"))}
SLICER_MODULES = {name_of(file): file for file in sorted(SLICER_MODULE.rglob("*.py"))}


@cache
def tree_of(module: str) -> ast.Module:
    """Return the syntax tree of a module, in the syntax of Python 3.10, which is the oldest version that is supported."""
    file = (MODULES | SLICER_MODULES)[module]
    return ast.parse(file.read_text(encoding="utf-8"), str(file), feature_version=(3, 10))


def imports_of(module: str) -> set[str]:
    """Return every module that `module` names in an import, at its top or inside a function."""
    file = (MODULES | SLICER_MODULES)[module]
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
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


def package_of(module: str) -> str:
    """Return the package of the engine that has a module; for a module at the top its own name."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else parts[0]


@pytest.mark.parametrize("module", MODULES)
def test_import_against_the_layer_order_is_absent(module: str) -> None:
    package = package_of(module)
    assert package in LAYER_OF, f"{module} is in no package of the layer order"
    for used in imports_of(module):
        other = package_of(used)
        if used.partition(".")[0] != "HiEndMAECore" or other == package or (package, other) in ALLOWED:
            continue
        assert LAYER_OF[other] < LAYER_OF[package], f"{module} must not import {used}"


def test_import_cycle_is_absent() -> None:
    used = {module: {name for name in imports_of(module) if name in MODULES} - {module} for module in MODULES}
    TopologicalSorter(used).prepare()  # raises CycleError, which names the cycle


def test_imports_of_known_modules_are_found() -> None:
    """The two tests above would pass if no import were found."""
    assert {"HiEndMAECore.errors", "HiEndMAECore.reporting.events", "HiEndMAECore", "threading"} <= imports_of(
        "HiEndMAECore.reporting.reporter"
    )
    assert "HiEndMAECore.evaluation.report" in imports_of("HiEndMAECore.evaluate")


@pytest.mark.parametrize("module", MODULES)
def test_engine_imports_no_slicer_and_prints_nothing(module: str) -> None:
    foreign = {name.partition(".")[0].lower() for name in imports_of(module)}
    assert not foreign & {"slicer", "qt", "ctk", "vtk", "pythonqt"}
    calls = [node for node in ast.walk(tree_of(module)) if isinstance(node, ast.Call)]
    printed = [node.lineno for node in calls if isinstance(node.func, ast.Name) and node.func.id == "print"]
    assert not printed, f"{module} prints in line {printed}"


@pytest.mark.parametrize("module", SLICER_MODULES)
def test_slicer_module_imports_bare_modules_of_the_engine_only(module: str) -> None:
    """Slicer's own Python may lack every package. What needs more runs in a child process."""
    used = {name for name in imports_of(module) if name.partition(".")[0] == "HiEndMAECore"}
    assert used <= set(BARE), f"{module} must not import {sorted(used - set(BARE))}"


def test_imports_of_the_slicer_module_are_found() -> None:
    """The test above would pass if no import were found."""
    used = set().union(*(imports_of(module) for module in SLICER_MODULES))
    assert {"HiEndMAECore.errors", "HiEndMAECore.reporting.events", "HiEndMAECore.segment"} <= used


def test_every_command_has_a_module() -> None:
    assert [command for command in COMMANDS if f"HiEndMAECore.{command}" not in MODULES] == []


@pytest.mark.parametrize("module", BARE)
def test_module_imports_on_a_bare_python(module: str) -> None:
    result = run_bare(f"import {module}")
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_command_prints_its_help_on_a_bare_python(command: str) -> None:
    result = run_bare(f"from HiEndMAECore.{command} import main; main(['--help'])")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"usage: python -m HiEndMAECore.{command} ")
    assert "--config" in result.stdout


def test_console_script_runs_a_command_on_a_bare_python() -> None:
    result = run_bare("from HiEndMAECore.__main__ import main; raise SystemExit(main(['segment', '--help']))")
    assert result.returncode == 0, result.stderr
    assert "--model" in result.stdout
    assert run_bare("from HiEndMAECore.__main__ import main; raise SystemExit(main(['sgment']))").returncode == 2


def test_bare_python_has_no_packages() -> None:
    for package in ("numpy", "torch", "nibabel", "psutil"):
        assert "ModuleNotFoundError" in run_bare(f"import {package}").stderr
