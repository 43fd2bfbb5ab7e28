"""An image that does not fit into this machine's memory, in each library that runs here."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import steel

CODE = """
import json, resource, sys
from pathlib import Path
from unetrt.engine.open import open_engine
from unetrt.runtime.plan import plan_tasks
from unetrt.runtime.predict import PredictOptions, predict_masks

model, images, out = sys.argv[1:]
with open_engine(Path(model), device="cpu") as engine:
    tasks = plan_tasks([images + "/small.png"], output_dir=Path(out))
    predict_masks(engine, tasks, PredictOptions())
    status = Path("/proc/self/status").read_text()
    size = next(int(line.split()[1]) for line in status.splitlines() if "VmSize" in line)
    room = (size << 10) + (600 << 20)
    resource.setrlimit(resource.RLIMIT_AS, (room, room))
    tasks = plan_tasks([images], output_dir=Path(out))
    print(json.dumps(predict_masks(engine, tasks, PredictOptions()).to_dict()))
"""


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for name in ("small", "a", "z"):
        Image.fromarray(steel(1, 48, 64)[..., 0]).save(folder / f"{name}.png")
    Image.fromarray(np.zeros((6000, 6000), np.uint8)).save(folder / "m.png")
    return folder


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
@pytest.mark.parametrize("backend", ["torch", "onnxruntime", "openvino"])
def test_it_costs_itself_alone(
    backend: str,
    images: Path,
    checkpoint_file: Callable[..., Path],
    exported: Callable[..., Path],
    tmp_path: Path,
) -> None:
    model = checkpoint_file() if backend == "torch" else exported()
    if backend == "openvino":
        model = tmp_path / "engine"
        build = ["build", str(exported()), "-o", str(model), "--backend", backend]
        build += ["--precision", "fp32"]  # where a processor has bf16, an untrained net fails in it
        subprocess.run([sys.executable, "-m", "unetrt.cli", *build], check=True)
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(model), str(images), str(tmp_path / "out")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    summary = json.loads(done.stdout)
    assert (summary["done"], summary["failed"]) == (3, 1), summary
    assert summary["failures"][0]["input"] == str(images / "m.png")
    assert "no memory for an image of 6000×6000 pixels" in summary["failures"][0]["reason"]
