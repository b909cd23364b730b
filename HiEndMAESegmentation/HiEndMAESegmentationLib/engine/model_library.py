"""The user's models: a folder of model folders beside Slicer's settings. Needs neither Qt nor MRML nor torch."""

from __future__ import annotations

import json
import os
import re
import shutil
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from HiEndMAECore.errors import InputError
from HiEndMAECore.io.atomic import write_text
from HiEndMAECore.models import folder as model_folder
from HiEndMAECore.models.catalogue import CATALOGUE
from HiEndMAECore.models.catalogue import packaged_weights as packaged_folder
from HiEndMAECore.models.description import ModelDescription

_TERMINOLOGY_CODES = ("category", "type", "typeModifier", "anatomicRegion", "anatomicRegionModifier")


def packaged_weights() -> dict[str, tuple[str, Path]]:
    """Return the weights that come with the engine as {name: (title, model folder)}, in the catalogue's order."""
    folders = {entry: packaged_folder(entry) for entry in CATALOGUE}
    return {entry.name: (entry.title, folder) for entry, folder in folders.items() if folder is not None}


@dataclass(frozen=True)
class Model:
    """A model of the library; `key` is the name of its folder, by which scenes refer to it."""

    key: str
    path: Path
    description: ModelDescription

    @property
    def name(self) -> str:
        """Return the name that people gave to the model."""
        return self.description.name


@dataclass(frozen=True)
class UnreadableModel:
    """A model folder of the library that cannot be used, and the reason in a sentence."""

    key: str
    path: Path
    reason: str

    @property
    def name(self) -> str:
        """Return the folder's name, because the description may not give one."""
        return self.key


class ModelLibrary:
    """The models in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def entries(self) -> list[Model | UnreadableModel]:
        """Return the readable models by name, then those that cannot be read (damaged, or of a newer format)."""
        paths = self.folder.iterdir() if self.folder.is_dir() else ()
        entries = [entry for entry in map(self._entry_of, paths) if entry is not None]
        return sorted(entries, key=lambda entry: (isinstance(entry, UnreadableModel), entry.name.casefold()))

    def models(self) -> list[Model]:
        """Return the readable models by name."""
        return [entry for entry in self.entries() if isinstance(entry, Model)]

    def unreadable_models(self) -> list[UnreadableModel]:
        """Return the models that cannot be read, by folder name."""
        return [entry for entry in self.entries() if isinstance(entry, UnreadableModel)]

    def entry(self, key: str) -> Model | UnreadableModel | None:
        """Return the model of this key, readable or not, or None."""
        return self._entry_of(self.folder / key) if key and Path(key).name == key else None

    def find(self, key: str) -> Model | None:
        """Return the readable model of this key, or None."""
        entry = self.entry(key)
        return entry if isinstance(entry, Model) else None

    def _entry_of(self, path: Path) -> Model | UnreadableModel | None:
        """Return the model in a folder, or None if the folder holds none, such as that of a model in training."""
        try:
            if path.name.startswith(".") or not (path / model_folder.DESCRIPTION).exists():
                return None
            return Model(path.name, path, read_model(path))
        except (InputError, OSError) as error:
            return UnreadableModel(path.name, path, str(error))

    @property
    def weights_folder(self) -> Path:
        """Return the folder of weights that came with an offline package."""
        return self.folder.with_name("weights")

    def weights(self) -> list[Path]:
        """Return the files to start from that came with an offline package."""
        return sorted(file for file in self.weights_folder.glob("*") if file.is_file())

    def contains(self, source: Path) -> bool:
        """Return whether the library has the model at `source`, under whatever name.

        Raises:
            InputError: The model at `source` cannot be read.
        """
        sha256 = read_model(source).weights_sha256
        return any(model.description.weights_sha256 == sha256 for model in self.models())

    def free_path(self, name: str) -> Path:
        """Return a folder for a new model called `name`, in letters that every file system accepts."""
        ascii_name = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
        stem = re.sub(r"[^A-Za-z0-9]+", "-", ascii_name).strip("-").lower()[:40] or "model"
        candidates = (stem, *(f"{stem}-{number}" for number in range(2, 10_000)))
        return next(path for path in (self.folder / candidate for candidate in candidates) if not path.exists())

    def free_name(self, name: str) -> str:
        """Return `name`, or `name 2`, `name 3`, … if a model has this name."""
        used = {model.name for model in self.models()}
        candidates = (name, *(f"{name} {number}" for number in range(2, 10_000)))
        return next(candidate for candidate in candidates if candidate not in used)

    def rename(self, model: Model, name: str) -> None:
        """Give the model another name; its key stays.

        Raises:
            InputError: The name is empty, or the description cannot be written.
        """
        name = " ".join(name.split())
        if not name:
            raise InputError("name_empty", "A model needs a name.", "Type one.")
        file = model.path / model_folder.DESCRIPTION
        data = json.loads(file.read_text(encoding="utf-8"))
        write_text(file, json.dumps({**data, "name": name}, indent=1, ensure_ascii=False))

    def delete(self, model: Model | UnreadableModel) -> None:
        """Remove the model from the disk; it is renamed first, so that a half-deleted model is never offered."""
        hidden = model.path.with_name(f".{model.key}.deleted")
        shutil.rmtree(hidden, ignore_errors=True)
        os.replace(model.path, hidden)
        shutil.rmtree(hidden, ignore_errors=True)

    def share(self, model: Model, file: Path) -> Path:
        """Write the model as one zip and return its path.

        A file dialog has asked whether to replace `file` itself, but not a file whose name gets its suffix only here.

        Raises:
            InputError: There is a file of the completed name.
        """
        zip_file = file.with_suffix(".zip") if file.suffix.lower() == ".zip" else file.with_name(file.name + ".zip")
        same_file = zip_file.name == file.name or (  # M.ZIP may be M.zip on this file system
            file.exists() and zip_file.exists() and file.samefile(zip_file)
        )
        if zip_file.exists() and not same_file:
            raise InputError("file_taken", f"There is a file {zip_file} already.", "Choose another name.")
        model_folder.copy_model(model.path, zip_file)
        return zip_file

    def import_model(self, source: Path) -> Model:
        """Copy a model (zip or folder) into the library.

        Raises:
            InputError: It is no model, is damaged, or cannot segment.
        """
        description = read_model(source)
        if description.kind != "segmentation":
            message = f"The model {source.name} is not trained for segmentation."
            raise InputError("model_not_for_segmentation", message, "Training can start from it.")
        name, path = self.free_name(description.name), self.free_path(description.name)
        model_folder.copy_model(source, path)
        if name != description.name:
            self.rename(Model(path.name, path, description), name)
        return Model(path.name, path, read_model(path))


# -- checks ----------------------------------------------------------------------------------------------------------


def read_model(path: Path) -> ModelDescription:
    """Return the description of the model folder or zip at `path`, checked for everything that the panels use.

    Raises:
        InputError: The model cannot be used; the message names the key of the description and its value.
    """
    try:
        description = model_folder.read_description(path)
        _check_for_panels(description)
    except InputError:
        raise
    except Exception as error:  # a description from elsewhere may hold anything at any place
        reason = str(error) if isinstance(error, _UnusableValueError) else f"{type(error).__name__}: {error}"
        message = f"The model {path} cannot be used: {reason}."
        raise InputError("model_unusable", message, "Choose another model.") from error
    if not model_folder.is_model(path):
        message = f"The model {path} cannot be used: its {model_folder.WEIGHTS} is missing."
        raise InputError("model_unusable", message, "Choose another model.")
    return description


class _UnusableValueError(ValueError):
    """A value of a description that the panels cannot show."""


def _require(condition: bool, key: str, value: Any, kind: str) -> None:
    """Raise `_UnusableValueError` with the key and the value unless the condition holds."""
    if not condition:
        raise _UnusableValueError(f"'{key}' is {value!r}, must be {kind}")


def _check_for_panels(description: ModelDescription) -> None:
    """Check what the engine's reader leaves open: name, intensities, labels with colors and codes, training record."""
    _require(isinstance(description.name, str), "name", description.name, "a text")
    _require(isinstance(description.training, Mapping), "training", description.training, "an object")
    normalization = description.preparation["normalisation"]
    for key in ("low", "high"):
        value = normalization.get(key)
        _require(_is_number(value), f"preparation.normalisation.{key}", value, "a number")
    for index, label in enumerate(description.labels):
        _require(isinstance(label, Mapping), f"labels[{index}]", label, "an object")
        if "colour" in label:
            color = label["colour"]
            valid = isinstance(color, list) and len(color) == 3 and all(_is_number(p) and 0 <= p <= 255 for p in color)
            _require(valid, f"labels[{index}].colour", color, "three numbers from 0 to 255")
        _check_terminology(f"labels[{index}].terminology", label.get("terminology"))


def _check_terminology(key: str, entry: Any) -> None:
    """Check that a terminology entry and the codes in it are objects, or absent."""
    _require(entry is None or isinstance(entry, Mapping), key, entry, "an object")
    for part in _TERMINOLOGY_CODES:
        code = (entry or {}).get(part)
        _require(code is None or isinstance(code, Mapping), f"{key}.{part}", code, "an object")


def _is_number(value: Any) -> bool:
    """Return whether a JSON value is a number."""
    return isinstance(value, int | float) and not isinstance(value, bool)
