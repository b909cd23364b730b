"""HiEndMAECore: label one scan, segment the rest, and pretrain the model that makes it possible.

The front doors are `prepare`, `pretrain`, `finetune`, `segment`, `evaluate`, `demo` and `doctor`; each runs as
`python -m HiEndMAECore.<door>` and as `HiEndMAECore.<door>.run(config)`. Importing the package, or any door, needs
nothing but the standard library.

Method: Tang et al., Hi-End-MAE, Medical Image Analysis 2025, arXiv 2502.08347.
"""

from __future__ import annotations

__version__ = "0.1.0"
DOORS = ("prepare", "pretrain", "finetune", "segment", "evaluate", "demo", "doctor")
