"""Find the project's former private words in names, docstrings, comments, messages and prose.

    python Testing/Core/language.py        # prints file:line: word, for whoever cleans up

The words of `ENFORCED` may occur nowhere, those of `IN_NAMES` not as parts of names. A word counts as a whole word, or as a
part of a snake_case or CamelCase name: `lap` is found in `crops_per_lap` and not in `overlap`. Names that files, events and
scenes store are exempt, each with its reason.
"""

from __future__ import annotations

import io
import re
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
ENFORCED = (
    "door", "doors", "house", "houses", "shelf", "conveyor", "convey", "intake", "lean", "hush", "crew", "onlooker", "sweep",
    "sweeps", "ladder", "teach", "teaches", "taught", "teaching", "teacher", "teachers", "told", "tells", "kit",
    "kits", "lap", "laps", "doubt", "doubts", "sureness", "spoken", "hear", "hears", "heard",
)  # fmt: skip
PHRASES = ("way home", "in the box", "is told", "are told")
IN_NAMES = ("room", "rooms", "ours", "theirs", "home", "watched", "watching")
PROSE = (".md", ".toml", ".yml", ".cmake", ".txt", ".ui", ".sh")
FOLDERS = ("HiEndMAECore", "HiEndMAESegmentation", "Testing", "Resources", ".ci", ".github")
FILES = ("README.md", "CMakeLists.txt", "pyproject.toml", "constraints.txt")


@dataclass(frozen=True)
class Exemption:
    """Words that may stand in some files.

    Attributes:
        words: The words.
        files: Glob pattern of the files, from the repository.
        context: Text that the line must contain, as a regular expression.
        reason: Why they may.
    """

    words: tuple[str, ...]
    files: str
    context: str
    reason: str


EXEMPTIONS: tuple[Exemption, ...] = (
    Exemption(
        ("door", "doors"),
        "HiEndMAECore/reporting/*.py",
        r"door",
        "the field `door` of the event `started` is a contract",
    ),
    Exemption(("doors",), "HiEndMAECore/__init__.py", r"DOORS", "scripts import the former name of COMMANDS"),
)


@dataclass(frozen=True)
class Finding:
    """One private word."""

    file: str
    line: int
    word: str
    text: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.word}: {self.text.strip()[:100]}"


def parts_of(text: str) -> list[str]:
    """Return the words of a text and the parts of its snake_case and CamelCase names, in lower case."""
    spaced = re.sub(r"([a-z0-9])([A-Z])|([A-Z]+)([A-Z][a-z])", r"\1\3 \2\4", text)
    return [word.lower() for word in re.findall(r"[A-Za-z]+", spaced)]


def words_in(text: str, words: tuple[str, ...]) -> list[str]:
    """Return those of `words` that occur in a text, and the phrases in it."""
    found = [word for word in parts_of(text) if word in words]
    if words is ENFORCED:
        lowered = " ".join(text.lower().split())
        found += [phrase for phrase in PHRASES if re.search(rf"\b{phrase}\b", lowered)]
    return found


def files_of(root: Path) -> Iterator[Path]:
    """Yield the text files whose language is checked."""
    for name in FILES:
        if (root / name).is_file():
            yield root / name
    for folder in FOLDERS:
        for path in sorted((root / folder).rglob("*")):
            hidden = any(part.startswith(".") and part not in FOLDERS for part in path.relative_to(root).parts)
            if path.is_file() and not hidden and "__pycache__" not in path.parts and path.suffix in (".py", *PROSE):
                yield path


def findings_in(path: Path, root: Path) -> Iterator[Finding]:
    """Yield every private word in the name and the text of a file, exempt or not."""
    name = path.relative_to(root).as_posix()
    for word in words_in(name, ENFORCED):
        yield Finding(name, 0, word, "the name of the file")
    text = path.read_text(encoding="utf-8")
    for number, line in enumerate(text.splitlines(), start=1):
        for word in words_in(line, ENFORCED):
            yield Finding(name, number, word, line)
    if path.suffix == ".py":
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.NAME:
                for word in words_in(token.string, IN_NAMES):
                    yield Finding(name, token.start[0], word, token.line)


def is_exempt(finding: Finding, exemption: Exemption) -> bool:
    """Tell whether an exemption covers a finding."""
    return (
        finding.word in exemption.words
        and Path(finding.file).match(exemption.files)
        and re.search(exemption.context, finding.text) is not None
    )


def all_findings(root: Path = REPOSITORY) -> list[Finding]:
    """Return every private word in the repository, exempt or not."""
    own = {Path(__file__).name, "test_language.py"}  # the lists of words
    return [finding for path in files_of(root) if path.name not in own for finding in findings_in(path, root)]


def main() -> int:
    """Print the findings that no exemption covers."""
    findings = [f for f in all_findings() if not any(is_exempt(f, exemption) for exemption in EXEMPTIONS)]
    for finding in findings:
        sys.stdout.write(f"{finding}\n")
    sys.stdout.write(f"{len(findings)} private words\n")
    return int(bool(findings))


if __name__ == "__main__":
    raise SystemExit(main())
