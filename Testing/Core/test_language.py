"""The repository speaks the field's language: private words of earlier versions occur nowhere but in stored names."""

from __future__ import annotations

from pathlib import Path

import language
import pytest
from language import EXEMPTIONS, Exemption, Finding, find_all, find_words, find_words_in_name


@pytest.fixture(scope="module")
def findings() -> list[Finding]:
    return find_all()


def test_repository_contains_no_private_word(findings: list[Finding]) -> None:
    remaining = language.not_exempt(findings)
    listed = "\n".join(map(str, remaining[:100]))
    assert not remaining, f"{len(remaining)} private words (python Testing/Core/language.py lists all):\n{listed}"


@pytest.mark.parametrize("exemption", EXEMPTIONS, ids=lambda exemption: exemption.texts[0])
def test_exemption_is_still_needed(exemption: Exemption, findings: list[Finding]) -> None:
    assert language.unused(exemption, findings) == []


@pytest.mark.parametrize(
    "text",
    [
        "overlap Laplace collapse lapse",
        "indoor outdoors warehouse household",
        "scikit-image toolkit SimpleITK Kitware",
        "clean boolean leaner",
        "shear hearing undoubtedly",
        r"a\told file",  # a tab and `old`
        "The box of the body. Go home, there is room to watch ours.",
    ],
)
def test_false_friend_in_text_is_not_found(text: str) -> None:
    assert find_words(text) == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Which door? Doors.", ["door", "doors"]),
        ("crops_per_lap CropsPerLap CROPS_A_LAP lap2", ["lap", "lap", "lap", "lap"]),
        ("HiEndMAE.TaughtOn MRMLTeacherNode", ["taught", "teacher"]),
        ("it is told on the way home", ["told", "way home"]),
        ("# the weights in\n    # the box", ["in the box"]),
        ("in_the_box", ["in the box"]),
        ("`kit`, *kits* and \"kit_absent\"", ["kit", "kits", "kit"]),
    ],
)  # fmt: skip
def test_private_word_in_text_is_found(text: str, words: list[str]) -> None:
    assert find_words(text) == words


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("room_of", ["room"]),
        ("test_the_box", ["the box"]),
        ("OursAndTheirs", ["ours", "theirs"]),
        ("HOME_BYTES", ["home"]),
        ("watched_crops", ["watched"]),
        ("open_door", ["door"]),
        ("bounding_box", []),
        ("box", []),
        ("headroom", []),
        ("Watcher", []),
    ],
)
def test_private_meaning_is_found_in_names(name: str, words: list[str]) -> None:
    assert find_words_in_name(name) == words


def _repository(root: Path, files: dict[str, str]) -> list[Finding]:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    return find_all(root)


def test_finding_names_file_line_and_word(tmp_path: Path) -> None:
    found = _repository(
        tmp_path,
        {
            "HiEndMAECore/intake.py": '"""A module.\n\nIt is told."""\nhome = f"a {1} kit"\n',
            "HiEndMAESegmentation/Resources/Train.ui": "<string>Teach</string>",
            "README.md": "# Title\n\nThe house\n",
        },
    )
    assert [(f.file, f.line, f.word) for f in found] == [
        ("README.md", 3, "house"),
        ("HiEndMAECore/intake.py", 0, "intake"),
        ("HiEndMAECore/intake.py", 3, "told"),
        ("HiEndMAECore/intake.py", 4, "home"),
        ("HiEndMAECore/intake.py", 4, "kit"),
        ("HiEndMAESegmentation/Resources/Train.ui", 1, "teach"),
    ]


def test_hidden_folders_caches_and_data_are_not_read(tmp_path: Path) -> None:
    files = ("Testing/.hypothesis/a.py", "Testing/__pycache__/b.py", "Testing/c.jsonl", "build/d.py", ".venv/e.py")
    assert _repository(tmp_path, dict.fromkeys(files, "door = 1\n")) == []


def test_meanings_of_the_field_are_not_found(tmp_path: Path) -> None:
    found = _repository(
        tmp_path,
        {
            "HiEndMAECore/training/objectives/distillation.py": "teacher = load_teacher()\n",
            "HiEndMAECore/training/loop.py": "folder = Path.home()\nteacher = 1\n",
        },
    )
    assert [str(finding) for finding in found] == ["HiEndMAECore/training/loop.py:2: teacher: teacher = 1"]


@pytest.mark.parametrize(
    ("source", "exempt"),
    [
        ('x = training["teaching"]', True),
        ('x = training["teaching_scans"]', False),
        ("teaching = 1", False),
        ('"""The teaching scans."""', False),
    ],
)
def test_exemption_covers_its_exact_text_only(tmp_path: Path, source: str, exempt: bool) -> None:
    (finding,) = _repository(tmp_path, {"HiEndMAECore/models/a.py": source + "\n"})
    exemption = Exemption(('"teaching"',), ("HiEndMAECore/models/*.py",), "key of model.json")
    assert language.covers(exemption, finding) is exempt
    assert language.unused(exemption, [finding]) == ([] if exempt else ['"teaching"', "HiEndMAECore/models/*.py"])
    elsewhere = Exemption(('"teaching"',), ("HiEndMAECore/io/*.py",), "key of model.json")
    assert not language.covers(elsewhere, finding)


def test_report_lists_findings_and_fails(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(language, "find_all", lambda: [Finding("a.py", 7, 0, "door", "door = 1\n")])
    assert language.main() == 1
    assert capsys.readouterr().out.splitlines()[0] == "a.py:7: door: door = 1"
