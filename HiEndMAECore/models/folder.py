"""Model folders and their `.zip` form: read, write, copy and rename them.

    MODEL/model.safetensors   weights, fp32 or fp16
    MODEL/model.json          what one must know to use them, see `description`
    MODEL/atlas.safetensors   optional: a coarse atlas of each labelled scan, see `atlas_file`

They contain no intensities, no patient identifiers and no pickles; an atlas shows the labelled patient's anatomy. A model with
an atlas has format 2, every other one format 1. Descriptions are read with the standard library alone; weights and atlases need
torch. A folder or file is complete or absent, and one whose replacement was interrupted is found again.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from HiEndMAECore.errors import InputError
from HiEndMAECore.io.atomic import atomic_folder, atomic_path, recover_folder, write_bytes
from HiEndMAECore.io.bounded_json import MAX_BYTES

from .atlas_file import AtlasContent, StoredAtlas, decode_atlases, encode_atlases, max_bytes
from .description import ATLAS_FORMAT_VERSION, FORMAT_VERSION, ModelDescription
from .schema import parse_model_json, unusable_model

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS = "model.safetensors"
DESCRIPTION = "model.json"
ATLAS = "atlas.safetensors"
_ATTEMPTS = 5  # to read a model that another process is replacing at this moment
_MEMBER_UNREADABLE = (OSError, KeyError, EOFError, NotImplementedError, RuntimeError, zipfile.BadZipFile, zlib.error)


def read_description(path: Path) -> ModelDescription:
    """Read and validate the description of a model.

    Args:
        path: Model folder or zip.

    Raises:
        InputError: `model_absent`, `model_newer`, or `model_unusable` with the key path and the value.
    """
    (content,) = _read_members(path, DESCRIPTION)
    return ModelDescription.from_json(parse_model_json(content, path))


def read_model(path: Path) -> tuple[ModelDescription, dict[str, Tensor]]:
    """Read description and weights of one and the same model, also while another process replaces it.

    Args:
        path: Model folder or zip.

    Returns:
        The description, and the weights on the CPU.

    Raises:
        InputError: As of `read_description` and `read_weights`.
    """
    _, description, files = _read_checked(path, WEIGHTS)
    return description, _parse_weights(files[WEIGHTS], path)


def read_weights(path: Path, description: ModelDescription | None = None) -> dict[str, Tensor]:
    """Read the weights of a model, on the CPU.

    Args:
        path: Model folder or zip.
        description: Description that the weights must belong to; None: the model's own.

    Raises:
        InputError: `model_damaged` if the SHA-256 is not the one in the description; `model_unusable` if the file cannot be
            read.
    """
    if description is None:
        return read_model(path)[1]
    (content,) = _read_members(path, WEIGHTS)
    if hashlib.sha256(content).hexdigest() != description.weights_sha256:
        raise _damaged(path, WEIGHTS)
    return _parse_weights(content, path)


def read_atlas_tensors(path: Path) -> tuple[ModelDescription, tuple[StoredAtlas, ...]]:
    """Read the description of a model and its atlases, which belong together also while another process replaces the model.

    Args:
        path: Model folder or zip.

    Returns:
        The description, and an atlas for each labelled scan, on the CPU; no atlas where the model keeps none.

    Raises:
        InputError: `model_damaged` if the SHA-256 of the file is not the one in the description; `model_unusable` if the
            file cannot be read or has other tensors. As of `read_description` otherwise.
    """
    _, description, files = _read_checked(path, ATLAS)
    if ATLAS not in files:
        return description, ()
    return description, decode_atlases(files[ATLAS], description.atlas, path)


def is_model(path: Path) -> bool:
    """Return whether `path` has description and weights of a model, as a folder or zip. Their content is not checked."""
    if not _is_present(path):
        return False
    if path.is_dir():
        return (path / DESCRIPTION).is_file() and (path / WEIGHTS).is_file()
    try:
        with zipfile.ZipFile(path) as archive:
            return {DESCRIPTION, WEIGHTS} <= set(archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def write_model(
    path: Path, description: ModelDescription, state: Mapping[str, Tensor], atlases: Sequence[AtlasContent] = ()
) -> ModelDescription:
    """Write a model, and replace one that is already there.

    Args:
        path: Folder, or file that ends in `.zip`.
        description: Its `weights_sha256`, `atlas`, `atlas_sha256` and `format_version` are set here.
        state: Weights of the network.
        atlases: Atlases of the labelled scans that the model keeps. An atlas that the description names is not kept by itself.

    Returns:
        The description as it was written.

    Raises:
        InputError: Something that is not a model is at `path`, or the description is not valid.
    """
    from safetensors.torch import save

    weights = save({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()})
    written = replace(_without_atlas(description), weights_sha256=hashlib.sha256(weights).hexdigest())
    atlas = None
    if atlases:
        metadata, atlas = encode_atlases(atlases)
        digest = hashlib.sha256(atlas).hexdigest()
        written = replace(written, atlas=metadata, atlas_sha256=digest, format_version=ATLAS_FORMAT_VERSION)
    _write_members(path, _checked_json(written.to_json(), path), weights, atlas)
    return written


def copy_model(source: Path, target: Path, *, keep_atlas: bool = False) -> None:
    """Copy a model: folder to zip, zip to folder, or one to its like. Needs no torch.

    The files stay the same, except that a model which loses its atlas gets the description of one without.

    Args:
        source: Model folder or zip.
        target: Folder, or file that ends in `.zip`.
        keep_atlas: True copies the atlas of the labelled scans too. It is left out unless someone asks for it, because it
            shows the anatomy of a patient.

    Raises:
        InputError: The source is not a usable model, or something that is not a model is at the target.
    """
    content, description, files = _read_checked(source, WEIGHTS, *([ATLAS] if keep_atlas else []))
    if description.atlas and not keep_atlas:
        content = _checked_json(_without_atlas(description).to_json(), source)
    _write_members(target, content, files[WEIGHTS], files.get(ATLAS))


def rename_model(path: Path, name: str) -> ModelDescription:
    """Give a model another name. Only its description is written, and keeps all other keys.

    Args:
        path: Model folder.
        name: New name.

    Returns:
        The new description.

    Raises:
        InputError: The folder is not a usable model, or its description cannot be written.
    """
    renamed = replace(read_description(path), name=name)
    try:
        write_bytes(path / DESCRIPTION, _checked_json(renamed.to_json(), path))
    except OSError as error:
        message = f"{path / DESCRIPTION} cannot be written ({error.strerror})."
        raise InputError("output_unwritable", message, "Choose another place, or free some space.") from error
    return renamed


def check_output_free(path: Path) -> None:
    """Check that a model may be written to `path`: nothing is there, an empty folder, or a model.

    Raises:
        InputError: `output_taken`.
    """
    free = not _is_present(path) or (path.is_dir() and not any(path.iterdir()))
    if not free and not is_model(path):
        raise InputError(
            "output_taken", f"{path} exists and is not a model; it will not be overwritten.", "Choose another --output."
        )


def _checked_json(data: Mapping[str, Any], path: Path) -> bytes:
    """Return the text of `model.json`, after checking that it can be read again."""
    try:
        content = json.dumps(data, indent=1, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        raise unusable_model(path, f"its description has characters that no file can hold ({error.reason})") from error
    parse_model_json(content, path)
    return content


def _without_atlas(description: ModelDescription) -> ModelDescription:
    return replace(description, atlas=(), atlas_sha256="", format_version=FORMAT_VERSION)


def _write_members(path: Path, description: bytes, weights: bytes, atlas: bytes | None) -> None:
    check_output_free(path)
    if path.suffix == ".zip":
        with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
            archive.writestr(DESCRIPTION, description)
            archive.writestr(WEIGHTS, weights)
            if atlas is not None:  # label maps shrink to a small part of their size, weights do not
                archive.writestr(ATLAS, atlas, compress_type=zipfile.ZIP_DEFLATED)
    else:
        with atomic_folder(path) as temporary:
            (temporary / WEIGHTS).write_bytes(weights)
            (temporary / DESCRIPTION).write_bytes(description)
            if atlas is not None:
                (temporary / ATLAS).write_bytes(atlas)


def _read_checked(path: Path, *names: str) -> tuple[bytes, ModelDescription, dict[str, bytes]]:
    """Return the bytes of the description, what they say, and the bytes of the named files, which belong to it.

    `ATLAS` is left out where the model has no atlas.
    """
    error = _damaged(path, names[0])
    for _ in range(_ATTEMPTS):  # a folder may be replaced after the first of its files was read
        (content,) = _read_members(path, DESCRIPTION)
        description = ModelDescription.from_json(parse_model_json(content, path))
        digests = {WEIGHTS: description.weights_sha256, ATLAS: description.atlas_sha256}
        wanted = [name for name in names if name != ATLAS or description.atlas]
        try:
            files = dict(zip(wanted, _read_members(path, *wanted, atlas_bytes=max_bytes(description.atlas))))
            differing = [name for name in wanted if hashlib.sha256(files[name]).hexdigest() != digests[name]]
            if not differing:
                return content, description, files
            error = _damaged(path, differing[0])
        except InputError as unreadable:
            error = unreadable
        if _read_members(path, DESCRIPTION) == [content]:
            break
    raise error


def _read_members(path: Path, *names: str, atlas_bytes: int = 0) -> list[bytes]:
    """Return the content of files of a model folder or zip, `ATLAS` up to a size. Raises `InputError`."""
    limits = {DESCRIPTION: MAX_BYTES + 1, ATLAS: atlas_bytes + 1}
    for attempt in range(_ATTEMPTS):
        contents: list[bytes] = []
        try:
            for stream in _open_members(path, names):
                contents.append(stream.read(limits.get(names[len(contents)], -1)))
            return contents
        except _MEMBER_UNREADABLE as error:
            # Perhaps another process has just put the folder aside to replace it.
            if attempt + 1 < _ATTEMPTS and isinstance(error, OSError) and _is_present(path):
                continue
            raise _unreadable(path, names[len(contents)], error) from error
    raise AssertionError("the last attempt returns or raises")


def _open_members(path: Path, names: Sequence[str]) -> Iterator[IO[bytes]]:
    """Yield binary streams of files of a model; those of a zip come from the same opened file."""
    if _is_present(path) and path.is_dir():
        for name in names:
            with (path / name).open("rb") as stream:
                yield stream
    else:
        with zipfile.ZipFile(path) as archive:
            for name in names:
                with archive.open(name) as stream:
                    yield stream


def _is_present(path: Path) -> bool:
    """Return whether something is at `path`, after bringing back a folder whose replacement was interrupted."""
    if not path.exists():
        recover_folder(path)
    return path.exists()


def _unreadable(path: Path, name: str, error: Exception) -> InputError:
    if name != DESCRIPTION:
        return unusable_model(path, f"its {name} cannot be read ({error})")
    advice = f"Give a folder or .zip that holds {DESCRIPTION} and {WEIGHTS}."
    return InputError("model_absent", f"There is no model at {path}.", advice)


def _damaged(path: Path, name: str) -> InputError:
    part = "weights" if name == WEIGHTS else "atlases"
    message = f"The {part} of the model {path} are not those that its description names."
    return InputError("model_damaged", message, "The file was damaged or changed on its way; get the model again.")


def _parse_weights(content: bytes, path: Path) -> dict[str, Tensor]:
    import safetensors
    from safetensors.torch import load

    try:
        return load(content)
    except safetensors.SafetensorError as error:
        raise unusable_model(path, f"its weights cannot be read ({error})") from error
