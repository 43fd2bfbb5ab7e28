from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unetrt.contract.errors import ImageError, UserError
from unetrt.contract.spec import ModelSpec
from unetrt.contract.types import NO_CLASS, U8
from unetrt.training.losses import LossOptions
from unetrt.training.options import RecipeOptions, TrainOptions
from unetrt.training.samples import TrainingData, half_of_memory, load_training_data
from unetrt.training.weights import loss_from_recipe

Folders = tuple[Path, Path]


def write_pair(folders: Folders, name: str, mask: U8, size: tuple[int, int] | None = None) -> None:
    image = np.full(size or mask.shape[:2], 100, np.uint8)
    Image.fromarray(image).save(folders[0] / f"{name}.png")
    Image.fromarray(mask).save(folders[1] / f"{name}.png")


def mask_of(*values: int) -> U8:
    """12×20 pixels that hold these values in stripes."""
    return np.resize(np.array(values, np.uint8), (12, 20))


def options_for(folders: Folders, **changes: object) -> TrainOptions:
    options = TrainOptions(
        images=folders[0], masks=folders[1], channels=1, width=4, scale=0.5, validation=50
    )
    return replace(options, **changes)  # type: ignore[arg-type]


def message(options: TrainOptions, start: ModelSpec | None = None) -> str:
    with pytest.raises(UserError) as caught:
        load_training_data(options, start)
    return str(caught.value)


def told(data: TrainingData) -> list[str]:
    """Its warnings, without the one that these pictures are small."""
    return [warning for warning in data.warnings if "less than 16 pixels" not in warning]


def test_samples_are_resized_and_values_become_indices(empty_pairs: Folders) -> None:
    for name in "abcd":
        write_pair(empty_pairs, name, mask_of(0, 255))
    data = load_training_data(options_for(empty_pairs), None)
    assert data.spec.mask_values == (0, 255)
    assert (len(data.train), len(data.validation)) == (2, 2)
    sample = data.validation[0]
    image, truth = sample.load()
    assert image.shape == (6, 10, 1)
    assert sample.input_size == (6, 10)
    assert np.array_equal(truth, mask_of(0, 1)), "masks keep their size"


def test_ignored_values_are_no_class(empty_pairs: Folders) -> None:
    for name in "ab":
        write_pair(empty_pairs, name, mask_of(0, 3, 11))
    data = load_training_data(options_for(empty_pairs, ignore_index=11), None)
    assert data.spec.mask_values == (0, 3)
    assert data.spec.ignore_index == 11
    assert set(np.unique(data.train[0].load()[1])) == {0, 1, NO_CLASS}


def test_an_ignored_value_between_those_of_classes_is_none_of_them(empty_pairs: Folders) -> None:
    for name in "ab":
        write_pair(empty_pairs, name, mask_of(0, 1, 2))
    assert "--classes 3" in message(options_for(empty_pairs, classes=3, ignore_index=1))
    found = load_training_data(options_for(empty_pairs, classes=2, ignore_index=1), None)
    assert found.spec.mask_values == (0, 2)


def test_colour_masks_train(empty_pairs: Folders) -> None:
    colours = np.array([[0, 0, 0], [200, 10, 10]], np.uint8)
    for name in "ab":
        write_pair(empty_pairs, name, colours[mask_of(0, 1)])
    data = load_training_data(options_for(empty_pairs), None)
    assert data.spec.mask_values == ((0, 0, 0), (200, 10, 10))


def test_the_split_is_drawn_by_the_seed(empty_pairs: Folders) -> None:
    for i in range(20):
        write_pair(empty_pairs, f"{i:02}", mask_of(0, 1))
    names = {
        seed: [s.pair.name for s in load_training_data(options, None).validation]
        for seed in (0, 1)
        for options in [options_for(empty_pairs, validation=25, seed=seed)]
    }
    again = load_training_data(options_for(empty_pairs, validation=25), None)
    assert [s.pair.name for s in again.validation] == names[0]
    assert names[0] != names[1]
    assert len(names[0]) == 5
    assert not set(names[0]) & {s.pair.name for s in again.train}


def test_every_problem_is_listed_at_once(empty_pairs: Folders) -> None:
    images, masks = empty_pairs
    for name in ("good", "also"):
        write_pair(empty_pairs, name, mask_of(0, 1))
    write_pair(empty_pairs, "stray", mask_of(0, 1, 7))
    write_pair(empty_pairs, "sizes", mask_of(0, 1), size=(13, 20))
    write_pair(empty_pairs, "image", mask_of(0, 1))
    (images / "image.png").write_text("no image")
    write_pair(empty_pairs, "mask", mask_of(0, 1))
    (masks / "mask.png").write_bytes((masks / "mask.png").read_bytes()[:40])
    write_pair(empty_pairs, "alone", mask_of(0, 1))
    (masks / "alone.png").unlink()
    write_pair(empty_pairs, "orphan", mask_of(0, 1))
    (images / "orphan.png").unlink()
    write_pair(empty_pairs, "many", mask_of(0, 1))
    np.save(masks / "many_mask.npy", mask_of(0, 1))
    text = message(options_for(empty_pairs))
    assert "7 problems" in text
    assert f"no mask for {images / 'alone.png'}" in text
    assert f"no image for {masks / 'orphan.png'}" in text
    assert f"several masks for {images / 'many.png'}" in text
    assert f"{images / 'image.png'} is not an image" in text
    assert f"{masks / 'mask.png'} is damaged" in text
    assert "image 13×20, mask 12×20" in text
    assert f"7 in {masks / 'stray.png'}" in text


def test_values_must_number_the_classes(empty_pairs: Folders) -> None:
    """The rarest first, with the files that hold it: that one is to be found."""
    masks = empty_pairs[1]
    for name in "abcde":
        write_pair(empty_pairs, name, mask_of(0, 1, 2) if name == "c" else mask_of(0, 1))
    for classes in (1, 2):
        text = message(options_for(empty_pairs, classes=classes))
        assert f"hold 3 values, --classes {classes} needs 2: 2 in {masks / 'c.png'}; 0 in" in text
        assert text.endswith("Hint: --classes 3")
        assert f"{masks / 'a.png'}, {masks / 'b.png'}, {masks / 'c.png'} (+2)" in text
        assert "JPEG" not in text


def test_values_of_jpeg_masks_say_what_jpeg_does(empty_pairs: Folders) -> None:
    write_pair(empty_pairs, "a", mask_of(0, 255))
    write_pair(empty_pairs, "b", mask_of(0, 255))
    path = empty_pairs[1] / "b.png"
    Image.open(path).save(path.with_suffix(".jpg"), quality=30)
    path.unlink()
    text = message(options_for(empty_pairs))
    assert "write masks as PNG" in text


def test_a_set_without_foreground_is_nothing_to_learn(empty_pairs: Folders) -> None:
    for name in "abc":
        write_pair(empty_pairs, name, mask_of(0))
    for options in (options_for(empty_pairs), options_for(empty_pairs, mask_values=(0, 9))):
        assert "nothing but value 0 (background)" in message(options)


def test_classes_that_do_not_occur_have_their_number(empty_pairs: Folders) -> None:
    """Value 11 is ignored, and no mask has a 1."""
    for name in "abcd":
        write_pair(empty_pairs, name, mask_of(0, 2, 3, 11))
    data = load_training_data(options_for(empty_pairs, classes=4, ignore_index=11), None)
    assert data.spec.mask_values == (0, 1, 2, 3)
    assert told(data) == ["no training mask has a pixel of value 1 (class 1): it cannot be learnt"]


def test_named_values_are_checked_and_may_be_absent(empty_pairs: Folders) -> None:
    for name in "abcd":
        write_pair(empty_pairs, name, mask_of(0, 5))
    named = options_for(empty_pairs, classes=3, mask_values=(0, 9, 5))
    data = load_training_data(named, None)
    assert data.spec.mask_values == (0, 9, 5)
    assert set(np.unique(data.validation[0].load()[1])) == {0, 2}
    write_pair(empty_pairs, "b", mask_of(0, 5, 77))
    text = message(named)
    assert f"{empty_pairs[1] / 'b.png'} holds values that no class has (77 in" in text


def test_a_stray_value_that_becomes_a_class_is_warned_of(empty_pairs: Folders) -> None:
    for name in "abcdef":
        write_pair(empty_pairs, name, mask_of(0, 1, 2))
    odd = mask_of(0, 1, 2)
    odd[3, 4] = 77
    write_pair(empty_pairs, "c", odd)
    options = options_for(empty_pairs, classes=4, validation=17)
    data = load_training_data(options, None)
    assert data.spec.mask_values == (0, 1, 2, 77)
    [warning] = told(data)
    path = str(empty_pairs[1] / "c.png")
    if any(sample.pair.name == "c" for sample in data.train):
        assert f"value 77 (class 3) is in one training mask only, {path}" in warning
    else:
        assert "no training mask has a pixel of value 77" in warning


def test_a_class_of_the_validation_alone_is_warned_of(empty_pairs: Folders, tmp_path: Path) -> None:
    others = other_folders(tmp_path)
    for name in "abc":
        write_pair(empty_pairs, name, mask_of(0, 1))
    write_pair(others, "x", mask_of(0, 255))
    options = options_for(empty_pairs, val_images=others[0], val_masks=others[1], classes=3)
    data = load_training_data(options, None)
    assert data.spec.mask_values == (0, 1, 255)
    [warning] = told(data)
    assert "no training mask has a pixel of value 255" in warning
    assert str(others[1] / "x.png") in warning


def test_a_validation_without_a_counted_pixel_is_refused(
    empty_pairs: Folders, tmp_path: Path
) -> None:
    others = other_folders(tmp_path)
    for name in "abc":
        write_pair(empty_pairs, name, mask_of(0, 1))
    options = options_for(empty_pairs, val_images=others[0], val_masks=others[1], ignore_index=9)
    write_pair(others, "x", mask_of(9))
    assert "no pixel of the validation masks is of a class" in message(options)
    write_pair(others, "x", mask_of(0, 9))
    [warning] = told(load_training_data(options, None))
    assert "no validation mask has a pixel of the foreground" in warning


def other_folders(tmp_path: Path) -> Folders:
    others = tmp_path / "val" / "imgs", tmp_path / "val" / "masks"
    for folder in others:
        folder.mkdir(parents=True)
    return others


def test_a_crop_above_every_image_is_refused(empty_pairs: Folders) -> None:
    """12×20 pixels, at their own size."""
    for name in "abcd":
        write_pair(empty_pairs, name, mask_of(0, 1))
    text = message(options_for(empty_pairs, scale=1.0, crop=21))
    assert "--crop 21 is larger than every image" in text
    assert "up to 20 pixels" in text
    [warning] = told(load_training_data(options_for(empty_pairs, scale=1.0, crop=16), None))
    assert "2 of 2 images are smaller than --crop 16" in warning
    assert not load_training_data(options_for(empty_pairs, scale=2.0, crop=16), None).warnings


def test_an_image_s_problem_comes_with_its_remedy(empty_pairs: Folders) -> None:
    for name in "abcd":
        write_pair(empty_pairs, name, mask_of(0, 1))
    deep = np.full((12, 20), 4000, np.uint16)
    Image.fromarray(deep).save(empty_pairs[0] / "b.png")
    assert "--bit-depth 12" in message(options_for(empty_pairs))
    assert load_training_data(options_for(empty_pairs, bit_depth=12), None).spec.bit_depth == 12
    start = ModelSpec(bit_depth=12)
    assert load_training_data(options_for(empty_pairs), start).spec.bit_depth == 12


def test_processes_of_a_machine_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    whole = half_of_memory()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert half_of_memory() == whole // 4


def test_values_of_the_checkpoint_to_start_from_hold(empty_pairs: Folders) -> None:
    for name in "ab":
        write_pair(empty_pairs, name, mask_of(10, 20))
    start = ModelSpec(classes=3, mask_values=(10, 20, 30), class_names=("x", "y", "z"))
    spec = load_training_data(options_for(empty_pairs, classes=3), start).spec
    assert (spec.mask_values, spec.class_names) == ((10, 20, 30), ("x", "y", "z"))


def test_too_few_images_say_how_many_are_needed(empty_pairs: Folders) -> None:
    for name in "abc":
        write_pair(empty_pairs, name, mask_of(0, 1))
    (empty_pairs[0] / "c.png").write_text("no image")
    text = message(options_for(empty_pairs, validation=10))
    assert "3 pairs" in text
    assert "at least 10" in text
    assert "c.png is not an image" in text, "and all other problems"


def test_folders_of_their_own_are_scored_on(empty_pairs: Folders, tmp_path: Path) -> None:
    others = tmp_path / "val" / "imgs", tmp_path / "val" / "masks"
    for folder in others:
        folder.mkdir(parents=True)
    write_pair(empty_pairs, "train", mask_of(0, 1))
    write_pair(others, "val", mask_of(0, 1))
    options = options_for(empty_pairs, val_images=others[0], val_masks=others[1])
    data = load_training_data(options, None)
    assert [s.pair.name for s in data.train] == ["train"]
    assert [s.pair.name for s in data.validation] == ["val"]
    write_pair(others, "odd", mask_of(0, 9))
    assert f"9 in {others[1] / 'odd.png'}" in message(options)


@pytest.mark.parametrize(
    "wrong",
    [
        {"validation": 0},
        {"validation": 100},
        {"crop": 8},
        {"bit_depth": 7},
        {"ignore_index": 256},
        {"val_images": Path("x")},
        {"seed": -1},
        {"seed": 10**20},
        {"workers": -1},
        {"scale": float("nan")},
        {"classes": 255},
        {"width": 0},
        {"class_names": ("a", "a")},
        {"class_names": ("a", "")},
        {"class_names": ("a",)},
        {"mask_values": (0,)},
        {"mask_values": (0, 1), "ignore_index": 1},
        {"mask_values": (0, 0)},
        {"mask_values": (0, 256)},
        {"mask_values": (0, (1, 2, 3))},
        {"mask_values": ((0, 0), (1, 2))},
    ],
)
def test_options_that_no_run_can_have_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UserError, match=r"--.* is wrong"):
        replace(TrainOptions(), **wrong)  # type: ignore[arg-type]


def test_what_does_not_fit_into_memory_is_read_again(empty_pairs: Folders) -> None:
    for index, name in enumerate("abcd"):
        write_pair(empty_pairs, name, np.roll(mask_of(0, 1), index))
    options = options_for(empty_pairs)
    whole = load_training_data(options, None)
    small, large = (
        sum(array.nbytes for array in part[0].load()) for part in (whole.train, whole.validation)
    )
    partly = load_training_data(options, None, memory=2 * small + large)
    samples = [*partly.train, *partly.validation]
    assert [sample.held is not None for sample in samples] == [True, True, True, False]
    for sample, held in zip(samples, [*whole.train, *whole.validation], strict=True):
        pairs = zip(sample.load(), held.load(), strict=True)
        assert all(np.array_equal(array, other) for array, other in pairs)


@pytest.mark.parametrize("size", [(12, 20), (24, 24)])
def test_files_that_change_while_they_are_read_again_are_refused(
    empty_pairs: Folders, size: tuple[int, int]
) -> None:
    """The mask alone, or both to another size."""
    for name in "abcd":
        write_pair(empty_pairs, name, mask_of(0, 1))
    data = load_training_data(options_for(empty_pairs), None, memory=0)
    for sample in (*data.train, *data.validation):
        write_pair(empty_pairs, sample.pair.name, np.ones(size, np.uint8), size)
        with pytest.raises(ImageError, match="changed since the run began"):
            sample.load()


@pytest.mark.parametrize("weights", [(1.0,), (1.0, 2.0, 3.0)])
def test_each_class_has_one_weight(weights: tuple[float, ...]) -> None:
    with pytest.raises(UserError, match="--class-weights is wrong"):
        TrainOptions(recipe=RecipeOptions(class_weights=weights))
    with pytest.raises(UserError, match="--class-weights is wrong"):
        RecipeOptions(class_weights=(1.0, 0.0))


def test_weights_are_counted_from_the_pixels(empty_pairs: Folders) -> None:
    """A class of 1/5 and one of 4/5 of the pixels weigh 2 to 1, and the mean pixel weighs 1."""
    for name in "ab":
        write_pair(empty_pairs, name, mask_of(0, 0, 0, 0, 9, 11))
    options = options_for(empty_pairs, ignore_index=11, scale=1.0)
    data = load_training_data(options, None)
    recipe = RecipeOptions(class_weights="auto")
    background, other = loss_from_recipe(recipe, data.spec, data.train).weights
    assert other == pytest.approx(2 * background, rel=1e-5)
    assert 0.8 * background + 0.2 * other == pytest.approx(1, rel=1e-5)
    assert loss_from_recipe(RecipeOptions(), data.spec, data.train) == LossOptions()
