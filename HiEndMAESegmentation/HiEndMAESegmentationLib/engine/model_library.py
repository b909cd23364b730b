"""The models of this user: a folder of model folders, beside Slicer's settings. No Qt, no MRML, no torch."""

from __future__ import annotations

import json
import os
import re
import shutil
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from HiEndMAECore.checkpoints import catalogue, model_folder
from HiEndMAECore.checkpoints.model_folder import ModelDescription
from HiEndMAECore.errors import InputError
from HiEndMAECore.reporting.writing import write_text


def in_the_box() -> dict[str, tuple[str, Path]]:
    """Weights to start from that come with the engine: {name: (what they are, where)}, as the catalogue has them."""
    places = {entry: catalogue.in_the_box(entry) for entry in catalogue.CATALOGUE}
    return {entry.name: (entry.title, place) for entry, place in places.items() if place is not None}


@dataclass(frozen=True)
class Model:
    """One model: `key` is its folder's name, by which scenes remember it."""

    key: str
    path: Path
    description: ModelDescription

    @property
    def name(self) -> str:
        return self.description.name


class Library:
    """The models in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def models(self) -> list[Model]:
        """Every model that can be read, by name. Folders that are none are left out."""
        found = []
        for path in self.folder.iterdir() if self.folder.is_dir() else ():
            if path.name.startswith(".") or not path.is_dir() or not model_folder.is_model(path):
                continue
            try:
                found.append(Model(path.name, path, model_folder.read_description(path)))
            except InputError:
                continue  # of a newer format, or damaged: it stays where it is, for whoever can read it
        return sorted(found, key=lambda model: model.name.casefold())

    def weights(self) -> list[Path]:
        """Files to start from that came with an offline kit."""
        return sorted(file for file in self.weights_folder.glob("*") if file.is_file())

    @property
    def weights_folder(self) -> Path:
        return self.folder.with_name("weights")

    def knows(self, source: Path) -> bool:
        """Is the model at `source` in the library already, under whatever name?"""
        wanted = model_folder.read_description(source).weights_sha256
        return any(model.description.weights_sha256 == wanted for model in self.models())

    def find(self, key: str) -> Model | None:
        """The model of this key, or None."""
        return next((model for model in self.models() if model.key == key), None)

    def free_path(self, name: str) -> Path:
        """A folder for a new model called `name`, in letters that every file system takes."""
        plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
        stem = re.sub(r"[^A-Za-z0-9]+", "-", plain).strip("-").lower()[:40] or "model"
        numbers = (stem, *(f"{stem}-{number}" for number in range(2, 10_000)))
        return next(path for path in (self.folder / one for one in numbers) if not path.exists())

    def free_name(self, name: str) -> str:
        """`name`, or `name 2`, `name 3`, … where a model is called so already."""
        taken = {model.name for model in self.models()}
        names = (name, *(f"{name} {number}" for number in range(2, 10_000)))
        return next(one for one in names if one not in taken)

    def rename(self, model: Model, name: str) -> None:
        """Call the model `name`; its key stays."""
        name = " ".join(name.split())
        if not name:
            raise InputError("name_empty", "A model needs a name.", "Type one.")
        file = model.path / model_folder.DESCRIPTION
        data = json.loads(file.read_text(encoding="utf-8"))
        write_text(file, json.dumps({**data, "name": name}, indent=1, ensure_ascii=False))

    def delete(self, model: Model) -> None:
        """Remove the model from the disk; steps aside first, so that a half-deleted one is never offered."""
        aside = model.path.with_name(f".{model.key}.deleted")
        shutil.rmtree(aside, ignore_errors=True)
        os.replace(model.path, aside)
        shutil.rmtree(aside, ignore_errors=True)

    def share(self, model: Model, file: Path) -> Path:
        """Write the model as one zip; returns its path. A name that gets its ending here has not been asked about:
        raises `InputError` where there is such a file."""
        named = file.with_suffix(".zip") if file.suffix.lower() == ".zip" else file.with_name(file.name + ".zip")
        asked = named.name == file.name or (file.exists() and named.exists() and file.samefile(named))  # M.ZIP is M.zip
        if named.exists() and not asked:
            raise InputError("file_taken", f"There is a file {named} already.", "Choose another name.")
        model_folder.copy_model(model.path, named)
        return named

    def take_in(self, source: Path) -> Model:
        """Copy a model (zip or folder) into the library. Raises `InputError` where it is none, or damaged."""
        description = model_folder.read_description(source)
        if description.kind != "segmentation":
            told = f"The model {source.name} has not learned to segment."
            raise InputError("model_not_for_segmentation", told, "It can serve as a start for teaching.")
        path = self.free_path(description.name)
        model_folder.copy_model(source, path)
        model = Model(path.name, path, description)
        free = self.free_name(description.name) if self._twice(model) else description.name
        if free != description.name:
            self.rename(model, free)
        return Model(path.name, path, model_folder.read_description(path))

    def _twice(self, model: Model) -> bool:
        return any(one.name == model.name and one.key != model.key for one in self.models())
