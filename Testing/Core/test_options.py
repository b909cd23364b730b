"""One dataclass, three faces: command line, help and JSON tell the same options and refuse the same mistakes."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from HiEndMAECore.cli.options import CommandConfig, build_parser, from_json, option, parse, require_positive, to_json
from HiEndMAECore.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Sample(CommandConfig):
    """Every type of field that is understood."""

    output: Path = option(help="Folder to write.", required=True)
    image: tuple[Path, ...] = option((), help="Scans.")
    steps: int | None = option(None, help="Optimiser steps, 100 % of them.")
    ratio: float = option(0.75, help="Masked share.")
    window: tuple[float, float] = option((-175.0, 250.0), help="Window in HU.")
    spacing: tuple[float, float, float] | None = option(None, help="Voxel edges in mm.")
    variant: str = option("small", help="Size of the network.", choices=("small", "large"))
    preset: str | None = option(None, help="Name of a preset.")
    mirror: bool = option(True, help="Mirror the scan.")

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "steps", "spacing")


NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
HOUNSFIELD = st.integers(-8192, 8192).map(lambda n: n / 8)  # argparse takes "-1e-07" for an option
ABOVE_ZERO = st.floats(min_value=0, exclude_min=True, allow_infinity=False)
TEXT = st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\0"), min_size=1)
PATHS = TEXT.map(Path)
SAMPLES = st.builds(
    Sample,
    output=st.none() | PATHS,
    image=st.lists(PATHS, max_size=3).map(tuple),
    steps=st.none() | st.integers(1),
    ratio=NUMBERS,
    window=st.tuples(HOUNSFIELD, HOUNSFIELD),
    spacing=st.none() | st.tuples(ABOVE_ZERO, ABOVE_ZERO, ABOVE_ZERO),
    variant=st.sampled_from(("small", "large")),
    preset=st.none() | TEXT,
    mirror=st.booleans(),
    device=st.sampled_from(("auto", "cpu", "cuda", "cuda:3", "mps")),
    seed=st.integers(0),
    events=st.booleans(),
    control=st.none() | PATHS,
    parent_pid=st.none() | st.integers(1),
)


def given_line(*argv: str) -> Sample:
    return parse(Sample, argv, command="sample", description="A sample.")


def refusal(*argv: str) -> UsageError:
    with pytest.raises(UsageError) as caught:
        given_line(*argv)
    return caught.value


@settings(deadline=None)
@given(SAMPLES)
def test_a_config_survives_json(config: Sample) -> None:
    text = json.dumps(to_json(config))
    assert Sample(**from_json(Sample, json.loads(text))) == config


@settings(deadline=None, max_examples=50)
@given(SAMPLES.map(lambda config: replace(config, output=config.output or Path("run"))))
def test_a_config_survives_the_command_line(config: Sample) -> None:
    argv: list[str] = []
    for item in fields(config):
        name, value = "--" + item.name.replace("_", "-"), getattr(config, item.name)
        if isinstance(value, bool):
            argv.append(name if value else name.replace("--", "--no-", 1))
        elif isinstance(value, tuple) and item.name == "image":
            argv += [f"{name}={path}" for path in value]  # repeated options add up
        elif isinstance(value, tuple):
            argv += [name, *map(repr, value)]
        elif value is not None:
            argv.append(f"{name}={value}")
    assert given_line(*argv) == config


def test_the_command_line_by_example() -> None:
    line = "--output run --image a.nii b.nii --image c.nii --steps 5 --window -160 240.5 --spacing 1 1 2.5 --no-mirror"
    config = given_line(*line.split())
    assert config == Sample(
        output=Path("run"),
        image=(Path("a.nii"), Path("b.nii"), Path("c.nii")),
        steps=5,
        window=(-160.0, 240.5),
        spacing=(1.0, 1.0, 2.5),
        mirror=False,
    )


def test_a_config_file_gives_way_to_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    file.write_text(json.dumps({"output": "from file", "steps": 7, "ratio": 1, "mirror": False, "image": ["a", "b"]}))
    config = given_line("--config", str(file), "--steps", "9", "--mirror", "--image", "c")
    assert (config.output, config.steps, config.mirror) == (Path("from file"), 9, True)
    assert config.image == (Path("c"),)
    assert (config.ratio, type(config.ratio)) == (1.0, float)
    whole = tmp_path / "whole.json"
    whole.write_text(json.dumps(to_json(config)), encoding="utf-16")  # what Windows' shell writes
    assert given_line("--config", str(whole)) == config


@pytest.mark.parametrize(
    ("data", "code", "named"),
    [
        ({"stepz": 1}, "config_unknown_key", "stepz"),
        ({"steps": "5"}, "config_wrong_type", "steps"),
        ({"steps": 5.5}, "config_wrong_type", "steps"),
        ({"steps": True}, "config_wrong_type", "steps"),
        ({"mirror": 1}, "config_wrong_type", "mirror"),
        ({"ratio": None}, "config_wrong_type", "ratio"),
        ({"output": 3}, "config_wrong_type", "output"),
        ({"image": "a.nii"}, "config_wrong_type", "image"),
        ({"image": [1]}, "config_wrong_type", "image"),
        ({"window": [1, 2, 3]}, "config_wrong_type", "window"),
        ({"variant": "huge"}, "choice_unknown", "variant"),
        ({"device": "gpu"}, "device_unknown", "gpu"),
        ({"steps": 0}, "value_not_positive", "steps"),
        ([1, 2], "config_not_json", "run.json"),
    ],
)
def test_a_wrong_config_file_is_refused_by_name(tmp_path: Path, data: Any, code: str, named: str) -> None:
    file = tmp_path / "run.json"
    file.write_text(json.dumps(data))
    error = refusal("--output", "x", "--config", str(file))
    assert (error.code, named in error.message) == (code, True)


def test_a_config_file_that_is_none_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "broken.json"
    file.write_text("{steps: 5}")
    assert refusal("--config", str(file)).code == "config_not_json"
    assert refusal("--config", str(tmp_path / "absent.json")).code == "config_unreadable"
    file.write_bytes(b"\xff\xff\xff")
    assert refusal("--config", str(file)).code == "config_not_json"


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("", "--output is missing"),
        ("--output x --stepz 5", "--stepz"),
        ("--output x --step 5", "--step"),  # no abbreviations: they change meaning when options are added
        ("--output x --steps five", "five"),
        ("--output x --steps -3", "--steps"),
        ("--output x --spacing 1 1", "--spacing"),
        ("--output x --spacing 1 1 0", "--spacing"),
        ("--output x --variant huge", "huge"),
        ("--output x --device cuda:one", "cuda:one"),
        ("--output x --device auto:1", "auto:1"),
        ("--output x ../scan.nii", "../scan.nii"),
    ],
)
def test_a_wrong_command_line_is_refused_by_name(line: str, named: str) -> None:
    error = refusal(*line.split())
    assert named in error.message
    assert error.exit_code == 2


def test_help_tells_every_option_and_default() -> None:
    text = build_parser(Sample, command="sample", description="A sample.").format_help()
    for item in fields(Sample):
        assert "--" + item.name.replace("_", "-") in text
    for told in (
        "python -m HiEndMAECore.sample",
        "A sample.",
        "100 % of them",
        "-175.0 250.0",
        "{small,large}",
        "0.75",
    ):
        assert told in text
    assert "SUPPRESS" not in text
