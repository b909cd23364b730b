"""Snapshots: one safetensors file from which a run goes on as if it had never stopped.

Holds the networks' weights, the optimiser's moments, and plain values (the step, the settings) as JSON in the header.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from HiEndMAECore.errors import InputError


def save_checkpoint(
    path: Path, modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer, values: Mapping[str, Any]
) -> None:
    """Write everything beside `path`, then rename: the old snapshot or the new one is there, never half."""
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    for name, module in modules.items():
        tensors.update({f"{name}/{key}": value for key, value in module.state_dict().items()})
    for index, moments in optimizer.state_dict()["state"].items():
        tensors.update({f"optimiser/{index}/{key}": torch.as_tensor(value) for key, value in moments.items()})
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    os.close(handle)
    try:
        copies = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
        save_file(copies, name, metadata={"values": json.dumps(values)})
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


def read_checkpoint_values(path: Path) -> dict[str, Any] | None:
    """The plain values of the snapshot at `path`, None when there is none; raises `InputError` when it is damaged."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        return None
    try:
        with safe_open(str(path), framework="pt") as file:
            return dict(json.loads(file.metadata()["values"]))
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            "snapshot_damaged", f"The snapshot {path} cannot be read ({error}).", "Delete it and start again."
        ) from error


def checkpoint_file(folder: Path, step: int) -> Path:
    """Where the state after `step` steps is kept."""
    return folder / "snapshots" / f"step-{step:08d}.safetensors"


def newest_checkpoint(folder: Path, *, on_damage: Callable[[InputError], None]) -> Path | None:
    """The newest readable snapshot of the run in `folder`; a damaged one is told and passed over."""
    for path in sorted((folder / "snapshots").glob("step-*.safetensors"), reverse=True):
        try:
            read_checkpoint_values(path)
        except InputError as error:
            on_damage(error)
        else:
            return path
    return None


def delete_old_checkpoints(folder: Path, count: int) -> None:
    """Delete all but the newest `count` snapshots of the run in `folder`."""
    for path in sorted((folder / "snapshots").glob("step-*.safetensors"), reverse=True)[count:]:
        path.unlink(missing_ok=True)


def load_checkpoint(path: Path, modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Put a snapshot back into `modules` and `optimiser`; returns its plain values. Raises `InputError`."""
    from safetensors.torch import load

    values = read_checkpoint_values(path)
    if values is None:
        raise InputError("snapshot_absent", f"There is no snapshot at {path}.", "Start without --resume.")
    tensors = load(path.read_bytes())  # not mapped: Windows could not replace the file while the run goes on
    try:
        for name, module in modules.items():
            start = f"{name}/"
            module.load_state_dict({k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)})
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith("optimiser/"):
                _, index, moment = key.split("/")
                moments.setdefault(int(index), {})[moment] = value
        learned = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        for place, of in moments.items():  # known by their place alone: torch would take any, and write beside it
            if place >= len(learned) or any(m.ndim and m.shape != learned[place].shape for m in of.values()):
                raise ValueError(f"the optimiser's tensor {place} has another shape")
        optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    except (RuntimeError, ValueError) as error:
        raise InputError(
            "snapshot_unfit",
            f"The snapshot {path} belongs to another network ({str(error).splitlines()[0]}).",
            "Resume with the settings it was started with, or choose another output.",
        ) from error
    return values
