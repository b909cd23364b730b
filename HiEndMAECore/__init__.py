"""HiEndMAECore: label one scan, segment the rest, and pretrain the encoder that makes it possible.

The commands are `prepare`, `pretrain`, `finetune`, `segment`, `evaluate`, `compare`, `demo` and `doctor`. Each of them runs as
`python -m HiEndMAECore.<command>`, as `hiendmae <command>`, and as `HiEndMAECore.<command>.run(config)`. Importing the
package, or any command, needs the standard library alone.

Method: Tang et al., Hi-End-MAE, Medical Image Analysis 2025, arXiv 2502.08347.
"""

from __future__ import annotations

__version__ = "0.1.0"
COMMANDS = ("prepare", "pretrain", "finetune", "segment", "evaluate", "compare", "demo", "doctor")
DOORS = COMMANDS  # compatibility: the name in earlier versions
