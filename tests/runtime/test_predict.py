"""Images to mask files: the summary adds up, files are whole, masks are the engine's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from PIL import Image

from tests.conftest import balanced_checkpoint, steel
from tests.runtime.conftest import torch_engine, write_picture
from unetrt.contract.errors import UserError
from unetrt.contract.masks import class_indices, mask_pixels, read_mask
from unetrt.contract.resize import network_input
from unetrt.contract.types import U8
from unetrt.runtime import work
from unetrt.runtime.pipeline import PipelineOptions
from unetrt.runtime.plan import Task, plan_tasks
from unetrt.runtime.predict import PredictOptions, check_reference_flags, predict_masks
from unetrt.training.checkpoint import Checkpoint

SIZES = [(40, 32), (33, 57), (64, 48), (1, 1), (5, 90)]


def write_pictures(folder: Path, count: int, channels: int = 1) -> list[Path]:
    return [
        write_picture(folder / f"d{i % 2}" / f"steel {i}.png", steel(i, *SIZES[i % 5], channels))
        for i in range(count)
    ]


def files_below(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def checkpoint_of(name: str) -> Checkpoint:
    checkpoint = balanced_checkpoint(classes={"one": 1, "two": 2}.get(name, 4), scale=0.5)
    values = {
        "two": (0, 255),
        "colours": ((0, 0, 0), (200, 0, 0), (0, 200, 0), (9, 8, 7)),
        "apart": (0, 80, 160, 240),
    }
    if name in values:
        checkpoint.spec = replace(checkpoint.spec, mask_values=values[name])  # type: ignore[arg-type]
    return checkpoint


@pytest.mark.parametrize("name", ["one", "two", "four", "colours", "apart"])
@pytest.mark.parametrize("options", [{}, {"batch": 3, "slots": 2, "load_threads": 2}])
def test_masks_on_the_disk_are_the_engines(
    name: str, options: dict[str, int], tmp_path: Path
) -> None:
    sources = write_pictures(tmp_path / "in", 7)
    tasks = plan_tasks([str(tmp_path / "in")], output_dir=tmp_path / "out")
    with torch_engine(checkpoint_of(name)) as engine:
        summary = predict_masks(engine, tasks, PredictOptions(pipeline=PipelineOptions(**options)))  # type: ignore[arg-type]
        assert summary.to_dict() == {
            "planned": 7,
            "done": 7,
            "failed": 0,
            "skipped": 0,
            "failures": [],
        }
        for source in sources:
            mask = engine.run(*network_input(source, engine.spec))
            written = read_mask(tmp_path / "out" / source.relative_to(tmp_path / "in"))
            np.testing.assert_array_equal(class_indices(written, engine.spec), mask)
            if name != "one":
                np.testing.assert_array_equal(written, mask_pixels(mask, engine.spec))
    assert files_below(tmp_path / "out") == files_below(tmp_path / "in")


def test_a_file_that_cannot_be_read_costs_itself_alone(tmp_path: Path) -> None:
    sources = write_pictures(tmp_path / "in", 6)
    tasks = plan_tasks([str(tmp_path / "in")], output_dir=tmp_path / "whole")
    again = plan_tasks([str(tmp_path / "in")], output_dir=tmp_path / "out")
    with torch_engine(balanced_checkpoint()) as engine:
        predict_masks(engine, tasks, PredictOptions())
        sources[1].write_bytes(sources[1].read_bytes()[:-40])
        sources[2].write_bytes(b"")
        sources[3].unlink()
        summary = predict_masks(engine, again, PredictOptions())
    assert (summary.planned, summary.done, summary.failed, summary.skipped) == (6, 3, 3, 0)
    assert {failure["input"] for failure in summary.failures} == {str(p) for p in sources[1:4]}
    assert all(failure["reason"] for failure in summary.failures)
    left = files_below(tmp_path / "out")
    assert len(left) == 3, "outputs are whole or not there, and nothing else is"
    for name in left:
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_the_reason_names_the_remedy_for_data_of_twelve_bits(tmp_path: Path) -> None:
    path = tmp_path / "deep.png"
    Image.fromarray(np.arange(64 * 64, dtype=np.uint16).reshape(64, 64)).save(path)
    tasks = [Task(path, tmp_path / "mask.png")]
    with torch_engine(balanced_checkpoint()) as engine:
        summary = predict_masks(engine, tasks, PredictOptions())
        assert "--bit-depth 12" in summary.failures[0]["reason"]
        assert predict_masks(engine, tasks, PredictOptions(bit_depth=12)).done == 1


def test_a_folder_that_cannot_be_made_is_one_error_before_any_work(tmp_path: Path) -> None:
    write_pictures(tmp_path / "in", 2)
    (tmp_path / "file").write_text("in the way")
    tasks = plan_tasks([str(tmp_path / "in")], output_dir=tmp_path / "file" / "out")
    refusal = pytest.raises(UserError, match="cannot make the output folder")
    with torch_engine(balanced_checkpoint()) as engine, refusal as caught:
        predict_masks(engine, tasks, PredictOptions())
    assert caught.value.hint is not None
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_disk_that_takes_no_more_ends_the_job_with_one_error(tmp_path: Path) -> None:
    """What stands on the disk is whole; a full disk is simulated, as root ignores permissions."""
    write_pictures(tmp_path / "in", 8)
    tasks = plan_tasks([str(tmp_path / "in")], output_dir=tmp_path / "out")
    real, written = work.write_atomically, 0

    def fill_up(path: Path, data: bytes) -> None:
        nonlocal written
        written += 1
        if written > 3:
            raise OSError(28, "No space left on device")
        real(path, data)

    with torch_engine(balanced_checkpoint()) as engine:
        full = patch.object(work, "write_atomically", fill_up)
        with full, pytest.raises(UserError, match="cannot write") as caught:
            predict_masks(engine, tasks, PredictOptions())
        assert "No space left" in str(caught.value)
        left = files_below(tmp_path / "out")
        assert len(left) == 3
        for name in left:
            read_mask(tmp_path / "out" / name)
        assert predict_masks(engine, tasks, PredictOptions()).done == 8


def test_an_output_that_is_a_folder_is_a_failure_and_leaves_no_temporary_file(
    tmp_path: Path,
) -> None:
    (source,) = write_pictures(tmp_path / "in", 1)
    (tmp_path / "out.png" / "inside").mkdir(parents=True)
    with torch_engine(balanced_checkpoint()) as engine:
        summary = predict_masks(engine, [Task(source, tmp_path / "out.png")], PredictOptions())
    assert "cannot write" in summary.failures[0]["reason"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "out.png"]


def test_an_output_is_replaced(tmp_path: Path) -> None:
    (source,) = write_pictures(tmp_path / "in", 1)
    output = tmp_path / "mask.png"
    output.write_text("an older file")
    with torch_engine(balanced_checkpoint()) as engine:
        assert predict_masks(engine, [Task(source, output)], PredictOptions()).done == 1
    assert read_mask(output).shape == SIZES[0]


def test_nothing_is_made_for_an_output_of_a_wrong_kind(tmp_path: Path) -> None:
    (source,) = write_pictures(tmp_path / "in", 1)
    tasks = [Task(source, tmp_path / "new" / "a.png"), Task(source, tmp_path / "new" / "b.jpg")]
    with torch_engine(balanced_checkpoint()) as engine, pytest.raises(UserError, match="JPEG"):
        predict_masks(engine, tasks, PredictOptions())
    assert not (tmp_path / "new").exists()


def test_masks_are_looked_at_without_being_saved(tmp_path: Path) -> None:
    sources = write_pictures(tmp_path / "in", 3)
    seen: dict[Path, U8] = {}
    tasks = plan_tasks([str(tmp_path / "in")], save=False)
    with torch_engine(balanced_checkpoint()) as engine:
        summary = predict_masks(
            engine, tasks, PredictOptions(), lambda task, mask: seen.update({task.source: mask})
        )
        for source in sources:
            mask = engine.run(*network_input(source, engine.spec))
            np.testing.assert_array_equal(seen[source], mask)
    assert summary.done == 3
    assert files_below(tmp_path) == [str(p.relative_to(tmp_path)) for p in sorted(sources)]


def test_colour_and_grey_files_serve_networks_of_either_kind(tmp_path: Path) -> None:
    grey = write_picture(tmp_path / "grey.png", steel(0, 40, 32, 1))
    colour = write_picture(tmp_path / "colour.png", steel(0, 40, 32, 3))
    for channels in (1, 3):
        outputs = [tmp_path / f"{channels}-{name}.png" for name in ("grey", "colour")]
        tasks = [Task(grey, outputs[0]), Task(colour, outputs[1])]
        with torch_engine(balanced_checkpoint(channels=channels)) as engine:
            assert predict_masks(engine, tasks, PredictOptions()).done == 2
        assert outputs[0].read_bytes() == outputs[1].read_bytes()


def test_flags_of_the_reference_are_checked_against_the_model() -> None:
    spec = balanced_checkpoint().spec
    check_reference_flags(spec, 4, False)
    check_reference_flags(replace(spec, bilinear=True), None, True)
    with pytest.raises(UserError, match="number of classes") as caught:
        check_reference_flags(spec, 2, False)
    assert (caught.value.seen, caught.value.expected) == ("--classes 2", 4)
    with pytest.raises(UserError, match="transposed"):
        check_reference_flags(spec, None, True)
