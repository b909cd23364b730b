"""The user's models: a folder of model folders beside Slicer's settings. Needs neither Qt nor MRML nor torch."""

from __future__ import annotations

import os
import re
import shutil
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from HiEndMAECore.errors import InputError
from HiEndMAECore.models import folder as model_folder
from HiEndMAECore.models.catalogue import CATALOGUE
from HiEndMAECore.models.catalogue import packaged_weights as packaged_folder
from HiEndMAECore.models.description import ModelDescription


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
        model_folder.rename_model(model.path, name)

    def delete(self, model: Model | UnreadableModel) -> None:
        """Remove the model from the disk; it is renamed first, so that a half-deleted model is never offered."""
        hidden = model.path.with_name(f".{model.key}.deleted")
        shutil.rmtree(hidden, ignore_errors=True)
        os.replace(model.path, hidden)
        shutil.rmtree(hidden, ignore_errors=True)

    def share(self, model: Model, file: Path, *, keep_atlas: bool = False) -> Path:
        """Write the model as one zip and return its path. Its atlas is left out unless `keep_atlas` is True.

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
        model_folder.copy_model(model.path, zip_file, keep_atlas=keep_atlas)
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
        model_folder.copy_model(source, path, keep_atlas=True)  # whoever shared the model decided about its atlas
        if name != description.name:
            self.rename(Model(path.name, path, description), name)
        return Model(path.name, path, read_model(path))


# -- checks ----------------------------------------------------------------------------------------------------------


def read_model(path: Path) -> ModelDescription:
    """Return the description of the model folder or zip at `path`, which has weights as well.

    Raises:
        InputError: The model cannot be used; the message names the key of the description and its value.
    """
    description = model_folder.read_description(path)
    if not model_folder.is_model(path):
        message = f"The model {path} cannot be used: its {model_folder.WEIGHTS} is missing."
        raise InputError("model_unusable", message, "Choose another model.")
    return description
