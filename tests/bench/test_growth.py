"""The memory of a long job, by images done."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from unetrt.bench.growth import Mark, growth_lines, measure_growth
from unetrt.contract.errors import UserError
from unetrt.contract.files import image_paths
from unetrt.training.synthetic import write_dataset


def test_a_job_is_watched_to_its_end(exported: Callable[..., Path], tmp_path: Path) -> None:
    images, _ = write_dataset(tmp_path / "drawn", 3, (32, 48))
    root = tmp_path / "work"
    marks = measure_growth(str(exported()), image_paths(images), 1100, root)
    assert marks[-1].images == 1100
    assert [mark.images for mark in marks] == sorted(mark.images for mark in marks)
    assert all(mark.resident > 10 << 20 for mark in marks)
    assert len(list((root / "masks").rglob("*.png"))) == 1100
    assert "| 1,100 |" in "\n".join(growth_lines(marks))


def test_a_job_that_fails_is_no_measurement(tmp_path: Path) -> None:
    images, _ = write_dataset(tmp_path / "drawn", 1, (32, 48))
    with pytest.raises(UserError, match="did not come to its end"):
        measure_growth(str(tmp_path / "none.onnx"), image_paths(images), 2, tmp_path / "work")


def test_growth_is_the_largest_after_the_first_thousand() -> None:
    sizes = {500: 90, 1000: 100, 2000: 130, 5000: 120}
    marks = [Mark(images, size * 10**6, 1.0) for images, size in sizes.items()]
    assert growth_lines(marks)[-1].endswith("after the first 1,000 images, at most: +30.0 MB")
    assert not growth_lines(marks[:2])[-1].startswith("growth")
