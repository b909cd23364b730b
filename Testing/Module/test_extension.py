"""The installed extension: exactly the files of the tree, laid out so that module and engine find each other."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
STUB = Path(__file__).parent / "stub_slicer"


@pytest.fixture(scope="module")
def configured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the build folder of the extension, configured by cmake with the stub of Slicer."""
    cmake = shutil.which("cmake")
    if cmake is None or not (shutil.which("cc") and shutil.which("c++")):
        pytest.skip("cmake or a compiler is not installed")
    build = tmp_path_factory.mktemp("build")
    line = [cmake, "-S", str(REPOSITORY), "-B", str(build), f"-DSlicer_DIR={STUB}", "-DBUILD_TESTING=ON"]
    result = subprocess.run(line, capture_output=True, encoding="utf-8", errors="replace", check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return build


@pytest.fixture(scope="module")
def installed(configured: Path) -> dict[str, Path]:
    """Return {path below qt-scripted-modules: source file}."""
    lines = (configured / "installed.txt").read_text(encoding="utf-8").splitlines()
    files = {target: Path(source) for source, _, target in (line.partition("|") for line in lines)}
    assert len(files) == len(lines), "two files would have the same path"
    return files


def expected_files() -> set[str]:
    """Return the paths of all files that belong to the extension."""
    engine = [*(REPOSITORY / "HiEndMAECore").rglob("*.py"), REPOSITORY / "HiEndMAECore" / "py.typed"]
    weights = REPOSITORY / "HiEndMAECore" / "models" / "weights"
    engine += [file for file in weights.rglob("*") if file.is_file()]
    engine.append(REPOSITORY / "HiEndMAECore" / "models" / "model.schema.json")
    module = REPOSITORY / "HiEndMAESegmentation"
    files = [module / "HiEndMAESegmentation.py", *(module / "HiEndMAESegmentationLib").rglob("*.py")]
    files += [file for file in (module / "Resources").rglob("*") if file.is_file()]
    return {file.relative_to(REPOSITORY).as_posix() for file in engine} | {
        file.relative_to(module).as_posix() for file in files
    }


def test_extension_installs_exactly_the_files_of_the_tree(installed: dict[str, Path]) -> None:
    assert set(installed) == expected_files()


def test_extension_puts_only_the_module_where_slicer_searches_modules(installed: dict[str, Path]) -> None:
    assert [target for target in installed if "/" not in target] == ["HiEndMAESegmentation.py"]
    assert not any(part in {"Testing", "Lib", "utils"} for target in installed for part in Path(target).parts)


def test_installed_commands_start_on_a_bare_python(installed: dict[str, Path], tmp_path: Path) -> None:
    for target, source in installed.items():
        (tmp_path / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, tmp_path / target)
    line = [sys.executable, "-S", "-m", "HiEndMAECore.doctor", "--events"]
    result = subprocess.run(line, cwd=tmp_path, capture_output=True, encoding="utf-8", errors="replace", check=False)
    assert result.returncode == 5, result.stderr
    assert json.loads(result.stdout.splitlines()[-1])["code"] == "dependency_missing"
    line = [
        sys.executable,
        "-S",
        "-m",
        "HiEndMAESegmentationLib.engine.offline_package",
        "--help",
    ]  # started like the engine's commands
    assert subprocess.run(line, cwd=tmp_path, capture_output=True, check=False).returncode == 0


def test_extensions_index_entry_has_only_allowed_keys() -> None:
    entry = json.loads((REPOSITORY / "HiEndMAE.json").read_text(encoding="utf-8"))
    assert {"$schema", "category", "scm_url"} <= set(entry)
    optional = {"build_dependencies", "build_subdirectory", "scm_revision", "tier"}
    assert set(entry) - optional == {"$schema", "category", "scm_url"}
    assert Path(entry["scm_url"]).name.startswith("Slicer")


def test_extensions_index_entry_agrees_with_cmake(configured: Path) -> None:
    settings = dict(
        line.split("=", 1) for line in (configured / "extension.txt").read_text(encoding="utf-8").splitlines()
    )
    entry = json.loads((REPOSITORY / "HiEndMAE.json").read_text(encoding="utf-8"))
    assert settings["DEPENDS"].split() == entry["build_dependencies"]
    assert settings["HOMEPAGE"] == entry["scm_url"].removesuffix(".git")
    for url in (settings["ICONURL"], *settings["SCREENSHOTURLS"].split()):
        assert url.startswith("https://raw.githubusercontent.com/")
        assert (REPOSITORY / url.split("/main/", 1)[1]).is_file(), url


def test_module_test_is_registered(configured: Path) -> None:
    assert (
        (configured / "unittests.txt")
        .read_text(encoding="utf-8")
        .strip()
        .endswith("HiEndMAESegmentation/HiEndMAESegmentation.py")
    )


@pytest.mark.parametrize(
    "path", ["Resources/HiEndMAE.png", "HiEndMAESegmentation/Resources/Icons/HiEndMAESegmentation.png"]
)
def test_icon_is_128_by_128(path: str) -> None:
    head = (REPOSITORY / path).read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", head[16:24]) == (128, 128)
