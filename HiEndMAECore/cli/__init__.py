"""The command line: configurations as dataclasses, and the runner that every command's `main` calls."""
