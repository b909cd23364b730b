"""Find the project's former private words in file names, identifiers, comments, docstrings, messages and Markdown.

    python Testing/Core/language.py        # prints FILE:LINE: WORD: SOURCE LINE for every word that must be replaced

A word counts as a whole word, or as a part of a snake_case or CamelCase name: `lap` is found in `crops_per_lap` and in
`CropsPerLap`, not in `overlap` or `Laplace`. Names that events, files and scenes store are exempt, each with a reason.
The replacement of each word is in the glossary of the project's design. The module needs the standard library alone.
"""

from __future__ import annotations

import io
import re
import sys
import tokenize
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDERS = ("HiEndMAECore", "HiEndMAESegmentation", "Testing", "Resources", ".ci", ".github")
ROOT_FILES = ("README.md", "CMakeLists.txt", "pyproject.toml")
SUFFIXES = (".py", ".md", ".ui", ".txt", ".cmake", ".toml", ".yml", ".yaml")
OWN_FILES = ("Testing/Core/language.py", "Testing/Core/test_language.py")  # they list the words

# These may occur nowhere. An entry is a word, or several words that follow each other.
WORDS = (
    "door", "doors", "house", "houses", "shelf", "shelves", "conveyor", "conveyors", "convey", "conveys", "intake", "intakes",
    "lean", "hush", "hushed", "crew", "crews", "onlooker", "onlookers", "sweep", "sweeps", "ladder", "ladders",
    "teach", "teaches", "teaching", "taught", "teacher", "teachers", "told", "tells", "kit", "kits", "lap", "laps",
    "doubt", "doubts", "sureness", "spoken", "hear", "hears", "heard", "way home", "in the box",
)  # fmt: skip
# These have an ordinary meaning in sentences, and a private one in file names and identifiers.
WORDS_OF_NAMES = (
    "room", "rooms", "home", "ours", "theirs", "watch", "watches", "watched", "watching", "the box",
)  # fmt: skip
# Meanings of the field, which are never findings: (file, text around the word), both regular expressions.
FIELD_MEANINGS = (
    (r"", r"Path\.home"),  # the user's folder, in the standard library
    (r"distillation", r"\w*[Tt]eachers?\w*"),  # the source network of knowledge distillation
)


@dataclass(frozen=True)
class Exemption:
    """Exact texts that may stand in some files although they contain a private word.

    Attributes:
        texts: Identifiers, quoted strings or options, exactly as they stand in the source. Longer names that contain a
            text are not exempt.
        files: Paths from the repository, or glob patterns of them. Every text must occur in one of them, and every pattern
            must cover a text; `unused` lists the others.
        reason: Why the old word stays.
    """

    texts: tuple[str, ...]
    files: tuple[str, ...]
    reason: str


EXEMPTIONS = (
    Exemption(
        ('"door"', "door="),
        (
            "HiEndMAECore/reporting/events.py",
            "HiEndMAECore/reporting/reporter.py",
            "Testing/Core/reporting/test_reporter.py",
        ),
        "the event `started` names its command in the field `door`",
    ),
    Exemption(
        ("DOORS",),
        ("HiEndMAECore/__init__.py", "Testing/Core/models/test_compatibility.py"),
        "scripts import the former name of COMMANDS",
    ),
    Exemption(
        ("OURS", "in_the_box"),
        ("HiEndMAECore/checkpoints/catalogue.py", "Testing/Core/models/test_compatibility.py"),
        "scripts import former names from `checkpoints`",
    ),
    Exemption(
        ("--teacher",),
        ("HiEndMAECore/demo.py", "Testing/Core/test_commands.py"),
        "hidden old spelling of `demo --training-case`",
    ),
    Exemption(
        ('"teacher"',),
        ("Testing/Benchmarks/one_shot.py", "Testing/Benchmarks/one_shot_report.py"),
        "field of the recorded runs in one_shot.jsonl",
    ),
    Exemption(
        ('"teaching"', "training.teaching"),
        (
            "HiEndMAECore/inference/batch_segmentation.py",
            "HiEndMAECore/models/description.py",
            "HiEndMAECore/models/schema.py",
            "HiEndMAECore/training/model_card.py",
            "Testing/Core/inference_helpers.py",
            "Testing/Core/models/test_model_schema.py",
        ),
        "key of model.json",
    ),
    Exemption(
        ("watch_loss=",),
        ("HiEndMAECore/training/pretraining.py",),
        "field of log.jsonl",
    ),
    Exemption(
        ("HiEndMAE.Taught", "HiEndMAE.TaughtOn"),
        ("HiEndMAESegmentation/HiEndMAESegmentationLib/scene/provenance.py", "Testing/Module/test_scene_provenance.py"),
        "attribute and node reference of saved scenes",
    ),
    Exemption(
        ("teachVolume", "teachSegmentation"),
        (
            "HiEndMAESegmentation/HiEndMAESegmentation.py",
            "HiEndMAESegmentation/HiEndMAESegmentationLib/parameters.py",
            "HiEndMAESegmentation/HiEndMAESegmentationLib/panels/train.py",
            "HiEndMAESegmentation/Resources/UI/Train.ui",
            "Testing/Host/take_pictures.py",
            "Testing/Module/*.py",
        ),
        "parameters of saved scenes",
    ),
    Exemption(
        ('"kit_folder_taken"', '"kit_download_failed"', '"kit_does_not_fit"', '"kit_absent"', '"kit_damaged"'),
        ("HiEndMAESegmentation/HiEndMAESegmentationLib/engine/offline_package.py",),
        "error codes are stable",
    ),
)


@dataclass(frozen=True)
class Finding:
    """A private word at one place of the repository; line 0 is the path of the file itself."""

    file: str
    line: int
    column: int
    word: str
    source: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.word}: {self.source.strip()[:100]}"

    def is_part_of(self, text: str) -> bool:
        """Return whether the finding lies within `text`, where no longer name or option contains that text."""
        before, after = (r"(?<!\w)" if text[0].isalnum() else "", r"(?!\w)" if text[-1].isalnum() else "")
        return self._is_within(before + re.escape(text) + after)

    def has_field_meaning(self) -> bool:
        """Return whether the word is used here as the field uses it."""
        return any(re.search(file, self.file) and self._is_within(text) for file, text in FIELD_MEANINGS)

    def _is_within(self, pattern: str) -> bool:
        return any(match.start() <= self.column < match.end() for match in re.finditer(pattern, self.source))


class _Matcher:
    """Finds a list of words in texts.

    A part of a name is a run of capitals, or of small letters with at most one capital before them: `HiEndMAE` has the parts
    Hi, End and MAE.
    """

    PART = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
    # Between words that follow each other. A sentence may go on in the next line of a comment.
    GAP = re.compile(r"[\s_#\"'`*]*")

    def __init__(self, words: tuple[str, ...]) -> None:
        self.by_first: dict[str, list[tuple[str, ...]]] = {}
        for word in words:
            self.by_first.setdefault(word.split()[0], []).append(tuple(word.split()))

    def find(self, text: str) -> Iterator[tuple[int, str]]:
        """Yield the offset of each word, and the word."""
        text = re.sub(r"\\[nrt]", "  ", text)  # an escaped tab before "old" is not a word
        parts = list(self.PART.finditer(text))
        for index, part in enumerate(parts):
            for words in self.by_first.get(part.group().lower(), ()):
                run = parts[index : index + len(words)]
                gaps = (text[a.end() : b.start()] for a, b in pairwise(run))
                if tuple(p.group().lower() for p in run) == words and all(self.GAP.fullmatch(gap) for gap in gaps):
                    yield part.start(), " ".join(words)


_ANYWHERE = _Matcher(WORDS)
_IN_NAMES = _Matcher(WORDS_OF_NAMES)


def find_words(text: str) -> list[str]:
    """Return the private words of a text that is no name, in their order."""
    return [word for _, word in _ANYWHERE.find(text)]


def find_words_in_name(name: str) -> list[str]:
    """Return the private words of an identifier or a file name, in their order."""
    return [word for _, word in sorted({*_ANYWHERE.find(name), *_IN_NAMES.find(name)})]


def list_files(root: Path) -> Iterator[Path]:
    """Yield the text files whose language is checked, without hidden folders, caches and stored data."""
    yield from (root / name for name in ROOT_FILES if (root / name).is_file())
    for folder in FOLDERS:
        for path in sorted((root / folder).rglob("*")):
            inner = path.relative_to(root / folder).parts
            hidden = any(part.startswith(".") or part == "__pycache__" for part in inner)
            if not hidden and path.is_file() and (path.suffix in SUFFIXES or folder == ".ci"):
                yield path


def find_in_file(path: Path, root: Path) -> Iterator[Finding]:
    """Yield the private words in the path and in the text of a file, in their order, exempt or not."""
    name = path.relative_to(root).as_posix()
    for column, word in sorted({*_ANYWHERE.find(name), *_IN_NAMES.find(name)}):
        yield Finding(name, 0, column, word, name)
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))
    places = set(_ANYWHERE.find(text))
    if path.suffix == ".py":
        # A name inside the braces of an f-string is seen where it is defined; Python 3.12 alone has it as a token.
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.NAME:
                start = starts[token.start[0] - 1] + token.start[1]
                places |= {(start + column, word) for column, word in _IN_NAMES.find(token.string)}
    for offset, word in sorted(places):
        number = bisect_right(starts, offset)
        yield Finding(name, number, offset - starts[number - 1], word, lines[number - 1])


def find_all(root: Path = REPOSITORY) -> list[Finding]:
    """Return the private words of the repository, exempt or not, without those with a meaning of the field."""
    own = {root / name for name in OWN_FILES}
    found = (finding for path in list_files(root) if path not in own for finding in find_in_file(path, root))
    return [finding for finding in found if not finding.has_field_meaning()]


def covers(exemption: Exemption, finding: Finding) -> bool:
    """Return whether an exemption holds for a finding."""
    return any(Path(finding.file).match(pattern) for pattern in exemption.files) and any(
        finding.is_part_of(text) for text in exemption.texts
    )


def not_exempt(findings: list[Finding]) -> list[Finding]:
    """Return the findings that no exemption covers."""
    return [finding for finding in findings if not any(covers(exemption, finding) for exemption in EXEMPTIONS)]


def unused(exemption: Exemption, findings: list[Finding]) -> list[str]:
    """Return the texts and file patterns of an exemption that cover no finding."""
    covered = [finding for finding in findings if covers(exemption, finding)]
    texts = [text for text in exemption.texts if not any(finding.is_part_of(text) for finding in covered)]
    files = [file for file in exemption.files if not any(Path(finding.file).match(file) for finding in covered)]
    return texts + files


def main() -> int:
    """Print every finding that is not exempt; return 1 if there is one."""
    findings = find_all()
    remaining = not_exempt(findings)
    for finding in remaining:
        sys.stdout.write(f"{finding}\n")
    for exemption in EXEMPTIONS:
        for entry in unused(exemption, findings):
            sys.stdout.write(f"not needed any more: the exemption {entry} ({exemption.reason})\n")
    sys.stdout.write(f"{len(remaining)} private words\n")
    return int(bool(remaining))


if __name__ == "__main__":
    raise SystemExit(main())
