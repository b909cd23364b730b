"""The model folder: what training leaves, what clinicians share (also as one `.zip`), and how it is read back.

    MODEL/model.safetensors   weights, fp32 or fp16
    MODEL/model.json          everything one must know to use them, see `ModelDescription`

No pixels, no patient identifiers, no pickles. Descriptions are read with the standard library alone; weights need torch.
Both are written beside their place and renamed into it: a killed run leaves the old model or the new one, never half.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from HiEndMAECore.errors import InputError

from .description import FORMAT_VERSION, KINDS, ModelDescription

if TYPE_CHECKING:
    from torch import Tensor


WEIGHTS = "model.safetensors"
DESCRIPTION = "model.json"
_LARGEST_DESCRIPTION = 10_000_000  # bytes; a description is text of a few kilobytes


def read_description(path: Path) -> ModelDescription:
    """The checked description of the model folder or zip at `path`; needs no torch. Raises `InputError`."""
    data = _read_json(path)
    version = data.get("format_version")
    if not isinstance(version, int):
        raise _unusable(path, "its format version is missing")
    if version > FORMAT_VERSION:
        raise InputError(
            "model_newer",
            f"The model {path} has format {version}; this HiEndMAE reads formats up to {FORMAT_VERSION}.",
            "Update HiEndMAE, or ask for the model in an older format.",
        )
    known = {item.name for item in fields(ModelDescription)}
    try:
        description = ModelDescription(**{key: value for key, value in data.items() if key in known})
    except TypeError as error:
        raise _unusable(path, f"its description is incomplete ({error})") from error
    _check(path, description)
    return description


def _check(path: Path, description: ModelDescription) -> None:
    if description.kind not in KINDS:
        raise _unusable(path, f"its kind is {description.kind!r}")
    architecture = description.architecture
    if not isinstance(architecture, dict) or not isinstance(architecture.get("arguments"), dict):
        raise _unusable(path, "its architecture is not described")
    preparation = description.preparation
    spacing = preparation.get("spacing") if isinstance(preparation, dict) else None
    if not (isinstance(spacing, list) and len(spacing) == 3 and all(_is_number(v) and v > 0 for v in spacing)):
        raise _unusable(path, f"its spacing is {spacing!r}")
    if not isinstance(preparation.get("normalisation"), dict):
        raise _unusable(path, "its intensity normalisation is not described")
    if not (isinstance(description.channels, list) and description.channels):
        raise _unusable(path, "its channels are not named")
    if description.kind == "segmentation":
        values = [label.get("value") for label in description.labels if isinstance(label, dict)]
        named = all(isinstance(label.get("name"), str) for label in description.labels if isinstance(label, dict))
        whole = all(isinstance(value, int) and value > 0 for value in values)
        if not values or len(set(values)) != len(description.labels) or not whole or not named:
            raise _unusable(path, "its labels are not described")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _unusable(path: Path, reason: str) -> InputError:
    return InputError("model_unusable", f"The model {path} cannot be used: {reason}.", "Choose another model.")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        with _open_member(path, DESCRIPTION) as stream:
            text = stream.read(_LARGEST_DESCRIPTION + 1)
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise InputError(
            "model_absent",
            f"There is no model at {path}.",
            f"Give a folder or .zip that holds {DESCRIPTION} and {WEIGHTS}.",
        ) from error
    try:
        data = json.loads(text) if len(text) <= _LARGEST_DESCRIPTION else None
    except ValueError:
        data = None
    if not isinstance(data, dict):
        raise _unusable(path, f"its {DESCRIPTION} is not a JSON object")
    return data


def _open_member(path: Path, name: str) -> Any:
    """A binary stream of one of the two files, out of a folder or a zip."""
    if path.is_dir():
        return (path / name).open("rb")
    with zipfile.ZipFile(path) as archive:
        return archive.open(name)


def is_model(path: Path) -> bool:
    """Does `path` look like a model folder or zip?"""
    if path.is_dir():
        return (path / DESCRIPTION).is_file() and (path / WEIGHTS).is_file()
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return {DESCRIPTION, WEIGHTS} <= set(archive.namelist())


def read_weights(path: Path, description: ModelDescription | None = None) -> dict[str, Tensor]:
    """The weights of the model at `path`, on the CPU, checked against the description's SHA-256."""
    import safetensors
    from safetensors.torch import load

    description = description or read_description(path)
    try:
        with _open_member(path, WEIGHTS) as stream:
            content = stream.read()
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise _unusable(path, f"its {WEIGHTS} cannot be read") from error
    if hashlib.sha256(content).hexdigest() != description.weights_sha256:
        raise InputError(
            "model_damaged",
            f"The weights of the model {path} are not those that its description names.",
            "The file was damaged or changed on its way; get the model again.",
        )
    try:
        return load(content)
    except safetensors.SafetensorError as error:
        raise _unusable(path, f"its weights cannot be read ({error})") from error


def write_model(path: Path, description: ModelDescription, state: Mapping[str, Tensor]) -> ModelDescription:
    """Write a model folder (or, where `path` ends in .zip, one file); returns the description with its hash.

    A model that is already there is replaced in one step; anything else there is refused (`InputError`).
    """
    from safetensors.torch import save

    content = save({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()})
    described = ModelDescription(**{**_plain(description), "weights_sha256": hashlib.sha256(content).hexdigest()})
    check_output_free(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(_plain(described), indent=1, ensure_ascii=False).encode()
    if path.suffix == ".zip":
        _write_zip(path, text, content)
    else:
        _write_folder(path, text, content)
    return described


def _plain(description: ModelDescription) -> dict[str, Any]:
    data = asdict(description)
    return {**data, "channels": list(data["channels"]), "labels": [dict(label) for label in data["labels"]]}


def check_output_free(path: Path) -> None:
    """Raise `InputError` when something that is no model stands where a model shall be written."""
    free = not path.exists() or (path.is_dir() and not any(path.iterdir()))
    if not free and not is_model(path):
        raise InputError(
            "output_taken", f"{path} exists and is not a model; it will not be overwritten.", "Choose another --output."
        )


def _write_folder(path: Path, text: bytes, content: bytes) -> None:
    fresh = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent))
    try:
        fresh.chmod(0o755)
        (fresh / WEIGHTS).write_bytes(content)
        (fresh / DESCRIPTION).write_bytes(text)
        if path.exists():
            # A folder cannot be replaced by a folder in one call: the old one steps aside first.
            aside = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".old", dir=path.parent))
            os.replace(path, aside / "model")
            os.replace(fresh, path)
            shutil.rmtree(aside, ignore_errors=True)
        else:
            os.replace(fresh, path)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _write_zip(path: Path, text: bytes, content: bytes) -> None:
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as stream, zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
            archive.writestr(DESCRIPTION, text)
            archive.writestr(WEIGHTS, content)
        os.chmod(name, 0o644)
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


def copy_model(source: Path, target: Path) -> None:
    """Folder to zip, zip to folder, or a plain copy: the two files unchanged. Needs no torch."""
    description = read_description(source)
    check_output_free(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    with _open_member(source, WEIGHTS) as stream:
        content = stream.read()
    if hashlib.sha256(content).hexdigest() != description.weights_sha256:
        raise _unusable(source, "its weights are damaged")
    text = json.dumps(_plain(description), indent=1, ensure_ascii=False).encode()
    (_write_zip if target.suffix == ".zip" else _write_folder)(target, text, content)
