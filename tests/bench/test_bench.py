"""The bench: every row in its own process, agreement beside the speed, no number without it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from tests.bench.conftest import row_result
from tests.conftest import balanced_checkpoint, steel
from unetrt.bench import gain
from unetrt.bench import row as row_module
from unetrt.bench.engine_row import measure_engine
from unetrt.bench.job import REFERENCE, RowJob, job_fields, result_from_dict
from unetrt.bench.judge import judge_masks, verdict
from unetrt.bench.reference import ReferenceLoop
from unetrt.bench.report import table_lines
from unetrt.bench.result import Bench, Row
from unetrt.bench.row import measure_row
from unetrt.bench.run import run_job
from unetrt.bench.table import BenchOptions, bench_models
from unetrt.bench.torch_rows import half_precision_on_cpu, require_compiler
from unetrt.cli.main import main
from unetrt.contract.errors import ImageError, UserError
from unetrt.contract.masks import class_indices, read_mask
from unetrt.contract.resize import network_input
from unetrt.contract.spec import SpecOverrides
from unetrt.contract.types import U8
from unetrt.engine.torch_backend import TorchEngine

CheckpointFile = Callable[..., Path]

pytestmark = pytest.mark.usefixtures("one_thread")


def job_of(model: Path, images: Path, outputs: Path, backend: str = "auto") -> RowJob:
    sources = sorted(images.iterdir())
    outputs.mkdir(exist_ok=True)
    return RowJob(
        name="row",
        model=str(model),
        backend=backend,
        device="cpu",
        images=[str(path) for path in sources],
        outputs=[str(outputs / f"{path.stem}.png") for path in sources],
        seconds=0.01,
        repeats=2,
    )


def test_a_job_and_a_result_survive_the_way_to_another_process(pictures: Path) -> None:
    job = replace(job_of(Path("m.pth"), pictures, pictures.parent / "o"), batch=3)
    overrides = SpecOverrides(scale=0.5, mask_values=((0, 0, 0), (1, 2, 3)))
    job = replace(job, overrides=overrides)
    assert RowJob(**job_fields(json.dumps(asdict(job)))) == job
    result = row_result("x", [1.0, 5.0, 2.0])
    again = result_from_dict(json.loads(json.dumps(asdict(result))))
    assert again == result
    assert (again.files_rate, again.engine_rate, again.achieved) == (2.0, 4.0, 4e9)
    assert replace(result, engine_only=[], with_copies=[3.0]).engine_rate == 3.0


@pytest.mark.parametrize(("channels", "classes"), [(1, 1), (1, 2), (3, 4)])
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_the_reference_loop_gives_the_torch_engines_masks(
    channels: int, classes: int, scale: float, pictures: Path, tmp_path: Path
) -> None:
    checkpoint = balanced_checkpoint(channels=channels, classes=classes, scale=scale)
    paths = sorted(pictures.iterdir())
    outputs = [tmp_path / path.name for path in paths]
    loop = ReferenceLoop(checkpoint, "cpu")
    loop.predict(paths, outputs)
    with TorchEngine(checkpoint, "cpu") as engine:
        for path, output in zip(paths, outputs, strict=True):
            expected = engine.run(*network_input(path, engine.spec))
            assert np.mean(loop.infer(*loop.load(path)) == expected) > 0.999
            written = class_indices(read_mask(output), engine.spec)
            assert np.mean(written == expected) > 0.999


def test_the_reference_loop_turns_pictures_upright(tmp_path: Path) -> None:
    """Else its masks could not be compared."""
    picture = Image.fromarray(steel(0, 40, 64)[..., 0])
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(tmp_path / "turned.png", exif=exif)
    checkpoint = balanced_checkpoint()
    image, size = ReferenceLoop(checkpoint, "cpu").load(tmp_path / "turned.png")
    expected, expected_size = network_input(tmp_path / "turned.png", checkpoint.spec)
    assert size == expected_size == (64, 40)
    np.testing.assert_array_equal((image[0, 0] * 255).round().numpy(), expected[..., 0])


def test_the_reference_loop_names_a_file_that_it_cannot_read(tmp_path: Path) -> None:
    path = tmp_path / "broken.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n but no more")
    with pytest.raises(ImageError, match=r"broken\.png"):
        ReferenceLoop(balanced_checkpoint(), "cpu").load(path)


@pytest.mark.parametrize("backend", [REFERENCE, "auto", "torch-half"])
def test_a_row_measures_and_leaves_the_masks(
    backend: str, checkpoint_file: CheckpointFile, pictures: Path, tmp_path: Path
) -> None:
    job = job_of(checkpoint_file(), pictures, tmp_path / "masks", backend)
    result = measure_row(job)
    assert len(result.engine_only) == (2 if backend == REFERENCE else 4)
    assert len(result.files_to_files) == 2
    assert result.model_bytes == Path(job.model).stat().st_size
    assert min(*result.engine_only, *result.files_to_files) > 0
    half = half_precision_on_cpu() if backend == "torch-half" else "fp32"
    assert result.precision == half
    assert "cpu" in result.label
    assert result.engine_only == result.with_copies
    assert result.input_size == (40, 56)
    assert result.flops > 10**6
    assert result.latency.p50 <= result.latency.p95 <= result.latency.p99
    assert result.host_bytes > 2**24
    assert result.device_bytes is None
    assert (result.stages is None) == (backend == REFERENCE)
    assert all(read_mask(Path(path)).shape[1] == 56 for path in job.outputs)


def test_a_device_that_is_not_there_is_an_error_of_the_row(
    checkpoint_file: CheckpointFile, pictures: Path, tmp_path: Path
) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    for backend in (REFERENCE, "auto"):
        job = job_of(checkpoint_file(), pictures, tmp_path / "masks", backend)
        with pytest.raises(UserError, match="cannot use cuda"):
            measure_row(replace(job, device="cuda"))


def test_an_unreadable_image_is_an_error_of_the_row(
    checkpoint_file: CheckpointFile, pictures: Path, tmp_path: Path
) -> None:
    for index, backend in enumerate((REFERENCE, "auto")):
        job = job_of(checkpoint_file(), pictures, tmp_path / str(index), backend)
        (tmp_path / "bad.png").write_text("no image")
        job.images[-1] = str(tmp_path / "bad.png")
        with pytest.raises(UserError):
            measure_row(job)


def test_torch_compile_wants_a_compiler_and_few_sizes(
    checkpoint_file: CheckpointFile,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job = job_of(checkpoint_file(), pictures, tmp_path / "o", "torch-compile")
    monkeypatch.setattr(row_module, "MOST_COMPILED_SHAPES", 1)
    with pytest.raises(UserError, match="every size") as error:
        measure_row(job)
    assert "2 sizes" in str(error.value)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CXX", "none")
    with pytest.raises(UserError, match=r"needs a C\+\+ compiler"):
        require_compiler()


def test_a_row_that_takes_too_long_is_given_up(
    checkpoint_file: CheckpointFile, pictures: Path, tmp_path: Path
) -> None:
    job = job_of(checkpoint_file(), pictures, tmp_path / "o")
    assert run_job(job, 0.01) == "given up after 0 s"


def test_the_bench_needs_a_checkpoint_and_images(
    checkpoint_file: CheckpointFile, pictures: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="needs the checkpoint"):
        bench_models([tmp_path / "model.onnx"], BenchOptions(images=pictures))
    with pytest.raises(UserError, match="no folder of images"):
        bench_models([checkpoint_file()], BenchOptions(images=tmp_path / "none"))


@pytest.fixture(scope="module")
def command(
    checkpoint_file: CheckpointFile, pictures: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[int, Path]:
    """`unetrt bench` over a right model, a wrong one, one that does not run: (status, report)."""
    folder, patched = tmp_path_factory.mktemp("bench"), pytest.MonkeyPatch()
    assert main(["export", str(checkpoint_file()), "-o", str(folder / "broken.onnx")]) == 0
    broken = onnx.load(folder / "broken.onnx")
    broken.graph.node[0].op_type = "Nothing"
    onnx.save(broken, folder / "broken.onnx")
    models = [checkpoint_file(), checkpoint_file(width=5), folder / "broken.onnx"]
    arguments = ["bench", *map(str, models), "--images", str(pictures), "--seconds", "0.05"]
    report = folder / "report"
    for name in ("WORTHLESS", "CROWDED", "OVERLOADED"):  # the machine may be busy
        patched.setattr(gain, name, float("inf"))
    more = ["--repeats", "1", "--report", str(report), "--slo", "p99=60s"]
    status = main([*arguments, *more])
    patched.undo()
    return status, report


def test_the_real_bench_trusts_masks_and_nothing_else(command: tuple[int, Path]) -> None:
    status, report = command
    assert status == 1
    (path,) = report.glob("*.json")
    told = json.loads(path.read_text())
    reference, same, other, broken = told["rows"]
    assert told["images"] == 5
    assert (reference["agreement"], reference["trusted"]) == (1.0, True)
    assert "one image at a time" in reference["result"]["label"]
    assert same["agreement"] > 0.9999
    assert same["trusted"]
    assert 0 < other["agreement"] < 0.9
    assert not other["trusted"]
    assert "agreement below 0.9999" in other["reason"]
    assert broken["result"] is None
    assert "Nothing" in broken["reason"]
    (markdown,) = report.glob("*.md")
    lines = markdown.read_text().splitlines()[2:8]
    assert [("×" in line) for line in lines] == [False, False, True, True, False, False]
    assert told["peaks"]["products"] or told["peaks"]["reason"]
    assert told["slo"]["met"], "the answer is in the report"
    assert any("p99 ≤ 60000 ms" in line for line in markdown.read_text().splitlines())
    assert reference["result"]["again"] == 1
    assert "IoU to PyTorch's masks, each class" in markdown.read_text()
    assert {point["batch"] for point in told["sweep"]["points"]} >= {1, 2}
    assert same["result"]["stages"]["images"] % 5 == 0, "whole rounds, as many as the time takes"
    page = next(report.glob("*.html")).read_text()
    assert page.count("<svg") == 4
    assert page.count("<img alt=") == 3 * (1 + 3), "three images, each with the masks of three rows"
    assert len({tuple(point["size"]) for point in told["sweep"]["points"]}) == 3


class ShiftedEngine(TorchEngine):
    """Fast and wrong: its masks are those of the network, moved by three pixels."""

    def infer(self, images: U8, masks: U8) -> None:
        super().infer(images, masks)
        masks[:] = np.roll(masks, 3, axis=2)


def test_a_sabotaged_engine_gets_no_speed_up(
    checkpoint_file: CheckpointFile, pictures: Path, tmp_path: Path
) -> None:
    checkpoint = balanced_checkpoint()
    right = job_of(checkpoint_file(), pictures, tmp_path / "right", REFERENCE)
    wrong = job_of(checkpoint_file(), pictures, tmp_path / "wrong")
    baseline = measure_row(right)
    with ShiftedEngine(checkpoint, "cpu") as engine:
        result = measure_engine(engine, wrong, 0.1)
    paths = [[Path(p) for p in job.outputs] for job in (wrong, right)]
    judged = judge_masks(paths[0], paths[1], checkpoint.spec)
    reason = verdict(judged, None, result.precision)
    assert "no speed-up" in reason
    rows = (
        Row(name="reference", result=baseline, agreement=1.0, trusted=True),
        Row(name="shifted", result=result, agreement=judged.agreement, reason=reason),
    )
    bench = Bench(rows=rows, images=5, machine={"processor": "x"}, versions={"torch": "2"})
    line = table_lines(bench)[3]
    assert "×" not in line
    assert "no speed-up" in line


@pytest.mark.slow
def test_a_checkpoint_alone_is_measured_against_every_engine_of_its_own(
    checkpoint_file: CheckpointFile, pictures: Path
) -> None:
    options = BenchOptions(
        images=pictures, limit=3, seconds=0.1, repeats=2, device="cpu", layers=True
    )
    bench = bench_models([checkpoint_file()], options)
    rows = {row.name: row for row in bench.rows}
    torch_rows = {"reference loop", "torch-channels-last", "torch-half", "torch-compile"}
    assert torch_rows | {"openvino-fp32", "openvino-bf16", "onnxruntime-fp32"} <= rows.keys()
    assert bench.images == 3
    for name in ("tensorrt-fp16", "tensorrt-rtx-fp16"):
        assert not rows[name].required
        assert "does not run" in rows[name].reason
    for row in bench.rows:
        assert row.result is not None or row.reason
        if row.result is not None and row.result.precision == "fp32":
            assert row.trusted, row
    for name in ("onnxruntime-fp32", "openvino-fp32", "openvino-bf16", "openvino-int8"):
        result = rows[name].result
        if result is not None:
            assert result.layers is not None
            of_a_batch = result.batch * result.flops
            assert sum(layer.flops or 0 for layer in result.layers.layers) == of_a_batch
    steps = [name for name in rows if name.startswith("tensorrt-fp16")]
    assert len(steps) == 4
    peer = next(peer for peer in bench.peers if peer.of == "openvino-fp32")
    assert peer.reason or peer.rate > 0
