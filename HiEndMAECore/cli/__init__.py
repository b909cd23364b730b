"""The command line: a config dataclass for each command, and the runner that every command's `main` calls."""
