"""The console script: `hiendmae COMMAND ...` and `python -m HiEndMAECore COMMAND ...`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

from HiEndMAECore import COMMANDS, __version__
from HiEndMAECore.errors import EXIT_DONE, EXIT_USAGE


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that the first argument names.

    Args:
        argv: The arguments, without the program's name. None takes those of the process.

    Returns:
        The exit code of the command; 2 when it is unknown or missing.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = arguments[0] if arguments else ""
    if name in COMMANDS:
        return int(import_module(f"HiEndMAECore.{name}").main(arguments[1:]))
    if name == "--version":
        sys.stdout.write(f"HiEndMAECore {__version__}\n")
        return EXIT_DONE
    usage = f"usage: hiendmae COMMAND [OPTIONS]\n\ncommands: {', '.join(COMMANDS)}\n\nSee: hiendmae COMMAND --help\n"
    if name in ("-h", "--help"):
        sys.stdout.write(usage)
        return EXIT_DONE
    sys.stderr.write(f"There is no command '{name}'.\n{usage}" if name else usage)
    return EXIT_USAGE


if __name__ == "__main__":
    raise SystemExit(main())
