"""Small Python programs that take the engine's place in tests of the panels."""

from __future__ import annotations

import json
import sys
from pathlib import Path

# `segment` that copies the scan as its result, with `report` as the text of NAME.json
FINISHING_ENGINE = """
import json, shutil, sys
from pathlib import Path
config = json.load(open(sys.argv[sys.argv.index("--config") + 1], encoding="utf-8"))
shutil.copy(config["input"][0], config["output"])
Path(config["output"]).with_suffix(".json").write_text({report!r})
print(json.dumps(dict(v=1, event="finished", outputs={{}})), flush=True)
"""

# `finetune` that writes a training checkpoint, and notes into `file` how it was started
CHECKPOINT_WRITER = """
import json, sys
from pathlib import Path
config = json.load(open(sys.argv[sys.argv.index("--config") + 1], encoding="utf-8"))
training = Path(config["output"] + ".training")
training.mkdir(exist_ok=True)
(training / "snapshot.safetensors").write_bytes(b"an hour of training")
Path({file!r}).write_text(json.dumps([config["resume"], config["output"], Path(config["image"][0]).is_file()]))
"""

# Shows one preview in training, and runs for a long time
PREVIEWING_ENGINE = """
import json, sys, time
from pathlib import Path
config = json.load(open(sys.argv[sys.argv.index("--config") + 1], encoding="utf-8"))
if "label" in config:
    Path(config["output"] + ".training").mkdir()
    print(json.dumps(dict(v=1, event="preview", path=config["label"][0])), flush=True)
time.sleep(100)
"""

# `finetune` that writes the zipped `model`
TRAINED_ENGINE = """
import json, sys, time, zipfile
config = json.load(open(sys.argv[sys.argv.index("--config") + 1], encoding="utf-8"))
time.sleep(0.5)
zipfile.ZipFile({model!r}).extractall(config["output"])
print(json.dumps(dict(v=1, event="preview", path=config["label"][0])), flush=True)
print(json.dumps(dict(v=1, event="finished", outputs={{}})), flush=True)
"""

# Notes into `file` the spacing that was asked for
SPACING_WRITER = """
import json, sys
from pathlib import Path
config = json.load(open(sys.argv[sys.argv.index("--config") + 1], encoding="utf-8"))
Path({file!r}).write_text(json.dumps(config.get("spacing")))
"""

# Notes into `file` all options
OPTIONS_WRITER = """
import shutil, sys
shutil.copy(sys.argv[sys.argv.index("--config") + 1], {file!r})
"""

# `segment` that registers, labels all dense voxels of a scan of 16 bits with 1, and notes its options into `file`
LABELLING_ENGINE = (
    OPTIONS_WRITER
    + """
import json, time
from pathlib import Path
import numpy as np
def send(**event): print(json.dumps(dict(v=1, **event)), flush=True)
config = json.load(open({file!r}, encoding="utf-8"))
send(event="progress", stage="registration", step=4, total=40, seconds_left=12.3)
time.sleep(0.5)
content = bytearray(Path(config["input"][0]).read_bytes())
voxels = np.frombuffer(content, "<i2", offset=352)
voxels[:] = voxels > 20
Path(config["output"]).write_bytes(content)
report = dict(structures=[dict(name="Leber", volume_ml=7.0)], review_slices=[])
Path(config["output"]).with_suffix(".json").write_text(json.dumps(report))
send(event="finished", outputs={{}})
"""
)


def use_fake_engine(tmp_path: Path, source: str) -> None:
    """Let `PythonSlicer` run the Python program `source` instead of the engine."""
    from stand_in.application import use_engine

    program = tmp_path / "engine.py"
    program.write_text(source, encoding="utf-8")
    use_engine(sys.executable, str(program))


def failing_engine(code: str, text: str = "It failed.", advice: str = "") -> str:
    """Return the source of an engine that fails with this code, message and advice."""
    event = {"v": 1, "event": "failed", "code": code, "message": text, "advice": advice}
    return f"print({json.dumps(event)!r})"
