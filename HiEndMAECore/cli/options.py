"""One frozen dataclass a door, and its way to command-line arguments, help and JSON and back.

Usage:

    @dataclass(frozen=True, kw_only=True)
    class Config(DoorConfig):
        output: Path = option(help="Folder to write.", required=True)
        steps: int | None = option(None, help="Optimiser steps.")

    config = parse(Config, ["--output", "run", "--steps", "10"], door="pretrain", description="…")
    Config(**from_json(Config, to_json(config))) == config

Field types understood: `str`, `int`, `float`, `bool`, `Path`, `X | None`, `tuple[X, ...]`, `tuple[X, X, X]`, and
`choices` in the option. Needs the standard library alone: the Slicer module fills the same dataclasses.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from HiEndMAECore.errors import UsageError

_DEVICE = re.compile(r"auto|cpu|mps|cuda(:\d+)?")


def option(default: Any = MISSING, *, help: str, choices: Sequence[Any] | None = None, required: bool = False) -> Any:
    """A dataclass field with the sentence that `--help` prints.

    `required` fields still get a default (None or an empty tuple) so that a config may name them; `parse` refuses
    a call that leaves them out.
    """
    metadata = {"help": help, "choices": tuple(choices) if choices else None, "required": required}
    return field(default=None if default is MISSING else default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class CommandConfig:
    """What every door takes."""

    device: str = option("auto", help="Where to compute: auto, cpu, cuda, cuda:1, mps.")
    seed: int = option(0, help="Seed of everything random.")
    events: bool = option(False, help="Write one JSON object a line to standard output instead of bars and sentences.")
    control: Path | None = option(
        None, help="File looked at every second: 'finish' (stop now, usable result) or 'cancel'."
    )
    parent_pid: int | None = option(None, help="End when the process of this number is gone.")

    def __post_init__(self) -> None:
        if not _DEVICE.fullmatch(self.device):
            raise UsageError(
                "device_unknown", f"'{self.device}' is not a device.", "Use auto, cpu, cuda, cuda:1 or mps."
            )
        if self.seed < 0:
            raise UsageError("value_negative", f"--seed is {self.seed}.", "It must be 0 or more.")
        for item in dataclasses.fields(self):
            choices, value = item.metadata.get("choices"), getattr(self, item.name)
            if choices and value is not None and value not in choices:
                named = ", ".join(map(str, choices))
                raise UsageError(
                    "choice_unknown", f"'{value}' is no value for {flag(item.name)}.", f"Use one of: {named}."
                )


Config = TypeVar("Config", bound=CommandConfig)


def flag(name: str) -> str:
    """The command-line flag of a field: `hold_out` -> `--hold-out`."""
    return "--" + name.replace("_", "-")


def require_positive(config: CommandConfig, *names: str) -> None:
    """Raise `UsageError` when a named number is given and not above zero."""
    for name in names:
        value = getattr(config, name)
        numbers = value if isinstance(value, tuple) else (value,)
        if any(number is not None and not number > 0 for number in numbers):
            raise UsageError("value_not_positive", f"{flag(name)} is {value}.", "It must be greater than zero.")


@dataclass(frozen=True)
class _Kind:
    """A field's type, taken apart: scalar type, how many values (None for one, "*" for any), may it be absent."""

    scalar: type
    count: int | str | None
    optional: bool


def _kind(hint: Any) -> _Kind:
    optional = False
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        inner = [part for part in typing.get_args(hint) if part is not type(None)]
        optional = len(inner) < len(typing.get_args(hint))
        if len(inner) != 1:
            raise TypeError(f"unsupported config type {hint}")
        hint = inner[0]
    if typing.get_origin(hint) is tuple:
        parts = typing.get_args(hint)
        if len(parts) == 2 and parts[1] is Ellipsis:
            return _Kind(parts[0], "*", optional)
        return _Kind(parts[0], len(parts), optional)
    return _Kind(hint, None, optional)


def _kinds(config_class: type[CommandConfig]) -> dict[str, _Kind]:
    hints = typing.get_type_hints(config_class)
    return {item.name: _kind(hints[item.name]) for item in dataclasses.fields(config_class)}


def _usage(parser: argparse.ArgumentParser, message: str) -> typing.NoReturn:
    raise UsageError("usage", f"{message[:1].upper()}{message[1:]}".rstrip(".") + ".", f"See: {parser.prog} --help")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> typing.NoReturn:
        _usage(self, message)


def build_parser(config_class: type[CommandConfig], *, command: str, description: str) -> argparse.ArgumentParser:
    """The argument parser of a door. Options that were not given stay out of the namespace."""
    parser = _Parser(
        prog=f"python -m HiEndMAECore.{command}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("--config", metavar="FILE.json", help="Take options from this file; options given here win.")
    kinds = _kinds(config_class)
    for item in dataclasses.fields(config_class):
        kind, message = kinds[item.name], item.metadata["help"]
        shown = item.default not in (None, False, ())
        text = f"{message} (default: {_shown(item.default)})" if shown else message
        text = text.replace("%", "%%")
        if kind.scalar is bool:
            parser.add_argument(flag(item.name), action=argparse.BooleanOptionalAction, help=text)
            continue
        nargs: Any = "+" if kind.count == "*" else kind.count
        choices = item.metadata["choices"]
        metavar = None if choices else item.name.split("_")[-1].upper()
        parser.add_argument(
            flag(item.name),
            action="extend" if kind.count == "*" else "store",  # `--image a --image b` is both, not the last
            type=kind.scalar,
            nargs=nargs,
            choices=choices,
            metavar=metavar,
            help=text,
        )
    return parser


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def parse(config_class: type[Config], argv: Sequence[str], *, command: str, description: str) -> Config:
    """The config that `argv` (and the `--config` file in it) ask for; raises `UsageError`."""
    parser = build_parser(config_class, command=command, description=description)
    given = vars(parser.parse_args(list(argv)))
    values: dict[str, Any] = {}
    file = given.pop("config", None)
    if file is not None:
        values.update(_read_config_file(config_class, Path(file)))
    values.update({name: tuple(value) if isinstance(value, list) else value for name, value in given.items()})
    config = config_class(**values)
    for item in dataclasses.fields(config_class):
        if item.metadata["required"] and getattr(config, item.name) in (None, ()):
            _usage(parser, f"{flag(item.name)} is missing")
    return config


def _read_config_file(config_class: type[CommandConfig], file: Path) -> dict[str, Any]:
    try:
        data = json.loads(file.read_bytes())  # bytes: json knows UTF-16, which Windows' shell writes
    except OSError as error:
        message = f"The config file {file} cannot be read ({error.strerror})."
        raise UsageError("config_unreadable", message, "") from error
    except ValueError as error:
        raise UsageError("config_not_json", f"The config file {file} is not JSON: {error}.", "") from error
    if not isinstance(data, dict):
        raise UsageError("config_not_json", f"The config file {file} holds no JSON object.", "")
    try:
        return from_json(config_class, data)
    except UsageError as error:
        raise UsageError(error.code, f"In {file}: {error.message}", error.advice) from error


def to_json(config: CommandConfig) -> dict[str, Any]:
    """The config as plain JSON values; paths become strings, tuples become lists."""

    def plain(value: Any) -> Any:
        if isinstance(value, Path):
            return str(value)
        if isinstance(value, tuple):
            return [plain(part) for part in value]
        return value

    return {item.name: plain(getattr(config, item.name)) for item in dataclasses.fields(config)}


def from_json(config_class: type[CommandConfig], data: Mapping[str, Any]) -> dict[str, Any]:
    """Checked keyword arguments for `config_class` out of JSON values; raises `UsageError` that names the key."""
    kinds = _kinds(config_class)
    unknown = sorted(set(data) - set(kinds))
    if unknown:
        raise UsageError(
            "config_unknown_key", f"There is no option '{unknown[0]}'.", f"Known: {', '.join(sorted(kinds))}."
        )
    return {name: _from_plain(name, kinds[name], value) for name, value in data.items()}


def _from_plain(name: str, kind: _Kind, value: Any) -> Any:
    if value is None and (kind.optional or kind.count is not None or kind.scalar is Path):
        return () if kind.count == "*" and not kind.optional else None
    if kind.count is None:
        return _scalar(name, kind.scalar, value)
    if not isinstance(value, list) or (kind.count != "*" and len(value) != kind.count):
        size = "" if kind.count == "*" else f" of {kind.count}"
        raise UsageError("config_wrong_type", f"'{name}' must be a list{size}, not {value!r}.", "")
    return tuple(_scalar(name, kind.scalar, part) for part in value)


def _scalar(name: str, wanted: type, value: Any) -> Any:
    fits = {
        bool: isinstance(value, bool),
        int: isinstance(value, int) and not isinstance(value, bool),
        float: isinstance(value, int | float) and not isinstance(value, bool),
        str: isinstance(value, str),
        Path: isinstance(value, str),
    }[wanted]
    if not fits:
        raise UsageError("config_wrong_type", f"'{name}' must be of type {wanted.__name__}, not {value!r}.", "")
    return wanted(value)
