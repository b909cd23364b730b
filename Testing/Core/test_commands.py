"""Commands as a person runs them: real processes and files, exit codes, events, and what each command leaves."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from command_runs import finetune_arguments, run

from HiEndMAECore.data.phantom import PHANTOM_STRUCTURES, make_patient
from HiEndMAECore.io.writers import write_scalar_map
from HiEndMAECore.models.folder import read_description
from HiEndMAECore.training.training_log import read_log, step_records


def test_commands_in_sequence_use_what_the_previous_one_left(patients: Path, tmp_path: Path) -> None:
    """Run prepare, pretrain, finetune, segment and evaluate."""
    received, _ = run("prepare", "--input", patients / "scans", "--output", tmp_path / "store", "--spacing", 8, 8, 8)
    assert {e["name"]: e["value"] for e in received if e["event"] == "metric"} == {"scans": 3}
    settings = ("--variant", "hi_end_mae_vit_tiny_8p", "--batch-size", 4, "--device", "cpu", "--crop", 32, 32, 32)
    received, _ = run("pretrain", "--data", tmp_path / "store", "--output", tmp_path / "run", "--steps", 3, *settings)
    assert [e["step"] for e in received if e["event"] == "progress" and e["stage"] == "pretraining"][-1] == 3
    assert (tmp_path / "run" / "progress.png").stat().st_size > 10_000
    assert [record.step for record in step_records(read_log(tmp_path / "run"))] == [1, 2, 3]
    pretrained = read_description(tmp_path / "run" / "model")
    model, out = tmp_path / "m.zip", tmp_path / "out"
    run("finetune", *finetune_arguments(patients, model, "--init", tmp_path / "run", "--steps", 2))
    finetuned = read_description(model)
    assert finetuned.training["init_sha256"] == pretrained.weights_sha256
    assert finetuned.preparation["spacing"] == [8.0, 8.0, 8.0]
    assert finetuned.format_version == 2  # with an atlas
    received, _ = run("segment", "--model", model, "--input", patients / "scans", "--output", out, "--clean")
    stages = [e["stage"] for e in received if e["event"] == "progress"]
    assert {"registration", "segmenting"} <= set(stages)
    assert stages.index("registration") < stages.index("segmenting")
    assert sorted(p.name for p in out.iterdir()) == [f"p{n}.{e}" for n in (1, 2, 3) for e in ("json", "nii.gz")]
    report = tmp_path / "report.json"
    received, _ = run("evaluate", "--prediction", out, "--reference", patients / "labels", "--output", report)
    assert any(e["event"] == "metric" and e["name"] == "dice" for e in received)


def test_segment_result_has_the_scans_grid_and_a_report(patients: Path, model: Path, tmp_path: Path) -> None:
    scan = patients / "scans" / "p2_0000.nii.gz"
    out = tmp_path / "Ergebnis ü.nii.gz"
    run("segment", "--model", model, "--input", scan, "--output", out, "--uncertainty")
    image, result = nib.load(scan), nib.load(out)
    assert result.shape == image.shape
    np.testing.assert_array_equal(result.affine, image.affine)
    entropy = nib.load(tmp_path / "Ergebnis ü_entropy.nii.gz")
    assert entropy.shape == image.shape
    record = json.loads((tmp_path / "Ergebnis ü.json").read_text(encoding="utf-8"))
    volumes = {s["value"]: s["volume_ml"] for s in record["structures"]}
    voxel_ml = 8.0**3 / 1000
    for value, volume in volumes.items():
        assert volume == pytest.approx(voxel_ml * int((np.asarray(result.dataobj) == value).sum()), abs=2e-3)


def test_segment_scan_without_structures_warns(patients: Path, model: Path, tmp_path: Path) -> None:
    scan, _ = make_patient(4, shape=(42, 36, 36), spacing=(8.0, 8.0, 8.0))
    write_scalar_map(tmp_path / "air.nii.gz", np.full_like(scan.array[0], -1000), scan.geometry)
    out = tmp_path / "out.nii.gz"
    received, _ = run("segment", "--model", model, "--input", tmp_path / "air.nii.gz", "--output", out)
    assert not np.asarray(nib.load(out).dataobj).any()
    warnings = [event for event in received if event["event"] == "warning" and event["code"] == "nothing_found"]
    assert [event["message"] for event in warnings] == ["air: No structure was found."]
    assert "nothing_found" in [note["code"] for note in json.loads((tmp_path / "out.json").read_text())["warnings"]]


def test_segment_with_all_components_removed_lists_no_review_slices(
    patients: Path, model: Path, tmp_path: Path
) -> None:
    """The model finds something in this patient, so that without the option there are slices to review."""
    for options in ((), ("--smallest", 1e6)):
        out = tmp_path / "out.nii.gz"
        run("segment", "--model", model, "--input", patients / "scans/p2_0000.nii.gz", "--output", out, *options)
        record = json.loads((tmp_path / "out.json").read_text())
        assert bool(record["review_slices"]) is not bool(options)
        assert bool(np.asarray(nib.load(out).dataobj).any()) is not bool(options)


def test_finetune_with_equal_steps_and_seed_gives_an_equal_model(patients: Path, model: Path, tmp_path: Path) -> None:
    run("finetune", *finetune_arguments(patients, tmp_path / "again", "--steps", 3))
    assert read_description(tmp_path / "again").weights_sha256 == read_description(model).weights_sha256


def test_finetune_model_contains_no_intensities_and_no_names_of_patients(patients: Path, model: Path) -> None:
    assert sorted(p.name for p in model.iterdir()) == ["model.json", "model.safetensors"]
    assert read_description(model).format_version == 1
    text = (model / "model.json").read_text(encoding="utf-8")
    assert "p1" not in json.loads(text)["name"]
    assert str(patients) not in text


def test_finetune_improve_keeps_the_structures(patients: Path, model: Path, tmp_path: Path) -> None:
    options = ("--improve", model, "--steps", 2)
    run("finetune", *finetune_arguments(patients, tmp_path / "improved", *options, case="p2"))
    old, new = read_description(model), read_description(tmp_path / "improved")
    assert [label["name"] for label in new.labels] == [label["name"] for label in old.labels]
    assert new.training["init_sha256"] == old.weights_sha256


def test_finetune_improve_with_a_new_structure_warns(patients: Path, model: Path, tmp_path: Path) -> None:
    image = nib.load(patients / "labels/p2.nii.gz")
    labels = np.asarray(image.dataobj).copy()
    labels[:4, :4, :4] = 9
    nib.save(nib.Nifti1Image(labels, image.affine), tmp_path / "p2.nii.gz")
    received, _ = run(
        "finetune", "--image", patients / "scans/p2_0000.nii.gz", "--label", tmp_path / "p2.nii.gz",
        "--improve", model, "--output", tmp_path / "improved", "--steps", 1, "--device", "cpu",
    )  # fmt: skip
    assert "labels_unknown" in [event.get("code") for event in received]


def test_segment_batch_with_unreadable_scans_segments_the_others(patients: Path, model: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "good.nii.gz").write_bytes((patients / "scans" / "p3_0000.nii.gz").read_bytes())
    (tmp_path / "in" / "cut.nii.gz").write_bytes((patients / "scans" / "p3_0000.nii.gz").read_bytes()[:2000])
    (tmp_path / "in" / "text.nii.gz").write_text("this is no scan")
    received, _ = run("segment", "--model", model, "--input", tmp_path / "in", "--output", tmp_path / "out", code=3)
    assert received[-1]["code"] == "some_cases_failed"
    assert "cut" in received[-1]["message"]
    assert "text" in received[-1]["message"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["good.json", "good.nii.gz"]


def test_segment_scans_of_one_name_get_different_results(patients: Path, model: Path, tmp_path: Path) -> None:
    for name in ("Doe, Jane", "Roe"):  # a comma in a folder's name does not separate channels
        (tmp_path / name).mkdir()
        (tmp_path / name / "ct.nii.gz").write_bytes((patients / "scans" / "p3_0000.nii.gz").read_bytes())
    scans = [tmp_path / name / "ct.nii.gz" for name in ("Doe, Jane", "Roe")]
    run("segment", "--model", model, "--input", *scans, "--output", tmp_path / "out")
    assert len(list((tmp_path / "out").glob("*.nii.gz"))) == 2


@pytest.mark.parametrize(
    ("arguments", "code", "quoted"),
    [
        (("segment", "--model", "{model}", "--input", "{data}/absent.nii.gz", "--output", "{out}"), 3, "absent.nii.gz"),
        (("segment", "--model", "{data}", "--input", "{data}/scans", "--output", "{out}"), 3, "no model"),
        (("segment", "--model", "{model}", "--input", "{data}/scans", "--output", "{out}/one.nii.gz"), 2, "3 scans"),
        (("segment", "--device", "cuda:7", "--model", "{model}", "--input", "{data}/scans", "--output", "{out}"), 2, "cuda"),
        (("finetune", "--image", "{data}/scans/p1_0000.nii.gz", "--output", "{out}"), 2, "--label"),
        (("finetune", "--image", "{data}/scans/p1_0000.nii.gz", "--label", "{data}/labels/p1.nii.gz",
          "--output", "{data}/labels", "--steps", "1"), 3, "will not be overwritten"),
        (("finetune", "--image", "{data}/scans/p1_0000.nii.gz", "--label", "{data}/scans/p1_0000.nii.gz", "--output", "{out}"),
         3, "p1_0000"),
        (("pretrain", "--data", "{data}/labels/none", "--output", "{out}", "--steps", "1"), 3, "none"),
        (("pretrain", "--data", "{data}", "--output", "{out}", "--batch-size", "3", "--accumulate", "2"), 2, "--batch-size 3"),
        (("prepare", "--input", "{data}/labels/none", "--output", "{out}"), 3, "none"),
    ],
)  # fmt: skip
def test_commands_with_wrong_arguments_name_the_mistake(
    patients: Path, model: Path, tmp_path: Path, arguments: tuple, code: int, quoted: str
) -> None:
    paths = {"model": model, "data": patients, "out": tmp_path / "out"}
    received, err = run(*(part.format(**paths) for part in arguments), code=code)
    assert quoted in received[-1]["message"]
    assert received[-1]["advice"]
    assert "Traceback" not in err


@pytest.mark.parametrize("option", ["--training-case", "--teacher"])  # the old spelling stays
def test_demo_on_a_data_set_trains_on_the_named_case(patients: Path, tmp_path: Path, option: str) -> None:
    """The data set has nnU-Net's layout. The steps are too few to train a model, but every command runs."""
    data = tmp_path / "data"
    for folder, source, case in (("imagesTr", "scans", "p1_0000"), ("imagesTr", "scans", "p2_0000"),
                                ("imagesUnlabelled", "scans", "p3_0000"), ("labelsTr", "labels", "p1"),
                                ("labelsTr", "labels", "p2")):  # fmt: skip
        (data / folder).mkdir(parents=True, exist_ok=True)
        (data / folder / f"{case}.nii.gz").write_bytes((patients / source / f"{case}.nii.gz").read_bytes())
    names = {structure.name: structure.value for structure in PHANTOM_STRUCTURES}
    description = {
        "name": "coarse",
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, **names},
        "file_ending": ".nii.gz",
    }
    (data / "dataset.json").write_text(json.dumps(description))
    out = tmp_path / "demo"
    settings = ("--pretraining-steps", 2, "--steps", 2, "--device", "cpu")
    received, _ = run("demo", "--output", out, "--dataset", data, option, "p2", *settings)
    previews = [Path(event["path"]).name for event in received if event["event"] == "preview"]
    assert previews == ["progress.png", "result.png"]
    assert [row["case"] for row in json.loads((out / "scores.json").read_text())["cases"]] == ["p1"] * len(names)
    assert (
        read_description(out / "model").training["init_sha256"]
        == read_description(out / "pretraining/model").weights_sha256
    )


def test_prepare_excludes_the_cases_of_the_exclusion_list(patients: Path, tmp_path: Path) -> None:
    (tmp_path / "splits.json").write_text(json.dumps({"test": ["p2"], "tune": ["p1"]}))
    settings = ("--input", patients / "scans", "--output", tmp_path / "store", "--spacing", 8, 8, 8)
    run("prepare", *settings, "--hold-out", tmp_path / "splits.json")
    manifest = json.loads((tmp_path / "store" / "manifest.json").read_text())
    assert [scan["name"] for scan in manifest["scans"]] == ["p3"]
    assert manifest["held_out"] == 2
    run("prepare", "--input", patients / "scans", "--output", tmp_path / "store", "--spacing", 4, 4, 4, code=3)
