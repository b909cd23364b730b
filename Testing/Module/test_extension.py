"""What would be installed: exactly the tree's files, laid out so that module and engine find each other."""

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
    """The build folder of the extension, configured by cmake against the stub of Slicer."""
    cmake = shutil.which("cmake")
    if cmake is None or not (shutil.which("cc") and shutil.which("c++")):
        pytest.skip("cmake or a compiler is not installed")
    build = tmp_path_factory.mktemp("build")
    line = [cmake, "-S", str(REPOSITORY), "-B", str(build), f"-DSlicer_DIR={STUB}", "-DBUILD_TESTING=ON"]
    told = subprocess.run(line, capture_output=True, encoding="utf-8", errors="replace", check=False)
    assert told.returncode == 0, told.stdout + told.stderr
    return build


@pytest.fixture(scope="module")
def installed(configured: Path) -> dict[str, Path]:
    """{place below qt-scripted-modules: its source}."""
    lines = (configured / "installed.txt").read_text(encoding="utf-8").splitlines()
    found = {place: Path(source) for source, _, place in (line.partition("|") for line in lines)}
    assert len(found) == len(lines), "two files would land in the same place"
    return found


def wanted() -> set[str]:
    engine = [*(REPOSITORY / "HiEndMAECore").rglob("*.py"), REPOSITORY / "HiEndMAECore" / "py.typed"]
    weights = REPOSITORY / "HiEndMAECore" / "checkpoints" / "weights"
    engine += [file for file in weights.rglob("*") if file.is_file()]
    module = REPOSITORY / "HiEndMAESegmentation"
    files = [module / "HiEndMAESegmentation.py", *(module / "HiEndMAESegmentationLib").rglob("*.py")]
    files += [file for file in (module / "Resources").rglob("*") if file.is_file()]
    return {file.relative_to(REPOSITORY).as_posix() for file in engine} | {
        file.relative_to(module).as_posix() for file in files
    }


def test_every_file_of_the_tree_is_installed_and_no_other(installed: dict[str, Path]) -> None:
    assert set(installed) == wanted()


def test_only_the_module_lies_where_slicer_looks_for_modules(installed: dict[str, Path]) -> None:
    assert [place for place in installed if "/" not in place] == ["HiEndMAESegmentation.py"]
    assert not any(part in {"Testing", "Lib", "utils"} for place in installed for part in Path(place).parts)


def test_laid_out_so_the_engine_answers_on_a_bare_python(installed: dict[str, Path], tmp_path: Path) -> None:
    for place, source in installed.items():
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, tmp_path / place)
    line = [sys.executable, "-S", "-m", "HiEndMAECore.doctor", "--events"]
    told = subprocess.run(line, cwd=tmp_path, capture_output=True, encoding="utf-8", errors="replace", check=False)
    assert told.returncode == 5, told.stderr
    assert json.loads(told.stdout.splitlines()[-1])["code"] == "dependency_missing"
    line = [
        sys.executable,
        "-S",
        "-m",
        "HiEndMAESegmentationLib.engine.offline_package",
        "--help",
    ]  # started as the engine is, from here
    assert subprocess.run(line, cwd=tmp_path, capture_output=True, check=False).returncode == 0


def test_the_entry_for_the_extensions_index_has_the_keys_it_may_have() -> None:
    entry = json.loads((REPOSITORY / "HiEndMAE.json").read_text(encoding="utf-8"))
    assert {"$schema", "category", "scm_url"} <= set(entry)
    optional = {"build_dependencies", "build_subdirectory", "scm_revision", "tier"}
    assert set(entry) - optional == {"$schema", "category", "scm_url"}
    assert Path(entry["scm_url"]).name.startswith("Slicer")


def test_index_and_cmake_agree(configured: Path) -> None:
    told = dict(line.split("=", 1) for line in (configured / "extension.txt").read_text(encoding="utf-8").splitlines())
    entry = json.loads((REPOSITORY / "HiEndMAE.json").read_text(encoding="utf-8"))
    assert told["DEPENDS"].split() == entry["build_dependencies"]
    assert told["HOMEPAGE"] == entry["scm_url"].removesuffix(".git")
    for url in (told["ICONURL"], *told["SCREENSHOTURLS"].split()):
        assert url.startswith("https://raw.githubusercontent.com/")
        assert (REPOSITORY / url.split("/main/", 1)[1]).is_file(), url


def test_the_modules_test_is_registered(configured: Path) -> None:
    assert (
        (configured / "unittests.txt")
        .read_text(encoding="utf-8")
        .strip()
        .endswith("HiEndMAESegmentation/HiEndMAESegmentation.py")
    )


@pytest.mark.parametrize(
    "place", ["Resources/HiEndMAE.png", "HiEndMAESegmentation/Resources/Icons/HiEndMAESegmentation.png"]
)
def test_the_icon_is_128_by_128(place: str) -> None:
    head = (REPOSITORY / place).read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", head[16:24]) == (128, 128)
