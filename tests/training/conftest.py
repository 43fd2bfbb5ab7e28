"""A small folder of drawn pictures, and the options of a run that takes a second on it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from unetrt.training.options import RECIPES, TrainOptions
from unetrt.training.synthetic import write_dataset


@pytest.fixture(scope="session")
def steel(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of 16 images and masks of 48×64; all four classes are there."""
    return write_dataset(tmp_path_factory.mktemp("steel"), 16, (48, 64), seed=1)


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of one test alone, and not the user's."""
    folder = tmp_path / "cache"
    monkeypatch.setattr("unetrt.training.known._folder", lambda: folder)
    return folder


@pytest.fixture
def quick_options(steel: tuple[Path, Path], tmp_path: Path) -> TrainOptions:
    return TrainOptions(
        images=steel[0],
        masks=steel[1],
        channels=1,
        classes=4,
        width=4,
        scale=1.0,
        validation=25,
        recipe=replace(RECIPES["modern"], epochs=2, batch_size=4),
        out=tmp_path / "run",
    )


@pytest.fixture
def empty_pairs(tmp_path: Path) -> tuple[Path, Path]:
    """Two empty folders, for images and masks."""
    folders = tmp_path / "imgs", tmp_path / "masks"
    for folder in folders:
        folder.mkdir()
    return folders
