"""One frozen dataclass per command, and its conversion to and from command-line arguments, help and JSON.

Usage:

    @dataclass(frozen=True, kw_only=True)
    class PretrainConfig(CommandConfig):
        output: Path = option(help="Folder to write.", required=True)
        steps: int | None = option(None, help="Optimizer steps.")

    config = parse(PretrainConfig, ["--output", "run", "--steps", "10"], command="pretrain", description="…")
    PretrainConfig(**from_json(PretrainConfig, to_json(config))) == config

The types of fields are `str`, `int`, `float`, `bool`, `Path`, `X | None`, `tuple[X, ...]` and `tuple[X, X, X]`. This module
needs the standard library alone, because the Slicer module fills the same dataclasses.
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
_NEGATION = "--no-"


def option(
    default: Any = MISSING,
    *,
    help: str,
    choices: Sequence[Any] | None = None,
    required: bool = False,
    aliases: Sequence[str] = (),
    metavar: str | tuple[str, ...] | None = None,
) -> Any:
    """Return a dataclass field that is an option of a command.

    The type of a required option needs no None: a config without it cannot be built, neither by `parse` nor in Python. Where
    a required option has a default, only `parse` demands it.

    Args:
        default: Value when the option is not given. Options that are not required default to None.
        help: The sentence that `--help` prints.
        choices: Allowed values.
        required: True when the command line or the config file must give the option.
        aliases: Old spellings of a renamed option, such as "--old-name". Command lines and config files may use them, and
            `--help` hides them.
        metavar: What `--help` prints for the value, one name for each of several values (default: from the option's name).
    """
    metadata = {
        "help": help,
        "choices": tuple(choices) if choices else None,
        "required": required,
        "has_default": default is not MISSING,
        "aliases": tuple(aliases),
        "metavar": metavar,
    }
    return field(default=None if default is MISSING else default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class CommandConfig:
    """The options that every command takes.

    Raises:
        UsageError: `usage`, for a missing required option; `device_unknown`, `value_negative` or `choice_unknown`, for a
            value that is not allowed.
    """

    device: str = option("auto", help="Where to compute: auto, cpu, cuda, cuda:1, mps.")
    seed: int = option(0, help="Random seed (default: 0).")
    events: bool = option(
        False, help="Write one JSON object per line to standard output instead of progress bars and sentences."
    )
    control: Path | None = option(
        None, help="File that is read every second: 'finish' (stop now, usable result) or 'cancel'."
    )
    parent_pid: int | None = option(None, help="Exit when the process with this ID no longer exists.")

    def __post_init__(self) -> None:
        if not _DEVICE.fullmatch(self.device):
            raise UsageError(
                "device_unknown", f"'{self.device}' is not a device.", "Use auto, cpu, cuda, cuda:1 or mps."
            )
        if self.seed < 0:
            raise UsageError("value_negative", f"--seed is {self.seed}.", "It must be 0 or more.")
        for item in dataclasses.fields(self):
            choices, value = item.metadata.get("choices"), getattr(self, item.name)
            if item.metadata.get("required") and not item.metadata["has_default"] and value in (None, ()):
                raise UsageError("usage", f"{flag(item.name)} is missing.")
            if choices and value is not None and value not in choices:
                names = ", ".join(map(str, choices))
                raise UsageError(
                    "choice_unknown", f"'{value}' is not a valid value for {flag(item.name)}.", f"Use one of: {names}."
                )


Config = TypeVar("Config", bound=CommandConfig)


def flag(name: str) -> str:
    """Return the command-line flag of a field: `--hold-out` for `hold_out`."""
    return "--" + name.replace("_", "-")


def require_positive(config: CommandConfig, *names: str) -> None:
    """Check that numbers are greater than zero, where they are given.

    Args:
        config: The config that has the numbers.
        names: Fields that are a number, a tuple of numbers, or None.

    Raises:
        UsageError: `value_not_positive`.
    """
    for name in names:
        value = getattr(config, name)
        numbers = value if isinstance(value, tuple) else (value,)
        if any(number is not None and not number > 0 for number in numbers):
            raise UsageError("value_not_positive", f"{flag(name)} is {value}.", "It must be greater than zero.")


@dataclass(frozen=True)
class _FieldType:
    """The type of a field: its scalar type, the number of values (None for one, "*" for any), and whether None is allowed."""

    scalar: type
    count: int | str | None
    optional: bool

    @classmethod
    def of(cls, hint: Any) -> _FieldType:
        """Return the parts of a type hint; raise `TypeError` for a union of two types."""
        optional = False
        if typing.get_origin(hint) in (typing.Union, types.UnionType):
            members = [part for part in typing.get_args(hint) if part is not type(None)]
            optional = len(members) < len(typing.get_args(hint))
            if len(members) != 1:
                raise TypeError(f"unsupported config type {hint}")
            hint = members[0]
        if typing.get_origin(hint) is tuple:
            parts = typing.get_args(hint)
            if len(parts) == 2 and parts[1] is Ellipsis:
                return cls(parts[0], "*", optional)
            return cls(parts[0], len(parts), optional)
        return cls(hint, None, optional)


def _field_types(config_class: type[CommandConfig]) -> dict[str, _FieldType]:
    """Return the type of each field of a config, by the field's name."""
    hints = typing.get_type_hints(config_class)
    return {item.name: _FieldType.of(hints[item.name]) for item in dataclasses.fields(config_class)}


class _Parser(argparse.ArgumentParser):
    """An argument parser that raises `UsageError` where argparse would exit."""

    def error(self, message: str) -> typing.NoReturn:
        sentence = f"{message[:1].upper()}{message[1:]}".rstrip(".") + "."
        raise UsageError("usage", sentence, f"See: {self.prog} --help")


def build_parser(config_class: type[CommandConfig], *, command: str, description: str) -> argparse.ArgumentParser:
    """Return the argument parser of a command.

    Args:
        config_class: The dataclass of the command.
        command: The name of the command, for the usage line.
        description: The text above the list of options.

    Returns:
        A parser whose namespace has only the options that were given.
    """
    parser = _Parser(
        prog=f"python -m HiEndMAECore.{command}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # an abbreviation would change its meaning when an option is added
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("--config", metavar="FILE.json", help="Take options from this file; options given here win.")
    field_types = _field_types(config_class)
    for item in dataclasses.fields(config_class):
        settings = _argument_settings(item, field_types[item.name])
        parser.add_argument(flag(item.name), help=_help_text(item), **settings)
        for alias in item.metadata["aliases"]:
            parser.add_argument(alias, dest=item.name, help=argparse.SUPPRESS, **settings)
        if _is_negated(item, field_types[item.name]):  # takes back what a config file says
            opposite = "--" + flag(item.name).removeprefix(_NEGATION)
            parser.add_argument(opposite, dest=item.name, action="store_false", help=f"Not {flag(item.name)}.")
    return parser


def _is_negated(item: dataclasses.Field, field_type: _FieldType) -> bool:
    """Return whether the flag of a field itself starts with "--no-", which argparse's action for both takes for False."""
    return field_type.scalar is bool and flag(item.name).startswith(_NEGATION)


def _argument_settings(item: dataclasses.Field, field_type: _FieldType) -> dict[str, Any]:
    """Return what `add_argument` needs for one field, apart from its flag and its help."""
    if _is_negated(item, field_type):
        return {"action": "store_true"}
    if field_type.scalar is bool:
        return {"action": argparse.BooleanOptionalAction}
    choices = item.metadata["choices"]
    return {
        "action": "extend" if field_type.count == "*" else "store",  # `--image a --image b` gives both
        "type": field_type.scalar,
        "nargs": "+" if field_type.count == "*" else field_type.count,
        "choices": choices,
        "metavar": None if choices else item.metadata["metavar"] or item.name.split("_")[-1].upper(),
    }


def _help_text(item: dataclasses.Field) -> str:
    """Return the help of a field, with its default where it says something, and whether it is required."""
    text = str(item.metadata["help"])
    if item.default not in (None, False, ()):
        default = " ".join(map(str, item.default)) if isinstance(item.default, tuple) else str(item.default)
        text = f"{text} (default: {default})"
    if item.metadata["required"]:
        text = f"{text} (required)"
    return text.replace("%", "%%")


def parse(config_class: type[Config], argv: Sequence[str], *, command: str, description: str) -> Config:
    """Return the config of a command line.

    Args:
        config_class: The dataclass of the command.
        argv: The arguments, without the program's name. `--config FILE.json` gives options that the others replace.
        command: The name of the command, for messages and help.
        description: The text above the list of options in `--help`.

    Raises:
        UsageError: An option is unknown, missing, or has a wrong value; or the config file cannot be used.
    """
    parser = build_parser(config_class, command=command, description=description)
    arguments = vars(parser.parse_args(list(argv)))
    values: dict[str, Any] = {}
    file = arguments.pop("config", None)
    if file is not None:
        values.update(_read_config_file(config_class, Path(file)))
    values.update({name: tuple(value) if isinstance(value, list) else value for name, value in arguments.items()})
    for item in dataclasses.fields(config_class):
        if item.metadata["required"] and values.get(item.name) in (None, ()):
            parser.error(f"{flag(item.name)} is missing")
    return config_class(**values)


def _read_config_file(config_class: type[CommandConfig], file: Path) -> dict[str, Any]:
    """Return the keyword arguments in a JSON file; raise `UsageError` that names the file."""
    try:
        data = json.loads(file.read_bytes())  # bytes, because json then recognizes UTF-16, which Windows' shell writes
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
    """Return a config as plain JSON values; paths become strings and tuples become lists."""

    def plain(value: Any) -> Any:
        if isinstance(value, Path):
            return str(value)
        if isinstance(value, tuple):
            return [plain(part) for part in value]
        return value

    return {item.name: plain(getattr(config, item.name)) for item in dataclasses.fields(config)}


def from_json(config_class: type[CommandConfig], data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keyword arguments for a config from JSON values.

    Args:
        config_class: The dataclass of a command.
        data: Values by the names of options, as `to_json` returns them; old spellings of names are accepted.

    Raises:
        UsageError: `config_unknown_key`, `config_key_twice` or `config_wrong_type`, with the name of the key.
    """
    field_types = _field_types(config_class)
    new_names = {
        alias.lstrip("-").replace("-", "_"): item.name
        for item in dataclasses.fields(config_class)
        for alias in item.metadata["aliases"]
    }
    values: dict[str, Any] = {}
    for key, value in data.items():
        name = new_names.get(key, key)
        if name not in field_types:
            advice = f"Known: {', '.join(sorted(field_types))}."
            raise UsageError("config_unknown_key", f"There is no option '{key}'.", advice)
        if name in values:
            message = f"The option '{name}' is given twice, once by its old name."
            raise UsageError("config_key_twice", message, f"Keep '{name}' alone.")
        values[name] = _from_plain(key, field_types[name], value)
    return values


def _from_plain(name: str, field_type: _FieldType, value: Any) -> Any:
    """Return the value of a field from its JSON value; raise `UsageError` `config_wrong_type`."""
    if value is None and (field_type.optional or field_type.count is not None or field_type.scalar is Path):
        return () if field_type.count == "*" and not field_type.optional else None
    if field_type.count is None:
        return _scalar(name, field_type.scalar, value)
    if not isinstance(value, list) or (field_type.count != "*" and len(value) != field_type.count):
        size = "" if field_type.count == "*" else f" of {field_type.count}"
        raise UsageError("config_wrong_type", f"'{name}' must be a list{size}, not {value!r}.", "")
    return tuple(_scalar(name, field_type.scalar, part) for part in value)


def _scalar(name: str, scalar_type: type, value: Any) -> Any:
    """Return a single JSON value as `scalar_type`; raise `UsageError` `config_wrong_type`."""
    is_valid = {
        bool: isinstance(value, bool),
        int: isinstance(value, int) and not isinstance(value, bool),
        float: isinstance(value, int | float) and not isinstance(value, bool),
        str: isinstance(value, str),
        Path: isinstance(value, str),
    }[scalar_type]
    if not is_valid:
        raise UsageError("config_wrong_type", f"'{name}' must be of type {scalar_type.__name__}, not {value!r}.", "")
    return scalar_type(value)
