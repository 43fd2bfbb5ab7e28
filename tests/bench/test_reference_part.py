"""The reference loop's pass takes as many images as last long enough; its masks are all there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.bench.test_bench import CheckpointFile, job_of
from tests.bench.test_pass_length import files_in, no_look, nothing, stand_in
from tests.conftest import balanced_checkpoint, steel
from unetrt.bench import pass_length
from unetrt.bench import row as row_module
from unetrt.bench.job import REFERENCE, RowJob
from unetrt.bench.pass_length import job_with_part
from unetrt.bench.reference import ReferenceLoop
from unetrt.bench.row import measure_again, measure_row
from unetrt.contract.masks import read_mask

pytestmark = pytest.mark.usefixtures("one_thread")

COUNT = 20
Calls = list[list[str]]


@pytest.fixture(scope="module")
def alike(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """COUNT pictures of one size."""
    folder = tmp_path_factory.mktemp("alike")
    for index in range(COUNT):
        Image.fromarray(steel(index, 32, 40)[..., 0]).save(folder / f"{index:02}.png")
    return folder


@pytest.fixture
def predicted(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """The images of every call of the reference loop over files."""
    found: Calls = []
    real = ReferenceLoop.predict

    def predict(loop: ReferenceLoop, paths: Sequence[Path], outputs: Sequence[Path]) -> None:
        found.append([str(path) for path in paths])
        real(loop, paths, outputs)

    monkeypatch.setattr(ReferenceLoop, "predict", predict)
    return found


@pytest.fixture
def reference(checkpoint_file: CheckpointFile, alike: Path, tmp_path: Path) -> RowJob:
    return job_of(checkpoint_file(), alike, tmp_path / "o", REFERENCE)


@pytest.mark.parametrize(("an_image", "count"), [(0.001, 10), (1.0, 8), (1e-6, COUNT)])
def test_the_reference_takes_images_that_last_long_enough_and_makes_all_masks(
    an_image: float,
    count: int,
    reference: RowJob,
    predicted: Calls,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looked = stand_in(monkeypatch, an_image)
    result = measure_row(reference)
    part = [reference.images[index * COUNT // count] for index in range(count)]
    passes = predicted[len(looked) :]
    assert passes[:2] == [part, part]
    made = {image for job in looked for image in job.images} | set(part)
    assert passes[2:] == [[image for image in reference.images if image not in made]]
    assert len(looked) == (1 if an_image == 1.0 else 8), "it ends with the seconds of a repeat"
    assert len(result.files_to_files) == 2
    assert result.pass_images == count
    assert files_in(tmp_path / "o") == set(reference.outputs)
    loop = ReferenceLoop(balanced_checkpoint(), "cpu")
    for image, output in zip(reference.images, reference.outputs, strict=True):
        loop.predict([Path(image)], [tmp_path / "one.png"])
        np.testing.assert_array_equal(read_mask(Path(output)), read_mask(tmp_path / "one.png"))


def test_all_masks_are_made_anew_where_products_are_rounded(
    reference: RowJob, predicted: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a stand-in for TF32, as in test_fair."""

    @contextmanager
    def stock(device: str) -> Iterator[bool]:
        yield True

    monkeypatch.setattr(row_module, "stock_convolutions", stock)
    stand_in(monkeypatch, an_image=0.001)
    assert measure_row(reference).pass_images == 10
    assert [len(images) for images in predicted[8:]] == [10, 10, COUNT]


def test_the_reference_takes_all_images_of_several_sizes(
    checkpoint_file: CheckpointFile,
    pictures: Path,
    tmp_path: Path,
    predicted: Calls,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pass_length, "FEWEST_IMAGES", 2)
    looked = stand_in(monkeypatch, an_image=1.0)
    job = job_of(checkpoint_file(), pictures, tmp_path / "o", REFERENCE)
    result = measure_row(job)
    assert not looked
    assert predicted == [job.images, job.images, []]
    assert (result.pass_images, result.shapes) == (5, 2)
    assert files_in(tmp_path / "o") == set(job.outputs)


def test_passes_at_the_end_follow_the_same_rule(
    reference: RowJob, predicted: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = replace(reference, files_only=True, repeats=1)
    looked = stand_in(monkeypatch, an_image=0.001)
    assert measure_again(last).images == 10
    assert [len(images) for images in predicted[len(looked) :]] == [10], "one pass of a process"
    looked.clear()
    assert measure_again(replace(last, pass_images=9)).images == 9, "as many as the first had"
    assert looked, "as warm as the first was"


def test_time_is_kept_for_the_masks_of_all_images(
    reference: RowJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(monkeypatch, an_image=0.25)
    timed = replace(reference, seconds=2.5, until=1000.0)
    assert job_with_part(timed, nothing).until == 1000 - 0.25 * COUNT
    assert job_with_part(replace(timed, files_only=True), nothing).until == 1000
    on_gpu = job_with_part(replace(timed, device="cuda"), nothing)
    assert on_gpu.until == 1000 - 3 * 0.25 * COUNT, "they are made in strict fp32 there"
    few = replace(timed, images=timed.images[:8], outputs=timed.outputs[:8])
    assert job_with_part(few, no_look) is few
