"""Pretraining objectives, one module each; their names are listed without torch.

An objective registers itself with `@register_objective("name", …)` from `base`. The literal keywords of that decorator
are read from the source text, so that `pretrain --help` works on a bare Python.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from HiEndMAECore.networks.registry import read_registrations

DEFAULT_OBJECTIVE = "hi-end-mae"


@dataclass(frozen=True)
class RegisteredObjective:
    """An objective as its source text describes it.

    module: to import. needs_init: it starts from pretrained weights, and cannot start without. frozen_encoder: the
    encoder is not trained, so gradient checkpointing of it saves nothing.
    """

    name: str
    module: str
    needs_init: bool = False
    frozen_encoder: bool = False


def list_objectives() -> tuple[str, ...]:
    """Return the names that `--objective` takes, the default first."""
    return tuple(sorted(_objectives(), key=lambda name: (name != DEFAULT_OBJECTIVE, name)))


def find_objective(name: str) -> RegisteredObjective:
    """Return the objective called `name`.

    Raises:
        ValueError: If there is none; the message lists the known ones.
    """
    if name not in _objectives():
        raise ValueError(f"there is no objective {name!r}; known are {', '.join(list_objectives())}")
    return _objectives()[name]


@lru_cache(maxsize=1)
def _objectives() -> dict[str, RegisteredObjective]:
    found = {}
    for file in sorted(Path(__file__).parent.glob("*.py")):
        if file.stem in ("__init__", "base"):
            continue
        for name, literals in read_registrations(file.read_text(encoding="utf-8"), "register_objective"):
            known = {key: value for key, value in literals.items() if key in ("needs_init", "frozen_encoder")}
            found[name] = RegisteredObjective(name, f"{__name__}.{file.stem}", **known)
    return found
