"""The first reading: each mask once, inputs too small, folders that are one or have moved."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from unetrt.contract.errors import UserError
from unetrt.contract.masks import StoredMask, read_stored
from unetrt.training.options import TrainOptions
from unetrt.training.resume import read_resumed
from unetrt.training.samples import load_training_data
from unetrt.training.step import Stepper
from unetrt.training.train import train


@pytest.mark.parametrize(("memory", "times"), [(None, 1), (0, 2)])
def test_a_mask_is_decoded_once_where_there_is_room(
    quick_options: TrainOptions, monkeypatch: pytest.MonkeyPatch, memory: int | None, times: int
) -> None:
    read: list[Path] = []

    def counted(path: Path) -> StoredMask:
        read.append(path)
        return read_stored(path)

    for module in ("mask_files", "pairs"):
        monkeypatch.setattr(f"unetrt.training.{module}.read_stored", counted)
    load_training_data(quick_options, None, memory=memory)
    assert sorted(read) == sorted([*quick_options.masks.iterdir()] * times)


def test_the_first_pass_shows_how_far_it_is(
    quick_options: TrainOptions, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("unetrt.contract.progress.LINE_SECONDS", 0.0)
    load_training_data(quick_options, None)
    assert "read masks: 16/16 masks" in capsys.readouterr().err


def test_an_image_without_a_pixel_is_refused(quick_options: TrainOptions) -> None:
    """Of 48×64: at 1/50 one side has none, as the reference counts; at 1/48 it has one."""
    with pytest.raises(UserError, match="16 problems") as caught:
        load_training_data(replace(quick_options, scale=0.02), None)
    assert "of 48×64 pixels has none at --scale 0.02" in str(caught.value)
    [warning] = load_training_data(replace(quick_options, scale=1.001 / 48), None).warnings
    assert "16 of 16 images have a side of less than 16 pixels" in warning
    assert "as 1×1" in warning
    assert not load_training_data(replace(quick_options, scale=1 / 3), None).warnings


def test_one_folder_for_images_and_masks_is_said(quick_options: TrainOptions) -> None:
    same = quick_options.images.parent / "." / quick_options.images.name
    with pytest.raises(UserError, match="of the images and of the masks"):
        load_training_data(replace(quick_options, masks=same), None)


def test_a_run_is_resumed_from_another_folder(
    quick_options: TrainOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its data was named from the working folder; where that has moved, the flags are said."""
    for source, name in ((quick_options.images, "imgs"), (quick_options.masks, "masks")):
        shutil.copytree(source, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "run"

    def fails(*arguments: object) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(Stepper, "step", fails)
        with pytest.raises(ZeroDivisionError):
            train(replace(quick_options, images=Path("imgs"), masks=Path("masks"), out=run))
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    assert read_resumed(TrainOptions(resume=run), run).options.images == tmp_path / "imgs"
    (tmp_path / "masks").rename(tmp_path / "moved")
    with pytest.raises(UserError, match="not where it was") as caught:
        train(TrainOptions(resume=run))
    assert caught.value.seen == f"no folder {tmp_path / 'masks'}"
    assert "--masks DIR" in str(caught.value.hint)
    assert train(TrainOptions(resume=run, masks=Path("../moved"))) == run / "best.pth"
