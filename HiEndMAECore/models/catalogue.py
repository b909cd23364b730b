"""Weights that training can start from by name. Plain data, which needs no torch.

The packaged weights are part of the installation. Others are published on sites that ask for a click, so nothing is
downloaded from here: an entry says where to get the file and how to use it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from HiEndMAECore.errors import InputError


@dataclass(frozen=True)
class CatalogueEntry:
    """Published weights.

    Attributes:
        name: Name for `--init`.
        title: What they are, in a few words.
        variant: Name of the ViT variant.
        published_at: Where they are published.
        size_bytes: Size of the file; 0 for packaged weights.
        sha256: SHA-256 of the file; empty where it is not known.
        license: Terms of use.
        how_to_place: What to do to use them, as a sentence.
        file_name: Name of the published file; empty for packaged weights.
    """

    name: str
    title: str
    variant: str
    published_at: str
    size_bytes: int
    sha256: str
    license: str
    how_to_place: str
    file_name: str


DEFAULT_WEIGHTS = "hi-end-mae-tiny"  # where `--init` names no others
_PACKAGED = Path(__file__).parent / "weights"
CATALOGUE = (
    CatalogueEntry(
        name=DEFAULT_WEIGHTS,
        title="Hi-End-MAE, ViT-T/8(192) with convolutions, pretrained on 237 unlabelled CT scans: comes with the program",
        variant="hi_end_mae_vit_tiny_8p",
        published_at="HiEndMAECore/models/weights (its README.md is the card)",
        size_bytes=0,
        sha256="",
        license="Apache-2.0; for the data see the card",
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
        license="Apache-2.0 (repository of the authors)",
        file_name="hi_end_mae_10k.pth",
        how_to_place="Download hi_end_mae_10k.pth with a browser and give its path as --init.",
    ),
)


def find_entry(name: str) -> CatalogueEntry:
    """Return the entry called `name`.

    Raises:
        InputError: `init_unknown`, with the list of known names.
    """
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
    """Return the model folder of packaged weights, or None for weights that do not come with the package."""
    folder = _PACKAGED / entry.name
    return folder if folder.is_dir() else None


def check_known_file(name: str, sha256: str) -> None:
    """Check a file that has the name of a published one against the SHA-256 of the catalogue, if that is known.

    Args:
        name: Name of the file, without folder.
        sha256: Its SHA-256.

    Raises:
        InputError: `weights_not_as_published`.
    """
    for entry in CATALOGUE:
        if entry.sha256 and name == entry.file_name and sha256 != entry.sha256:
            raise InputError(
                "weights_not_as_published",
                f"{name} is not the file that its authors published (SHA-256 {sha256[:12]}…, not {entry.sha256[:12]}…).",
                f"Download it again: {entry.published_at}. Rename it if it is meant to be another one.",
            )
