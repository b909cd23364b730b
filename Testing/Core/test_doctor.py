"""The doctor: it runs on any Python, reports what is missing, and gives the command that installs it."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from bare_python import REPOSITORY, run_bare

from HiEndMAECore import doctor
from HiEndMAECore.doctor import DoctorConfig
from HiEndMAECore.errors import MissingDependencyError, UsageError
from HiEndMAECore.reporting import events
from HiEndMAECore.runtime import diagnostics
from HiEndMAECore.runtime.devices import compiled_for
from HiEndMAECore.runtime.requirements import OPTIONAL, REQUIRED, name_of, outside


def test_requirements_equal_those_of_pyproject() -> None:
    text = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    lists = {
        name: ast.literal_eval(f"[{body}]") for name, body in re.findall(r"^(\w+) = \[(.*?)\]$", text, re.M | re.S)
    }
    assert tuple(lists["dependencies"]) == REQUIRED
    assert set(lists["figures"]) <= set(OPTIONAL)


def test_doctor_reports_this_computer(tmp_path: Path) -> None:
    line = [sys.executable, "-m", "HiEndMAECore.doctor", "--events", "--output", str(tmp_path / "new" / "doctor.json")]
    process = subprocess.run(line, capture_output=True, text=True, cwd=REPOSITORY)
    received = [events.decode(row) for row in process.stdout.splitlines()]
    assert (process.returncode, received[-1]["event"]) == (0, "finished"), process.stderr
    metrics = {event["name"]: event["value"] for event in received if event["event"] == "metric"}
    found = json.loads((tmp_path / "new" / "doctor.json").read_text())
    assert found["can_run"] is True
    assert found["missing"] == []
    assert set(found["packages"]) == {name_of(line) for line in (*REQUIRED, *OPTIONAL)}
    assert found["devices"][-1]["device"] == "cpu"
    for name in ("cores", "memory_gb", "disk_free_gb"):
        assert metrics[name] == found[name] > 0
    training = found["devices"][-1]["training"]
    assert metrics["steps_a_minute"] == training["steps_a_minute"] > 0
    assert metrics["steps_in_five_minutes"] == training["steps_in_five_minutes"] >= 20


def test_doctor_on_a_bare_python_gives_the_command_to_install() -> None:
    process = run_bare("from HiEndMAECore.doctor import main; sys.exit(main([]))")
    assert process.returncode == 5
    assert process.stdout == ""
    last_line = process.stderr.splitlines()[-1]
    assert all(f'"{line}"' in last_line for line in REQUIRED)
    assert f'"{sys.executable}" -m pip install' in last_line
    assert "an unknown amount of memory" in process.stderr  # psutil is missing too
    assert "The training speed is not measured" in process.stderr
    process = run_bare("from HiEndMAECore.doctor import main; sys.exit(main(['--events']))")
    last = events.decode(process.stdout.splitlines()[-1])
    assert (process.returncode, last["event"], last["code"]) == (5, "failed", "dependency_missing")


@pytest.fixture
def other_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder in front of the installed packages, for others that hide them."""
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def install(folder: Path, name: str, version: str, code: str | None = None) -> None:
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    if code is not None:
        (folder / f"{name}.py").write_text(code)


def test_doctor_with_an_old_package_fails_with_the_command_to_install(other_packages: Path) -> None:
    install(other_packages, "nibabel", "4.9.1")
    with pytest.raises(MissingDependencyError) as caught:
        doctor.run(DoctorConfig(output=other_packages / "doctor.json"))
    assert "nibabel" in caught.value.message
    assert '"nibabel>=5.0"' in caught.value.advice
    assert "monai" not in caught.value.advice
    found = json.loads((other_packages / "doctor.json").read_text())
    assert (found["can_run"], found["missing"]) == (False, ["nibabel"])
    assert found["devices"][-1] == {"device": "cpu", "name": "CPU"}  # its speed is not measured


def test_doctor_with_a_broken_package_fails(other_packages: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(other_packages, "safetensors", "0.5.0", "raise OSError('a DLL is missing')")
    monkeypatch.delitem(sys.modules, "safetensors", raising=False)
    with pytest.raises(MissingDependencyError, match="safetensors"):
        doctor.run(DoctorConfig())


def test_doctor_with_the_slow_torch_warns_only(other_packages: Path, capsys: pytest.CaptureFixture[str]) -> None:
    install(other_packages, "torch", "2.9.1+cu128")
    assert doctor.main([]) == 0
    err = capsys.readouterr().err
    assert "torch 2.9.1+cu128 computes 3D convolutions about 4 times slower" in err
    assert '"torch>=2.2,!=2.9.*"' in err


@pytest.mark.parametrize(
    ("version", "fault"),
    [
        ("2.1.2", "too old"),
        ("2.2", ""),
        ("2.2.0+cpu", ""),
        ("2.9.0+cu128", "excluded"),
        ("2.10.0", ""),
        ("2.90.1", ""),
        ("3.0.0a0+git1.9", ""),
    ],
)
def test_outside_compares_versions_as_numbers(version: str, fault: str) -> None:
    assert outside(version, "torch>=2.2,!=2.9.*") == fault


@pytest.mark.parametrize(
    ("capability", "architectures", "runs"),
    [
        ((8, 6), ["sm_75", "sm_80", "sm_90"], True),  # machine code of the same major version
        ((6, 1), ["sm_75", "sm_80", "sm_90"], False),
        ((12, 0), ["sm_80", "sm_90"], False),  # a newer card without PTX
        ((12, 0), ["sm_90", "compute_90"], True),
        ((7, 5), ["compute_90"], False),
        ((9, 0), ["sm_90a"], True),
        ((12, 0), ["sm_100", "sm_120"], True),
        ((8, 0), ["sm_86"], False),
    ],
)
def test_compiled_for_follows_the_rules_of_cuda(
    capability: tuple[int, int], architectures: list[str], runs: bool
) -> None:
    assert compiled_for(capability, architectures) is runs


def test_choose_device_skips_devices_that_this_torch_cannot_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two cards, of which the first is too old for this torch, then Apple's graphics. All of them are stand-ins."""
    import torch

    from HiEndMAECore.runtime import devices

    cards = [SimpleNamespace(major=6, minor=1), SimpleNamespace(major=9, minor=0)]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(cards))
    monkeypatch.setattr(torch.cuda, "get_device_properties", cards.__getitem__)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_80", "sm_90"])
    assert devices.choose_device() == torch.device("cuda", 1)
    monkeypatch.setenv("LOCAL_RANK", "1")  # the second process of a machine that shows each but one card
    assert devices.choose_device() == devices.choose_device("cuda") == torch.device("cuda", 1)
    with pytest.raises(UsageError, match="does not support the GPU cuda:0"):
        devices.choose_device("cuda:0")
    cards.clear()
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    devices.mps_is_usable.cache_clear()
    assert devices.choose_device() == torch.device("cpu")  # this torch has no kernels for mps at all
    with pytest.raises(UsageError, match="mps"):
        devices.choose_device("mps")
    devices.mps_is_usable.cache_clear()


@pytest.mark.skipif(sys.platform == "win32", reason="needs a shell script in place of nvidia-smi")
def test_doctor_with_a_cpu_build_beside_an_nvidia_card_warns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    if torch.cuda.is_available() or torch.version.cuda is not None:
        pytest.skip("needs a torch that was built for the CPU")
    script = tmp_path / "nvidia-smi"
    script.write_text("#!/bin/sh\necho '| NVIDIA-SMI 550.54   Driver Version: 550.54   CUDA Version: 12.4 |'\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert doctor.main([]) == 0
    err = capsys.readouterr().err
    assert "built for the CPU alone" in err
    assert "--index-url https://download.pytorch.org/whl/cu126" in err  # the driver serves no newer one
    script.write_text(script.read_text().replace("12.4", "13.0"))
    assert doctor.main([]) == 0
    assert "--index-url https://download.pytorch.org/whl/cu128" in capsys.readouterr().err


def test_find_devices_lists_usable_cards_and_explains_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two cards, of which the first is too old for this torch. Both are stand-ins."""
    import torch

    cards = [
        SimpleNamespace(major=6, minor=1, name="Old card", total_memory=8_000_000_000),
        SimpleNamespace(major=9, minor=0, name="New card", total_memory=79_600_000_000),
    ]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(cards))
    monkeypatch.setattr(torch.cuda, "get_device_properties", cards.__getitem__)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_80", "sm_90"])
    devices, problems = diagnostics.find_devices()
    assert devices[0] == {"device": "cuda:1", "name": "New card", "memory_gb": 79.6}
    assert devices[-1] == {"device": "cpu", "name": "CPU"}
    assert [problem.code for problem in problems] == ["gpu_unsupported"]
    assert "Old card (compute capability 6.1)" in problems[0].message
    assert "cu126" in problems[0].advice


@pytest.mark.parametrize(
    ("driver", "built", "codes"),
    [
        ("11.4", "12.8", ["driver_too_old"]),
        ("13.0", "12.8", ["gpu_hidden"]),
        ("13.0", None, ["torch_without_cuda"]),
        ("", "12.8", []),
    ],
)
def test_find_devices_without_a_card_explains_what_the_driver_says(
    monkeypatch: pytest.MonkeyPatch, driver: str, built: str | None, codes: list[str]
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", built)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(diagnostics, "driver_cuda_version", lambda: driver)
    assert [problem.code for problem in diagnostics.find_devices()[1]] == codes


def test_doctor_with_an_absent_device_fails(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main(["--device", "cuda:63"]) == 2
    assert "cuda:63" in capsys.readouterr().err
