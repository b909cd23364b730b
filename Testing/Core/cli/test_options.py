"""Configs of commands: the command line, the help and JSON know the same options and refuse the same mistakes."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from HiEndMAECore.cli.options import CommandConfig, build_parser, from_json, option, parse, require_positive, to_json
from HiEndMAECore.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Sample(CommandConfig):
    """A config with every type of field, a required option and a renamed one."""

    output: Path = option(help="Folder to write.", required=True)
    image: tuple[Path, ...] = option((), help="Scans.")
    steps: int | None = option(None, help="Optimizer steps, 100 % of them.")
    ratio: float = option(0.75, help="Masked share.")
    window: tuple[float, float] = option((-175.0, 250.0), help="Window in HU.")
    spacing: tuple[float, float, float] | None = option(None, help="Voxel edges in mm.")
    variant: str = option("small", help="Size of the network.", choices=("small", "large"))
    preset: str | None = option(None, help="Name of a preset.")
    mirror: bool = option(True, help="Mirror the scan.")
    training_case: tuple[str, ...] = option((), help="Labelled cases.", aliases=("--subject",))
    verbose: bool = option(False, help="Log more.", aliases=("--chatty",))

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
    output=PATHS,
    image=st.lists(PATHS, max_size=3).map(tuple),
    steps=st.none() | st.integers(1),
    ratio=NUMBERS,
    window=st.tuples(HOUNSFIELD, HOUNSFIELD),
    spacing=st.none() | st.tuples(ABOVE_ZERO, ABOVE_ZERO, ABOVE_ZERO),
    variant=st.sampled_from(("small", "large")),
    preset=st.none() | TEXT,
    mirror=st.booleans(),
    training_case=st.lists(TEXT, max_size=3).map(tuple),
    verbose=st.booleans(),
    device=st.sampled_from(("auto", "cpu", "cuda", "cuda:3", "mps")),
    seed=st.integers(0),
    events=st.booleans(),
    control=st.none() | PATHS,
    parent_pid=st.none() | st.integers(1),
)


def parse_sample(*argv: str) -> Sample:
    return parse(Sample, argv, command="sample", description="A sample.")


def parse_error(*argv: str) -> UsageError:
    with pytest.raises(UsageError) as caught:
        parse_sample(*argv)
    return caught.value


@settings(deadline=None)
@given(SAMPLES)
def test_to_json_and_from_json_return_an_equal_config(config: Sample) -> None:
    text = json.dumps(to_json(config))
    assert Sample(**from_json(Sample, json.loads(text))) == config


@settings(deadline=None, max_examples=50)
@given(SAMPLES)
def test_parse_of_all_options_returns_an_equal_config(config: Sample) -> None:
    argv: list[str] = []
    for item in fields(config):
        name, value = "--" + item.name.replace("_", "-"), getattr(config, item.name)
        if isinstance(value, bool):
            argv.append(name if value else name.replace("--", "--no-", 1))
        elif isinstance(value, tuple) and item.name in ("image", "training_case"):
            argv += [f"{name}={part}" for part in value]  # repeated options add up
        elif isinstance(value, tuple):
            argv += [name, *map(repr, value)]
        elif value is not None:
            argv.append(f"{name}={value}")
    assert parse_sample(*argv) == config


def test_parse_example_returns_its_values() -> None:
    line = "--output run --image a.nii b.nii --image c.nii --steps 5 --window -160 240.5 --spacing 1 1 2.5 --no-mirror"
    config = parse_sample(*line.split())
    assert config == Sample(
        output=Path("run"),
        image=(Path("a.nii"), Path("b.nii"), Path("c.nii")),
        steps=5,
        window=(-160.0, 240.5),
        spacing=(1.0, 1.0, 2.5),
        mirror=False,
    )


def test_parse_option_in_config_file_and_on_the_line_takes_the_line(tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    file.write_text(json.dumps({"output": "from file", "steps": 7, "ratio": 1, "mirror": False, "image": ["a", "b"]}))
    config = parse_sample("--config", str(file), "--steps", "9", "--mirror", "--image", "c")
    assert (config.output, config.steps, config.mirror) == (Path("from file"), 9, True)
    assert config.image == (Path("c"),)
    assert (config.ratio, type(config.ratio)) == (1.0, float)
    whole = tmp_path / "whole.json"
    whole.write_text(json.dumps(to_json(config)), encoding="utf-16")  # as Windows' shell writes it
    assert parse_sample("--config", str(whole)) == config


@pytest.mark.parametrize(
    ("data", "code", "quoted"),
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
        ({"subject": "p1"}, "config_wrong_type", "subject"),
        ({"subject": ["p1"], "training_case": ["p2"]}, "config_key_twice", "training_case"),
        ({"variant": "huge"}, "choice_unknown", "variant"),
        ({"device": "gpu"}, "device_unknown", "gpu"),
        ({"steps": 0}, "value_not_positive", "steps"),
        ([1, 2], "config_not_json", "run.json"),
    ],
)
def test_parse_wrong_config_file_names_the_key(tmp_path: Path, data: Any, code: str, quoted: str) -> None:
    file = tmp_path / "run.json"
    file.write_text(json.dumps(data))
    error = parse_error("--output", "x", "--config", str(file))
    assert (error.code, quoted in error.message) == (code, True)


def test_parse_unreadable_config_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "broken.json"
    file.write_text("{steps: 5}")
    assert parse_error("--config", str(file)).code == "config_not_json"
    assert parse_error("--config", str(tmp_path / "absent.json")).code == "config_unreadable"
    file.write_bytes(b"\xff\xff\xff")
    assert parse_error("--config", str(file)).code == "config_not_json"


@pytest.mark.parametrize(
    ("line", "quoted"),
    [
        ("", "--output is missing"),
        ("--output x --stepz 5", "--stepz"),
        ("--output x --step 5", "--step"),  # an abbreviation would change its meaning when an option is added
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
def test_parse_wrong_command_line_names_the_mistake(line: str, quoted: str) -> None:
    error = parse_error(*line.split())
    assert quoted in error.message
    assert error.exit_code == 2


def test_help_lists_every_option_and_default() -> None:
    text = build_parser(Sample, command="sample", description="A sample.").format_help()
    for item in fields(Sample):
        assert "--" + item.name.replace("_", "-") in text
    for part in (
        "python -m HiEndMAECore.sample",
        "A sample.",
        "100 % of them",
        "-175.0 250.0",
        "{small,large}",
        "0.75",
    ):
        assert part in text
    assert "SUPPRESS" not in text


def test_help_hides_old_spellings() -> None:
    text = build_parser(Sample, command="sample", description="A sample.").format_help()
    assert "--training-case" in text
    assert "subject" not in text
    assert "chatty" not in text


@pytest.mark.parametrize("spelling", ["--training-case", "--subject"])
def test_parse_renamed_option_accepts_both_spellings(spelling: str) -> None:
    assert parse_sample("--output", "x", spelling, "p1", "p2", spelling, "p3").training_case == ("p1", "p2", "p3")


def test_parse_renamed_switch_accepts_its_old_negation() -> None:
    assert parse_sample("--output", "x", "--chatty").verbose is True
    assert parse_sample("--output", "x", "--verbose", "--no-chatty").verbose is False


def test_parse_renamed_option_in_config_file_accepts_the_old_name(tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    file.write_text(json.dumps({"output": "x", "subject": ["p1"], "chatty": True}))
    config = parse_sample("--config", str(file))
    assert (config.training_case, config.verbose) == (("p1",), True)
    assert set(to_json(config)) & {"subject", "chatty"} == set()
    assert parse_sample("--config", str(file), "--subject", "p2").training_case == ("p2",)


def test_config_without_a_required_option_is_refused_in_python() -> None:
    with pytest.raises(UsageError, match="--output is missing"):
        Sample(steps=3)


def test_config_file_with_null_for_a_required_option_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    file.write_text(json.dumps({"output": None}))
    assert "--output is missing" in parse_error("--config", str(file)).message


def test_required_option_with_a_default_may_be_absent_in_python_only() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Lenient(CommandConfig):
        input: tuple[Path, ...] = option((), help="Scans.", required=True)
        output: Path | None = option(None, help="Folder to write.", required=True)

    assert (Lenient().input, Lenient().output) == ((), None)
    with pytest.raises(UsageError, match="--input is missing"):
        parse(Lenient, ["--output", "x"], command="lenient", description="")
    with pytest.raises(UsageError, match="--output is missing"):
        parse(Lenient, ["--input", "x"], command="lenient", description="")


def test_switch_whose_name_is_a_negation_is_set_by_its_own_name(tmp_path: Path) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Negated(CommandConfig):
        no_atlas: bool = option(False, help="Keep no atlas.")

    def parse_negated(*argv: str) -> bool:
        return parse(Negated, argv, command="negated", description="").no_atlas

    assert parse_negated() is False
    assert parse_negated("--no-atlas") is True
    file = tmp_path / "run.json"
    file.write_text(json.dumps({"no_atlas": True}))
    assert parse_negated("--config", str(file)) is True
    assert parse_negated("--config", str(file), "--atlas") is False
    with pytest.raises(UsageError):
        parse_negated("--no-no-atlas")
