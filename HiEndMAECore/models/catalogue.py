"""Weights that one may start from by name, and where they are to be had. Plain data, no torch.

Ours come with the package. For others their authors' hosts ask for a click, so nothing here downloads by itself: an entry
tells how to place the file.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from HiEndMAECore.errors import InputError


@dataclass(frozen=True)
class CatalogueEntry:
    """One set of weights: name, what it is, variant, where it is published, size in bytes, SHA-256 ("" while unknown)."""

    name: str
    title: str
    variant: str
    published_at: str
    size_bytes: int
    sha256: str
    licence: str
    how_to_place: str
    file_name: str


DEFAULT_WEIGHTS = "hi-end-mae-tiny"  # what fine-tuning starts from where nothing else is asked for
_PACKAGED = Path(__file__).parent / "weights"
CATALOGUE = (
    CatalogueEntry(
        name=DEFAULT_WEIGHTS,
        title="Hi-End-MAE, ViT-T/8(192) with convolutions, pretrained by us on 237 unlabelled CT scans: comes with the program",
        variant="hi_end_mae_vit_tiny_8p",
        published_at="HiEndMAECore/checkpoints/weights (its README.md is the card)",
        size_bytes=0,
        sha256="",
        licence="Apache-2.0; for the data see the card",
        file_name="",
        how_to_place="It belongs to the installation: install HiEndMAECore again.",
    ),
    CatalogueEntry(
        name="hi-end-mae-10k",
        title="The authors' Hi-End-MAE, ViT-B/12(1536), pretrained on about 10,000 CT scans",
        variant="hi_end_mae_vit_large_12p",
        published_at="https://github.com/FengheTan9/Hi-End-MAE (section 'Pre-trained weights' of its README)",
        size_bytes=1_471_893_888,
        sha256="",
        licence="Apache-2.0 (repository of the authors)",
        file_name="hi_end_mae_10k.pth",
        how_to_place="Download hi_end_mae_10k.pth with a browser and give its path as --init.",
    ),
)


def find_entry(name: str) -> CatalogueEntry:
    """The entry called `name`; raises `InputError` that lists the known ones."""
    for entry in CATALOGUE:
        if entry.name == name:
            return entry
    known = ", ".join(entry.name for entry in CATALOGUE)
    raise InputError(
        "init_unknown",
        f"'{name}' is neither a file, a model folder nor a name in the catalogue.",
        f"Give a model, the authors' file, 'none', or one of: {known}.",
    )


def packaged_weights(entry: CatalogueEntry) -> Path | None:
    """The model folder of an entry that comes with the package, None for the others."""
    folder = _PACKAGED / entry.name
    return folder if folder.is_dir() else None


def check_known_file(name: str, sha256: str) -> None:
    """Raise `InputError` when a file is called as one of the catalogue whose hash is known, and has another."""
    for entry in CATALOGUE:
        if entry.sha256 and name == entry.file_name and sha256 != entry.sha256:
            raise InputError(
                "weights_not_as_published",
                f"{name} is not the file that its authors published (SHA-256 {sha256[:12]}…, not {entry.sha256[:12]}…).",
                f"Download it again: {entry.published_at}. Rename it if it is meant to be another one.",
            )
