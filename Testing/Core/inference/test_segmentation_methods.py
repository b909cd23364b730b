"""The commands `finetune` and `segment` with an atlas: the three methods, their reports, and what cannot be registered."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from small_patients import SPACING, small_head, small_patient, with_affine, write_pair

from HiEndMAECore import finetune, segment
from HiEndMAECore.data.phantom import LIVER
from HiEndMAECore.errors import Cancelled, InputError
from HiEndMAECore.evaluation.metrics import dice
from HiEndMAECore.io.readers import read_label_map
from HiEndMAECore.io.volume import Geometry, Volume
from HiEndMAECore.io.writers import write_scalar_map
from HiEndMAECore.models.folder import read_description
from HiEndMAECore.reporting.reporter import Reporter

METHODS = ("auto", "network", "registration")


class StageReporter(Reporter):
    """A reporter that records the stages, and cancels at a step of one of them."""

    def __init__(self, cancel_at: tuple[str, int] | None = None) -> None:
        super().__init__(quiet=True)
        self.stages: list[str] = []
        self.cancel_at = cancel_at

    def progress(self, stage: str, step: int, total: int, **values: object) -> None:
        self.stages.append(stage)
        if (stage, step) == self.cancel_at:
            self.cancel()
        super().progress(stage, step, total, **values)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write three small patients."""
    path = tmp_path_factory.mktemp("methods")
    for seed in (1, 2, 3):
        write_pair(path, f"p{seed}", *small_patient(seed))
    return path


def train(folder: Path, name: str, **options: Any) -> Path:
    """Train for two steps, so that what is found comes from the registration."""
    settings: dict[str, Any] = {"steps": 2, "device": "cpu", "spacing": SPACING, "network": "res_unet", **options}
    image, label = folder / "scans" / "p1.nii.gz", folder / "labels" / "p1.nii.gz"
    finetune.run(finetune.FinetuneConfig(image=(str(image),), label=(label,), output=folder / name, **settings))
    return folder / name


@pytest.fixture(scope="module")
def model(folder: Path) -> Path:
    return train(folder, "model")


@pytest.fixture(scope="module")
def without_atlas(folder: Path) -> Path:
    return train(folder, "without", no_atlas=True)


def run(model: Path, scans: Path, output: Path, report: Reporter | None = None, **options: Any) -> dict[str, Any]:
    config = segment.SegmentConfig(model=model, input=(str(scans),), output=output, device="cpu", **options)
    return segment.run(config, report)


def report_of(path: Path) -> dict[str, Any]:
    name = path.name.removesuffix(".gz").removesuffix(".nii")
    return dict(json.loads(path.with_name(f"{name}.json").read_text(encoding="utf-8")))


def liver_dice(result: Path, labels: Volume) -> float:
    return dice(read_label_map(result, allow_empty=True).array[0] == LIVER, labels.array[0] == LIVER) or 0.0


def write(path: Path, volume: Volume) -> Path:
    write_scalar_map(path, volume.array[0], volume.geometry)
    return path


def test_finetuned_model_keeps_an_atlas_and_has_format_2(model: Path) -> None:
    assert sorted(path.name for path in model.iterdir()) == ["atlas.safetensors", "model.json", "model.safetensors"]
    description = read_description(model)
    assert description.format_version == 2
    assert len(description.atlas) == 1
    assert "p1" not in json.dumps(list(description.atlas))


def test_model_without_an_atlas_has_format_1_and_segments_with_the_network(
    folder: Path, without_atlas: Path, tmp_path: Path
) -> None:
    assert sorted(path.name for path in without_atlas.iterdir()) == ["model.json", "model.safetensors"]
    assert read_description(without_atlas).format_version == 1
    report = StageReporter()
    run(without_atlas, folder / "scans" / "p2.nii.gz", tmp_path / "auto.nii.gz", report)
    assert "registration" not in report.stages
    assert report_of(tmp_path / "auto.nii.gz")["registration"] == []
    run(without_atlas, folder / "scans" / "p2.nii.gz", tmp_path / "network.nii.gz", method="network")
    first, second = (read_label_map(tmp_path / f"{name}.nii.gz", allow_empty=True) for name in METHODS[:2])
    assert (first.array == second.array).all()


def test_registration_with_a_model_without_an_atlas_is_refused(
    folder: Path, without_atlas: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out.nii.gz"
    with pytest.raises(InputError, match="keeps no atlas") as caught:
        run(without_atlas, folder / "scans", tmp_path / "out", method="registration")
    assert caught.value.code == "model_without_atlas"
    assert "--method network" in caught.value.advice
    arguments = ["--model", without_atlas, "--input", folder / "scans" / "p2.nii.gz", "--output", output]
    assert segment.main([*map(str, arguments), "--method", "registration", "--device", "cpu"]) == 3
    assert "keeps no atlas" in capsys.readouterr().err
    assert not output.exists()


def test_unknown_method_is_a_usage_error(folder: Path, model: Path, tmp_path: Path) -> None:
    arguments = ["--model", model, "--input", folder / "scans", "--output", tmp_path / "out", "--method", "atlas"]
    with pytest.raises(SystemExit) as caught:
        raise SystemExit(segment.main([*map(str, arguments)]))
    assert caught.value.code == 2


@pytest.mark.parametrize("method", METHODS)
def test_each_method_writes_a_result_on_the_scans_grid_and_its_record(
    folder: Path, model: Path, tmp_path: Path, method: str
) -> None:
    scan, output, report = folder / "scans" / "p2.nii.gz", tmp_path / "out.nii.gz", StageReporter()
    run(model, scan, output, report, method=method, uncertainty=True)
    image, result = nib.load(scan), nib.load(output)
    assert result.shape == image.shape
    np.testing.assert_array_equal(result.affine, image.affine)
    assert nib.load(tmp_path / "out_entropy.nii.gz").shape == image.shape
    record = report_of(output)
    assert record["warnings"] == []
    assert record["engine"] == ("registration" if method == "registration" else "torch")
    assert record["options"].get("method") == (None if method == "auto" else method)
    assert ("registration" in report.stages) == ("registration" in record["seconds_of_parts"]) == (method != "network")
    assert ("segmenting" in report.stages) == (method != "registration")
    if method == "network":
        assert record["registration"] == []
    else:
        (entry,) = record["registration"]
        assert entry["reasons"] == []
        assert 0 < entry["cost"] < 0.8
        assert 0.6 < entry["body_overlap"] <= 1
        assert liver_dice(output, small_patient(2)[1]) > 0.6
        confidence = {row["value"]: row["confidence"] for row in record["structures"]}
        assert 0.2 < confidence[LIVER] <= 1


def test_rerun_with_another_method_computes_the_results_again(folder: Path, model: Path, tmp_path: Path) -> None:
    for seed in (2, 3):
        write(tmp_path / "in" / f"p{seed}.nii.gz", small_patient(seed)[0])

    def stamps(**options: Any) -> list[int]:
        run(model, tmp_path / "in", tmp_path / "out", **options)
        return [path.stat().st_mtime_ns for path in sorted((tmp_path / "out").glob("*.nii.gz"))]

    registered = stamps(method="registration")
    assert stamps(method="registration") == registered
    network = stamps(method="network")
    assert all(new != old for new, old in zip(network, registered))
    assert stamps(method="network") == network


def test_result_of_a_version_without_methods_is_up_to_date(folder: Path, without_atlas: Path, tmp_path: Path) -> None:
    """Its report has neither the option nor the key `registration`."""
    for seed in (2, 3):
        write(tmp_path / "in" / f"p{seed}.nii.gz", small_patient(seed)[0])
    run(without_atlas, tmp_path / "in", tmp_path / "out")
    result = tmp_path / "out" / "p2.nii.gz"
    record = report_of(result)
    assert "method" not in record["options"]
    del record["registration"]
    (tmp_path / "out" / "p2.json").write_text(json.dumps(record), encoding="utf-8")
    before = result.stat().st_mtime_ns
    run(without_atlas, tmp_path / "in", tmp_path / "out")
    assert result.stat().st_mtime_ns == before


@pytest.mark.parametrize("method", ["auto", "registration"])
@pytest.mark.parametrize("kind", ["oblique", "anisotropic", "flipped"])
def test_scan_on_another_grid_keeps_its_geometry_exactly(model: Path, tmp_path: Path, kind: str, method: str) -> None:
    scan, labels = small_patient(2)
    if kind == "anisotropic":
        scan, labels = (every_second_slice(volume) for volume in (scan, labels))
    elif kind == "flipped":
        scan, labels = (flipped(volume) for volume in (scan, labels))
    else:
        turn = nib.affines.from_matvec(nib.eulerangles.euler2mat(0.1, -0.08, 0.12), [31.7, -12.3, 400.9])
        scan, labels = (with_affine(volume, turn @ volume.affine) for volume in (scan, labels))
    path, output = write(tmp_path / "scan.nii.gz", scan), tmp_path / "out.nii.gz"
    run(model, path, output, method=method)
    stored, result = nib.load(path), nib.load(output)
    assert result.shape == stored.shape == scan.shape
    np.testing.assert_array_equal(result.affine, stored.affine)
    assert liver_dice(output, labels) > 0.5


def every_second_slice(volume: Volume) -> Volume:
    """Return a volume with every second axial slice."""
    affine = volume.affine.copy()
    affine[:3, 2] *= 2
    return with_affine(Volume(volume.array[..., ::2], Geometry((42, 36, 18), affine)), affine)


def flipped(volume: Volume) -> Volume:
    """Return the same patient stored from left to right and with other axes first."""
    affine = volume.affine @ np.array([[0, 0, -1, 41], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1.0]])
    array = np.ascontiguousarray(volume.array[:, ::-1].transpose(0, 2, 3, 1))
    return Volume(array, Geometry(array.shape[1:], affine))


def test_scan_of_another_region_is_segmented_by_the_network_with_a_warning(model: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "head.nii.gz", small_head())
    report = Reporter(quiet=True)
    run(model, path, tmp_path / "auto.nii.gz", report)
    run(model, path, tmp_path / "network.nii.gz", method="network")
    first, second = (read_label_map(tmp_path / f"{name}.nii.gz", allow_empty=True) for name in METHODS[:2])
    assert (first.array == second.array).all()
    record = report_of(tmp_path / "auto.nii.gz")
    (warning,) = [warning for warning in record["warnings"] if warning["code"] == "registration_failed"]
    assert record["registration"][0]["reasons"]
    assert record["registration"][0]["reasons"][0] in warning["message"]
    assert [w["message"].split(":")[0] for w in report.warnings if w["code"] == "registration_failed"] == ["head"]


def test_registration_alone_of_another_region_fails(model: Path, tmp_path: Path) -> None:
    """A single scan raises it; in a batch the scan is skipped."""
    path = write(tmp_path / "in" / "head.nii.gz", small_head())
    with pytest.raises(InputError, match="could not be registered to head") as caught:
        run(model, path, tmp_path / "head.nii.gz", method="registration")
    assert caught.value.code == "registration_failed"
    write(tmp_path / "in" / "p2.nii.gz", small_patient(2)[0])
    with pytest.raises(InputError, match="1 of 2 scans were segmented; these could not be used: head"):
        run(model, tmp_path / "in", tmp_path / "out", method="registration")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["p2.json", "p2.nii.gz"]


@pytest.mark.parametrize("kind", ["air", "single slice"])
def test_scan_that_shows_nothing_to_register_has_no_propagated_labels(model: Path, tmp_path: Path, kind: str) -> None:
    scan = small_patient(2)[0]
    if kind == "air":
        volume = Volume(np.full_like(scan.array, -1000), scan.geometry)
    else:
        volume = Volume(scan.array[..., 18:19], Geometry((42, 36, 1), scan.affine))
    run(model, write(tmp_path / "scan.nii.gz", volume), tmp_path / "out.nii.gz")
    record = report_of(tmp_path / "out.nii.gz")
    assert record["registration"] == [{}]
    assert "registration_failed" in [warning["code"] for warning in record["warnings"]]
    if kind == "air":
        assert not read_label_map(tmp_path / "out.nii.gz", allow_empty=True).array.any()


def test_segment_is_cancelled_during_the_registration(folder: Path, model: Path, tmp_path: Path) -> None:
    report = StageReporter(cancel_at=("registration", 5))
    with pytest.raises(Cancelled):
        run(model, folder / "scans", tmp_path / "out", report)
    assert set(report.stages) == {"registration"}
    assert len(report.stages) == 6  # steps 0 to 5
    assert not list(tmp_path.rglob("*.nii.gz"))
