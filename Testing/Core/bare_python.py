"""Run code with the standard library and the engine alone, as on a computer where nothing is installed yet."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]

_BLOCK_PACKAGES = f"""
import sys
class OnlyStandard:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top != "HiEndMAECore" and top not in sys.stdlib_module_names:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, OnlyStandard())
sys.path.insert(0, {str(REPOSITORY)!r})
"""


def run_bare(code: str) -> subprocess.CompletedProcess[str]:
    """Run code in a Python without site-packages.

    Args:
        code: Python code; it can import the standard library and HiEndMAECore only.

    Returns:
        The finished process, with its output as text.
    """
    line = [sys.executable, "-S", "-E", "-s", "-B", "-X", "utf8", "-c", _BLOCK_PACKAGES + code]
    return subprocess.run(line, capture_output=True, encoding="utf-8", timeout=60, cwd=REPOSITORY / "Testing")
