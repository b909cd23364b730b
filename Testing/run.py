"""Run all checks, one after the other: style, types, tests.

python Testing/run.py [pytest arguments]
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
CHECKS = (
    ["ruff", "check", "--quiet", "."],
    ["ruff", "format", "--check", "--quiet", "."],
    ["mypy"],
    ["pytest", *sys.argv[1:]],
)


def main() -> int:
    """Run every check, also after a failed one; return 1 if any has failed, otherwise 0."""
    failed = []
    # torch's compiler reads its own files in the encoding of the machine, and fails where that is ASCII.
    environment = {**os.environ, "PYTHONUTF8": "1"}
    environment.setdefault("GOMP_SPINCOUNT", "3000")  # as in HiEndMAECore.cli.runner.limit_openmp_spinning
    for check in CHECKS:
        sys.stderr.write(f"-- {' '.join(check)}\n")
        if subprocess.run([sys.executable, "-m", *check], cwd=REPOSITORY, env=environment, check=False).returncode:
            failed.append(check[0])
    sys.stderr.write(f"Failed: {', '.join(failed)}\n" if failed else "All checks passed.\n")
    return int(bool(failed))


if __name__ == "__main__":
    raise SystemExit(main())
