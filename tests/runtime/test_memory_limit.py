"""An image that does not fit into this machine's memory whole, in each library that runs here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.conftest import steel
from unetrt.cli.main import main

CODE = """
import json, resource, sys
from pathlib import Path
from unetrt.engine.open import open_engine
from unetrt.runtime.plan import plan_tasks
from unetrt.runtime.predict import PredictOptions, predict_masks

model, images, out, room = sys.argv[1:]
with open_engine(Path(model), device="cpu") as engine:
    tasks = plan_tasks([images + "/small.png"], output_dir=Path(out))
    predict_masks(engine, tasks, PredictOptions())
    status = Path("/proc/self/status").read_text()
    size = next(int(line.split()[1]) for line in status.splitlines() if "VmSize" in line)
    limit = (size << 10) + (int(room) << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    tasks = plan_tasks([images], output_dir=Path(out))
    print(json.dumps(predict_masks(engine, tasks, PredictOptions()).to_dict()))
"""


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for name in ("small", "a", "z"):
        Image.fromarray(steel(1, 48, 64)[..., 0]).save(folder / f"{name}.png")
    Image.fromarray(np.zeros((4000, 4000), np.uint8)).save(folder / "m.png")
    return folder


def run_in(room: int, model: Path, images: Path, out: Path) -> tuple[dict[str, Any], str]:
    """The summary and what was said, with `room` MiB more than the libraries take."""
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(model), str(images), str(out), str(room)],
        capture_output=True,
        text=True,
        check=False,
        # Else each thread reserves address space of its own, which the limit counts.
        env={**os.environ, "MALLOC_ARENA_MAX": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    summary: dict[str, Any] = json.loads(done.stdout)
    return summary, done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
@pytest.mark.parametrize("backend", ["torch", "onnxruntime", "openvino"])
def test_it_is_computed_in_tiles(
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
        assert main(build) == 0
    room = 1000 if backend == "onnxruntime" else 600  # it keeps what it has had
    summary, said = run_in(room, model, images, tmp_path / "out")
    assert (summary["done"], summary["failed"]) == (4, 0), (summary, said)
    assert "4000×4000 pixels whole: it, and others as large, are computed in overlapping" in said
    with Image.open(tmp_path / "out" / "m.png") as mask:
        assert mask.size == (4000, 4000)


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_what_cannot_be_cut_costs_itself_alone(
    images: Path, checkpoint_file: Callable[..., Path], tmp_path: Path
) -> None:
    model = checkpoint_file(bilinear=True)
    summary, _ = run_in(600, model, images, tmp_path / "out")
    assert (summary["done"], summary["failed"]) == (3, 1), summary
    assert summary["failures"][0]["input"] == str(images / "m.png")
    assert "no memory for an image of 4000×4000 pixels" in summary["failures"][0]["reason"]
