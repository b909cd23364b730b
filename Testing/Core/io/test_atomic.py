"""Files and folders are complete or absent, whatever happens while they are written."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from HiEndMAECore.errors import InputError
from HiEndMAECore.io.atomic import atomic_folder, atomic_path, recover_folder, sha256_file, write_bytes, write_text


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def test_write_text_makes_the_folder_and_keeps_line_ends(tmp_path: Path) -> None:
    write_text(tmp_path / "new" / "a.txt", "Käse\nb\r\n")
    assert (tmp_path / "new" / "a.txt").read_bytes() == "Käse\nb\r\n".encode()
    assert names(tmp_path / "new") == ["a.txt"]


def test_write_text_that_cannot_be_written_is_a_typed_error(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for path, text in ((tmp_path / "folder", "a"), (tmp_path / "b.txt", "\ud800")):
        with pytest.raises(InputError) as caught:
            write_text(path, text)
        assert caught.value.code == "output_unwritable"
        assert str(path) in caught.value.message
    assert names(tmp_path) == ["folder"]


def test_atomic_path_after_an_exception_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    write_bytes(path, b"old")

    def fail() -> None:
        with atomic_path(path, suffix=".nii.gz") as temporary:
            assert temporary.name.endswith(".nii.gz")
            temporary.write_bytes(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a.bin"]


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege there")
def test_atomic_path_does_not_follow_planted_links(tmp_path: Path) -> None:
    """Predictable temporary names were followed into the files of others."""
    victim = tmp_path / "victim"
    victim.write_text("precious")
    for planted in (".part.a.txt", "a.txt.part", ".a.txt.part", "a.txt"):
        (tmp_path / planted).symlink_to(victim)
    write_text(tmp_path / "a.txt", "new")
    assert victim.read_text() == "precious"
    assert (tmp_path / "a.txt").read_text() == "new"
    assert not (tmp_path / "a.txt").is_symlink()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no permissions of this kind")
def test_written_files_and_folders_have_the_permissions_of_ordinary_ones(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    (tmp_path / "plain_folder").mkdir()
    write_text(tmp_path / "a.txt", "")
    with atomic_folder(tmp_path / "folder") as temporary:
        (temporary / "x").write_text("")
    assert (tmp_path / "a.txt").stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert (tmp_path / "folder").stat().st_mode == (tmp_path / "plain_folder").stat().st_mode


def test_atomic_folder_replaces_the_whole_folder(tmp_path: Path) -> None:
    for content in ("old", "new"):
        with atomic_folder(tmp_path / "model") as temporary:
            (temporary / content).write_text(content)
    assert names(tmp_path / "model") == ["new"]

    def fail() -> None:
        with atomic_folder(tmp_path / "model") as temporary:
            (temporary / "half").write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert names(tmp_path / "model") == ["new"]
    assert names(tmp_path) == ["model"]


@pytest.mark.parametrize("renames", [1, 2])
def test_folder_whose_replacement_was_killed_is_recovered(tmp_path: Path, renames: int) -> None:
    """A process ends hard after the first and after the second of the two renames."""
    with atomic_folder(tmp_path / "model") as temporary:
        (temporary / "old").write_text("")
    script = f"""
import os
from pathlib import Path
from HiEndMAECore.io import atomic
real, calls = os.replace, []
def replace(*names):
    real(*names)
    calls.append(names)
    if len(calls) == {renames}:
        os._exit(9)
os.replace = replace
with atomic.atomic_folder(Path({str(tmp_path / "model")!r})) as temporary:
    (temporary / "new").write_text("")
"""
    assert subprocess.run([sys.executable, "-c", script], check=False, env=dict(os.environ)).returncode == 9
    recover_folder(tmp_path / "model")
    assert names(tmp_path / "model") == [["old"], ["new"]][renames - 1]
    assert [name for name in names(tmp_path) if name.endswith(".old")] == []


def test_sha256_file_is_that_of_its_content(tmp_path: Path) -> None:
    content = os.urandom(3_000_001)
    (tmp_path / "a").write_bytes(content)
    assert sha256_file(tmp_path / "a") == hashlib.sha256(content).hexdigest()
