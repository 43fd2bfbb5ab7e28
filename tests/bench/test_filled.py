"""What engine-only measurements run: a batch of the size that most images have."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.bench.test_bench import CheckpointFile, job_of
from tests.conftest import balanced_checkpoint, steel
from unetrt.bench import filled
from unetrt.bench import row as row_module
from unetrt.bench.file_passes import FilePasses
from unetrt.bench.filled import Batch, FilledSlots, commonest_batch, paths_by_size
from unetrt.bench.job import REFERENCE
from unetrt.bench.reference import ReferenceLoop
from unetrt.bench.report import context_lines, stage_lines
from unetrt.bench.result import Bench, Row
from unetrt.bench.row import measure_again, measure_row
from unetrt.contract.errors import UserError
from unetrt.contract.spec import ModelSpec
from unetrt.engine.base import Slot
from unetrt.engine.torch_backend import TorchEngine

pytestmark = pytest.mark.usefixtures("one_thread")

FEW, MANY = (24, 40), (32, 24)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 pictures of one size and, behind them by name, 24 of another; one lies on its side."""
    folder = tmp_path_factory.mktemp("mixed")
    for name, size, count in (("a", FEW, 20), ("b", MANY, 23)):
        Image.fromarray(steel(0, *size)[..., 0]).save(folder / f"{name}0.png")
        for index in range(1, count):
            (folder / f"{name}{index}.png").hardlink_to(folder / f"{name}0.png")
    turned = Image.fromarray(steel(1, *MANY[::-1])[..., 0])
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(folder / "turned.png", exif=exif)
    return folder


def test_the_commonest_size_is_that_of_all_images(
    mixed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = paths_by_size([str(path) for path in sorted(mixed.iterdir())])
    assert {size: len(paths) for size, paths in sizes.items()} == {MANY: 24, FEW: 20}
    assert next(iter(sizes)) == MANY
    loaded: list[str] = []
    real = filled.network_input

    def noted(path: Path, spec: ModelSpec, **more: Any) -> Any:
        loaded.append(path.name)
        return real(path, spec, **more)

    monkeypatch.setattr(filled, "network_input", noted)
    batch = commonest_batch(balanced_checkpoint().spec, sizes, 2)
    assert (batch.size, batch.input_size, len(batch.images)) == (MANY, MANY, 2)
    assert loaded == ["b0.png", "b1.png"], "no others are decoded"


def test_rows_and_reference_loop_are_measured_on_it(
    checkpoint_file: CheckpointFile, mixed: Path, tmp_path: Path
) -> None:
    for place, backend in enumerate((REFERENCE, "auto")):
        result = measure_row(job_of(checkpoint_file(), mixed, tmp_path / str(place), backend))
        assert (result.input_size, result.mask_size, result.shapes) == (MANY, MANY, 2)


def test_what_was_measured_on_one_size_is_no_share_of_all(
    checkpoint_file: CheckpointFile, mixed: Path, tmp_path: Path
) -> None:
    """Files of all sizes over the engine's rate on the commonest is a number of nothing."""
    result = measure_row(job_of(checkpoint_file(), mixed, tmp_path / "o"))
    assert (result.of_engine, result.share_text) == ([], "")
    table = result.stages
    assert table is not None
    assert "engine" not in [stage.where for stage in table.stages]
    assert table.shared_bound is None
    bound = replace(table, bottleneck="engine", bound=None)
    row = Row(name="x", result=replace(result, stages=bound))
    told = stage_lines([row])[-1]
    assert "Bottleneck: engine. The engine's time is not known" in told
    bench = Bench(rows=(row,), images=44, machine={}, versions={})
    assert "the images are of 2 sizes: engine only" in "\n".join(context_lines(bench))


@pytest.mark.parametrize("again", [False, True])
def test_the_reference_loop_has_seen_every_size_before_it_is_timed(
    again: bool,
    checkpoint_file: CheckpointFile,
    mixed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: set[tuple[int, int]] = set()
    real = ReferenceLoop.infer

    def infer(loop: ReferenceLoop, image: Any, size: tuple[int, int]) -> Any:
        seen.add(size)
        return real(loop, image, size)

    def passes(*_: Any) -> FilePasses:
        assert seen == {FEW, MANY}
        return FilePasses([1.0])

    monkeypatch.setattr(ReferenceLoop, "infer", infer)
    monkeypatch.setattr(row_module, "time_passes", passes)
    job = job_of(checkpoint_file(), mixed, tmp_path / "o", REFERENCE)
    measured = measure_again(replace(job, files_only=True)) if again else measure_row(job)
    assert measured


class ThreeAtMost(TorchEngine):
    """Its memory holds three slots; and what they run fails, if asked."""

    def __init__(self) -> None:
        super().__init__(balanced_checkpoint(), "cpu")
        self.open = 0

    def slot(self) -> Slot:
        if self.open == 3:
            raise UserError("no memory for a fourth")
        slot = super().slot()
        self.open += 1
        real = slot.close

        def close() -> None:
            self.open -= 1
            real()

        slot.close = close  # type: ignore[method-assign]
        return slot


def lost(*_: Any) -> None:
    raise UserError("the device is lost")


def test_slots_are_closed_when_a_later_one_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = Batch([steel(0, 32, 32)], (32, 32))
    with ThreeAtMost() as engine:
        with pytest.raises(UserError, match="a fourth"), FilledSlots(engine, batch, 4):
            pass
        assert engine.open == 0
        with pytest.raises(ValueError, match="broadcast"):
            FilledSlots(engine, Batch([steel(0, 32, 32), steel(0, 8, 8)], (32, 32)), 2).__enter__()
        assert engine.open == 0, "one that cannot be filled"
        monkeypatch.setattr(FilledSlots, "drain", lost)
        with pytest.raises(UserError, match="lost"), FilledSlots(engine, batch, 2):
            pass
        assert engine.open == 0, "one whose batch fails at the end"
