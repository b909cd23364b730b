"""Training checkpoints: one safetensors file from which a run continues with the same losses.

A checkpoint holds the networks' weights, the optimizer's moments, and plain values (the step, the settings) as JSON in the
header. The names of tensors, files and folders are stored names and never change.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from HiEndMAECore.errors import InputError
from HiEndMAECore.io.atomic import atomic_path

_FOLDER = "snapshots"
_PATTERN = "step-*.safetensors"


def save_checkpoint(
    path: Path, modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer, values: Mapping[str, Any]
) -> None:
    """Write a checkpoint completely or not at all.

    Args:
        path: File to write or replace; its folder is made.
        modules: Networks by the name under which their weights are stored.
        optimizer: Optimizer whose moments are stored.
        values: Plain values that JSON can hold.
    """
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    for name, module in modules.items():
        tensors.update({f"{name}/{key}": value for key, value in module.state_dict().items()})
    for index, moments in optimizer.state_dict()["state"].items():
        tensors.update({f"optimiser/{index}/{key}": torch.as_tensor(value) for key, value in moments.items()})
    copies = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
    with atomic_path(path) as temporary:
        save_file(copies, str(temporary), metadata={"values": json.dumps(values)})


def read_checkpoint_values(path: Path) -> dict[str, Any] | None:
    """Return the plain values of the checkpoint at `path`, or None when the file is absent.

    Raises:
        InputError: `snapshot_damaged`, when the file cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        return None
    try:
        with safe_open(str(path), framework="pt") as file:
            return dict(json.loads(file.metadata()["values"]))
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            "snapshot_damaged", f"The checkpoint {path} cannot be read ({error}).", "Delete it and start again."
        ) from error


def checkpoint_file(folder: Path, step: int) -> Path:
    """Return the checkpoint file of the run in `folder` after `step` steps."""
    return folder / _FOLDER / f"step-{step:08d}.safetensors"


def newest_checkpoint(folder: Path, *, on_damage: Callable[[InputError], None]) -> Path | None:
    """Return the newest readable checkpoint of the run in `folder`, or None.

    Args:
        folder: Run directory.
        on_damage: Called with the error of each damaged checkpoint, which is skipped.
    """
    for path in _newest_first(folder):
        try:
            read_checkpoint_values(path)
        except InputError as error:
            on_damage(error)
        else:
            return path
    return None


def delete_old_checkpoints(folder: Path, count: int) -> None:
    """Delete all but the newest `count` checkpoints of the run in `folder`."""
    for path in _newest_first(folder)[count:]:
        path.unlink(missing_ok=True)


def _newest_first(folder: Path) -> list[Path]:
    return sorted((folder / _FOLDER).glob(_PATTERN), reverse=True)


def load_checkpoint(path: Path, modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Load a checkpoint into networks and optimizer.

    Args:
        path: File that `save_checkpoint` wrote.
        modules: Networks by the name under which their weights are stored.
        optimizer: Optimizer of the same parameters.

    Returns:
        The plain values of the checkpoint.

    Raises:
        InputError: `snapshot_absent`, `snapshot_damaged`, or `snapshot_unfit` when it belongs to another network.
    """
    from safetensors.torch import load

    values = read_checkpoint_values(path)
    if values is None:
        raise InputError("snapshot_absent", f"There is no checkpoint at {path}.", "Start without --resume.")
    # The file is read and not mapped into memory: Windows could not replace a mapped file while the run continues.
    tensors = load(path.read_bytes())
    try:
        for name, module in modules.items():
            prefix = f"{name}/"
            module.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
        _load_moments(optimizer, tensors)
    except (RuntimeError, ValueError) as error:
        raise InputError(
            "snapshot_unfit",
            f"The checkpoint {path} belongs to another network ({str(error).splitlines()[0]}).",
            "Resume with the settings it was started with, or choose another output.",
        ) from error
    return values


def _load_moments(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Load the optimizer's moments; raise `ValueError` when a shape differs from its parameter's."""
    moments: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimiser/"):
            _, index, moment = key.split("/")
            moments.setdefault(int(index), {})[moment] = value
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    # Moments are identified by their index only, and torch would accept any shape.
    for number, state in moments.items():
        if number >= len(parameters) or any(m.ndim and m.shape != parameters[number].shape for m in state.values()):
            raise ValueError(f"the optimizer's tensor {number} has another shape")
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
