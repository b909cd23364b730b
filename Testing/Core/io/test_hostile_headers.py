"""No header of a NRRD or MetaImage file ends the process that reads it."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from itk_files import VOXELS, meta, nrrd

from HiEndMAECore.data.crop_store import read_manifest

REPOSITORY = Path(__file__).resolve().parents[3]


KILLERS = {
    "type.nrrd": (nrrd, {"type": "A" * 1200}),
    "dims.mha": (meta, {"NDims": "-1"}),
    "hang.mha": (meta, {"TransformMatrix": "1e308 0 0 0 1 0 0 0 1"}),
    "format.mhd": (meta, {"ElementDataFile": "%s%s%s%n.raw"}),
    "honest.mhd": (meta, {"ElementDataFile": "my%20scan.raw"}),
}


@pytest.mark.parametrize("name", KILLERS)
def test_hostile_header_is_a_typed_error(tmp_path: Path, name: str) -> None:
    write, fields = KILLERS[name]
    (tmp_path / "my%20scan.raw").write_bytes(VOXELS.tobytes())
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from HiEndMAECore.errors import InputError\n"
        "from HiEndMAECore.data.ingest import count_voxels\n"
        "from HiEndMAECore.data.cases import Case\n"
        "from HiEndMAECore.io.readers import read_label_map, read_volume\n"
        "path = Path(sys.argv[1])\n"
        "assert count_voxels(Case('a', (path,))) == 0\n"
        "for read in (read_volume, read_label_map):\n"
        "    try:\n"
        "        read(path)\n"
        "    except InputError as error:\n"
        "        print(error.code)\n"
    )
    line = [sys.executable, "-c", code, str(write(tmp_path / name, **fields))]  # type: ignore[operator]
    done = subprocess.run(line, capture_output=True, text=True, cwd=REPOSITORY, timeout=60)
    assert (done.returncode, done.stdout.split()) == (0, ["not_a_volume"] * 2), done.stderr


def test_damaged_header_costs_one_scan_of_a_store(tmp_path: Path) -> None:
    (tmp_path / "scans").mkdir()
    noise = np.random.default_rng(0).normal(40, 60, (24, 24, 24)).astype(np.int16)
    sitk.WriteImage(sitk.GetImageFromArray(noise), str(tmp_path / "scans" / "good.nrrd"))
    for name, (write, fields) in KILLERS.items():
        write(tmp_path / "scans" / name, **fields)  # type: ignore[operator]
    code = "import sys; from HiEndMAECore.prepare import main; raise SystemExit(main(sys.argv[1:]))"
    line = [sys.executable, "-c", code, "--input", str(tmp_path / "scans"), "--output", str(tmp_path / "store")]
    done = subprocess.run([*line, "--workers", "0"], capture_output=True, text=True, cwd=REPOSITORY, timeout=120)
    assert done.returncode == 0, done.stderr
    manifest = read_manifest(tmp_path / "store")
    assert [scan["name"] for scan in manifest["scans"]] == ["good"]
    assert {row["name"]: row["code"] for row in manifest["left_out"]} == {
        Path(name).stem: "not_a_volume" for name in KILLERS
    }


FUZZ = """
import json, random, sys
from pathlib import Path

from HiEndMAECore.errors import InputError
from HiEndMAECore.io.readers import read_volume

try:
    import resource
    resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))
except ImportError:
    pass

folder, count = Path(sys.argv[1]), int(sys.argv[2])
rng = random.Random(int(sys.argv[3]))
seeds = sorted(path for path in folder.iterdir() if path.suffix in (".nrrd", ".nhdr", ".mha", ".mhd"))
VALUES = [
    "", "0", "-1", "1", "2", "4", "5", "11", "99", "3.5", "1e308", "-1e308", "1e-320", "inf", "nan", "-nan", "none",
    "99999999999", "9" * 400, "A" * 1200, "%s%n%n%n.raw", "LIST", "LOCAL", "/etc/passwd", "..", "voxels.raw", "True",
    "1 2 3", "0 0 0", "1 1 1 1", "1 0 0 0 1 0 0 0 1", "(1,0,0) (0,1,0) (0,0,1)", "(0,0,0)", "none none none", "((((",
    "MET_LONG_LONG_ARRAY", "MET_OTHER", "uint64", "block", "gzip", "ascii", "hex", "zrl", "bzip2", "big", "domain",
    "vector domain domain", "3-color domain domain", "left-posterior-superior-time", "right-up", "????",
]
FIELDS = [
    "type", "dimension", "sizes", "encoding", "space", "space dimension", "kinds", "spacings", "byte skip", "line skip",
    "data file", "measurement frame", "labels", "units", "space units", "old min", "axis mins", "block size", "content",
    "NDims", "DimSize", "Offset", "Origin", "Position", "Rotation", "Orientation", "HeaderSize", "CompressedData",
    "CompressedDataSize", "ElementNumberOfChannels", "ElementSize", "ElementByteOrderMSB", "BinaryData", "Color",
    "AnatomicalOrientation", "Comment", "Modality", "SequenceID", "ImagePosition", "ElementDirection", "ElementOrigin",
    "ElementDataFile", "ElementType", "ID", "Name", "FileFormatVersion", "ElementToIntensityFunctionSlope", "Custom",
]
outcomes = {"read": 0}
for number in range(count):
    seed = rng.choice(seeds)
    content = seed.read_bytes()
    sign = b": " if seed.suffix in (".nrrd", ".nhdr") else b" = "
    end = b"\\n\\n" if seed.suffix == ".nrrd" else b"LOCAL\\n"
    head, mark, voxels = content.partition(end)
    lines = (head + mark).split(b"\\n")
    for _ in range(rng.choice((1, 1, 2, 3))):
        place = rng.randrange(len(lines))
        name, separator, value = lines[place].partition(sign)
        way = rng.randrange(8)
        if way < 3 and separator:
            lines[place] = name + sign + rng.choice(VALUES).encode()
        elif way == 3:
            lines.insert(place, rng.choice(FIELDS).encode() + sign + rng.choice(VALUES).encode())
        elif way == 4:
            lines[place] = lines[place].replace(*rng.choice([(b" ", b""), (b"3", b"-3"), (b"1", b"1e300"), (b"4", b"9")]))
        elif way == 5 and lines[place]:
            at = rng.randrange(len(lines[place]))
            lines[place] = lines[place][:at] + bytes([rng.randrange(256)]) + lines[place][at + 1 :]
        elif way == 6:
            lines[place] = rng.choice((b"", b"junk", b"key:=" + b"v" * 3000, lines[rng.randrange(len(lines))]))
        else:
            words = value.split()
            lines[place] = name + separator + b" ".join(rng.choice((words[:-1], words * 2, words[::-1])))
    path = folder / "mutants" / f"m{seed.suffix}"
    path.write_bytes(b"\\n".join(lines) + voxels)
    print(number, flush=True)
    try:
        read_volume(path)
        outcomes["read"] += 1
    except InputError as error:
        assert path.name in error.message and error.advice, str(error)
        outcomes[error.code] = outcomes.get(error.code, 0) + 1
print(json.dumps(outcomes))
"""


def fuzz(folder: Path, count: int, seed: int) -> subprocess.CompletedProcess[str]:
    nrrd(folder / "plain.nrrd")
    nrrd(folder / "packed.nrrd", "key:=value", encoding="gzip", voxels=gzip.compress(VOXELS.tobytes()))
    nrrd(folder / "apart.nhdr", data_file="voxels.raw", voxels=b"")
    meta(folder / "plain.mha", "Custom = text")
    meta(folder / "apart.mhd", ElementDataFile="voxels.raw", voxels=b"")
    sitk.WriteImage(sitk.GetImageFromArray(VOXELS), str(folder / "packed.mha"), True)
    (folder / "mutants").mkdir()
    (folder / "mutants" / "voxels.raw").write_bytes(VOXELS.tobytes())
    line = [sys.executable, "-c", FUZZ, str(folder), str(count), str(seed)]
    return subprocess.run(line, capture_output=True, text=True, errors="replace", cwd=REPOSITORY, timeout=300)


def test_mutated_headers_are_read_or_refused(tmp_path: Path) -> None:
    done = fuzz(tmp_path, 400, seed=1)
    assert done.returncode == 0, f"{done.stdout[-200:]}\n{done.stderr[-2000:]}"
    outcomes = json.loads(done.stdout.splitlines()[-1])
    assert outcomes["read"] > 20
    assert outcomes["not_a_volume"] > 100
