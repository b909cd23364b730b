"""Names of earlier versions that scripts may import stay importable."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import pytest
from bare_python import REPOSITORY

import HiEndMAECore

# The public names of version 0.1.0 (commit 493a06a), and where they stand now.
OLD_NAMES = {
    "catalogue": {
        "CATALOGUE": "models.catalogue.CATALOGUE",
        "OURS": "models.catalogue.DEFAULT_WEIGHTS",
        "CatalogueEntry": "models.catalogue.CatalogueEntry",
        "check_known_file": "models.catalogue.check_known_file",
        "find_entry": "models.catalogue.find_entry",
        "in_the_box": "models.catalogue.packaged_weights",
    },
    "conversion": {
        "SUFFIXES": "models.conversion.SUFFIXES",
        "convert": "models.conversion.convert",
        "main": "models.conversion.main",
    },
    "model_folder": {
        "DESCRIPTION": "models.folder.DESCRIPTION",
        "FORMAT_VERSION": "models.description.FORMAT_VERSION",
        "KINDS": "models.description.KINDS",
        "ModelDescription": "models.description.ModelDescription",
        "WEIGHTS": "models.folder.WEIGHTS",
        "copy_model": "models.folder.copy_model",
        "is_model": "models.folder.is_model",
        "read_description": "models.folder.read_description",
        "read_weights": "models.folder.read_weights",
        "refuse_taken": "models.folder.check_output_free",
        "write_model": "models.folder.write_model",
    },
    "official": {
        "load_pretraining_state": "models.authors.load_pretraining_state",
        "load_strictly": "networks.transfer.load_strict",
        "read_authors_file": "models.authors.read_authors_checkpoint",
        "strip_wrapper": "models.authors.strip_module_prefix",
        "variant_of": "models.authors.infer_variant",
        "write_authors_file": "models.authors.write_authors_checkpoint",
    },
    "transfer": {
        "InitialWeights": "models.pretrained.PretrainedWeights",
        "inflate": "networks.transfer.inflate_input_weight",
        "read_initial": "models.pretrained.read_pretrained",
        "start_from": "models.pretrained.load_pretrained",
        "transfer_encoder": "models.pretrained.load_encoder",
    },
}


@pytest.mark.parametrize(
    ("module", "old", "new"), [(module, old, new) for module, names in OLD_NAMES.items() for old, new in names.items()]
)
def test_old_name_in_checkpoints_is_the_new_object(module: str, old: str, new: str) -> None:
    new_module, _, name = new.rpartition(".")
    expected = getattr(import_module(f"HiEndMAECore.{new_module}"), name)
    assert getattr(import_module(f"HiEndMAECore.checkpoints.{module}"), old) is expected


@pytest.mark.parametrize("module", OLD_NAMES)
def test_compatibility_module_exports_its_old_names_only(module: str) -> None:
    assert set(import_module(f"HiEndMAECore.checkpoints.{module}").__all__) == set(OLD_NAMES[module])


def test_conversion_runs_as_a_module_of_checkpoints() -> None:
    line = [sys.executable, "-m", "HiEndMAECore.checkpoints.conversion", "--help"]
    result = subprocess.run(line, capture_output=True, text=True, cwd=REPOSITORY)
    assert result.returncode == 0, result.stderr
    assert "usage:" in result.stdout
    assert "RuntimeWarning" not in result.stderr


def test_former_name_of_commands_is_the_same_object() -> None:
    assert HiEndMAECore.DOORS is HiEndMAECore.COMMANDS
    assert HiEndMAECore.COMMANDS[:5] == ("prepare", "pretrain", "finetune", "segment", "evaluate")
