"""Mask files to class indices and back; a value without a class is never class 0."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image

from unetrt.contract.errors import ImageError
from unetrt.contract.masks import class_indices, mask_pixels, read_mask, true_classes
from unetrt.contract.spec import MaskValue, ModelSpec
from unetrt.contract.types import NO_CLASS, U8
from unetrt.runtime.encode import encode_mask

INDICES = arrays(
    np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.integers(0, 3)
)
GREY_SPEC = ModelSpec(classes=4, mask_values=(0, 7, 100, 255))
COLOURS: tuple[MaskValue, ...] = ((0, 0, 0), (255, 0, 1), (0, 255, 0), (9, 9, 9))
COLOUR_SPEC = ModelSpec(classes=4, mask_values=COLOURS)
VALUES = np.array([[0, 1, 2], [3, 2, 1]], np.uint8)


def written(folder: Path, image: Image.Image, name: str, **options: Any) -> Path:
    path = folder / name
    image.save(path, **options)
    return path


def indexed(values: U8) -> Image.Image:
    """A palette image whose colours have nothing to do with its indices."""
    image = Image.fromarray(values)
    image.putpalette(np.random.default_rng(0).integers(0, 256, 768, np.uint8).tobytes())
    return image


@given(indices=INDICES)
@settings(deadline=None)
@pytest.mark.parametrize("spec", [GREY_SPEC, COLOUR_SPEC])
def test_indices_to_pixels_and_back(spec: ModelSpec, indices: U8) -> None:
    pixels = mask_pixels(indices, spec)
    assert pixels.dtype == np.uint8
    assert pixels.shape == indices.shape + ((3,) if spec.rgb_masks else ())
    np.testing.assert_array_equal(class_indices(pixels, spec), indices)


def test_every_file_form_gives_its_values(tmp_path: Path) -> None:
    image = Image.fromarray(VALUES)
    alpha = image.copy()
    alpha.putalpha(Image.fromarray(VALUES * 50))
    np.save(tmp_path / "a.npy", VALUES.astype(np.int64))
    paths = [
        written(tmp_path, image, "l.png"),
        written(tmp_path, image, "l.bmp"),
        written(tmp_path, image, "l.tif"),
        written(tmp_path, image, "l.pgm"),
        written(tmp_path, image, "l.gif"),
        written(tmp_path, alpha, "la.png"),
        written(tmp_path, indexed(VALUES), "p.png"),
        written(tmp_path, indexed(VALUES), "p.gif", optimize=False),
        written(tmp_path, Image.fromarray(VALUES.astype(np.uint16)), "16.png"),
        written(tmp_path, Image.fromarray(VALUES.astype(np.uint16)), "16.tif"),
        tmp_path / "a.npy",
    ]
    for path in paths:
        pixels = read_mask(path)
        assert pixels.dtype == np.uint8, path
        np.testing.assert_array_equal(pixels, VALUES, str(path))


def test_colours_stay_colours(tmp_path: Path) -> None:
    colours = mask_pixels(VALUES, COLOUR_SPEC)
    image = Image.fromarray(colours)
    transparent = image.copy()
    transparent.putalpha(0)
    deep = tmp_path / "16.png"
    assert cv2.imwrite(str(deep), colours[:, :, ::-1].astype(np.uint16))
    for path in (
        written(tmp_path, image, "rgb.png"),
        written(tmp_path, transparent, "rgba.png"),
        deep,
    ):
        np.testing.assert_array_equal(read_mask(path), colours, str(path))
    grey = read_mask(written(tmp_path, Image.fromarray(VALUES).convert("RGB"), "grey.png"))
    assert grey.shape == (2, 3, 3)


def test_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6
    path = written(tmp_path, Image.fromarray(VALUES), "a.png", exif=exif)
    np.testing.assert_array_equal(read_mask(path), np.rot90(VALUES, -1))


@pytest.mark.parametrize("values", [(0, 255), (0, 1), ((0, 0, 0), (255, 0, 0)), (7, 3)])
def test_one_bit_files_are_two_classes_in_order(
    tmp_path: Path, values: tuple[MaskValue, ...]
) -> None:
    bits = VALUES > 1
    pixels = read_mask(written(tmp_path, Image.fromarray(bits), "a.png"))
    assert pixels.dtype == np.bool_
    indices = class_indices(pixels, ModelSpec(mask_values=values))
    assert indices.dtype == np.uint8
    np.testing.assert_array_equal(indices, bits)


@pytest.mark.parametrize("white", [1, 255])
@pytest.mark.parametrize("values", [(255, 0), (1, 0), ((255, 255, 255), (0, 0, 0))])
def test_black_of_one_bit_files_is_the_class_of_value_0(
    tmp_path: Path, values: tuple[MaskValue, ...], white: int
) -> None:
    """--mask-values 255,0: the object is black, in grey files, 1-bit files and palettes alike."""
    spec = ModelSpec(mask_values=values)
    bits = written(tmp_path, Image.fromarray(VALUES > 1), "bits.png")
    np.testing.assert_array_equal(true_classes(bits, spec), VALUES <= 1)
    palette = Image.fromarray(np.array([[0, white]], np.uint8), "P")
    palette.putpalette([0] * 3 * white + [255] * 3)
    shown = true_classes(written(tmp_path, palette, "palette.png"), spec)
    np.testing.assert_array_equal(shown, [[1, 0]])
    again = tmp_path / "again.png"
    again.write_bytes(encode_mask(true_classes(bits, spec), spec, "bilevel"))
    np.testing.assert_array_equal(read_mask(again), VALUES > 1)


def test_one_bit_files_among_more_classes_are_0_and_1() -> None:
    bits = VALUES > 1
    np.testing.assert_array_equal(class_indices(bits, ModelSpec(classes=3)), bits)
    with pytest.raises(ImageError, match="no class"):
        class_indices(bits, GREY_SPEC)


def test_values_are_not_guessed() -> None:
    """0/1 against classes written 0/255, and the other way round."""
    for pixels, values in (((0, 1), (0, 255)), ((0, 255), (0, 1))):
        with pytest.raises(ImageError, match="no class"):
            class_indices(np.array([pixels], np.uint8), ModelSpec(mask_values=values))


@given(values=arrays(np.uint8, (4, 5)))
@settings(deadline=None)
def test_an_unknown_value_is_an_error_that_names_it(values: U8) -> None:
    path = Path("folder/mask.png")
    unknown = sorted(set(values.ravel().tolist()) - {0, 7, 100, 255})
    if not unknown:
        return
    with pytest.raises(ImageError, match=r"mask\.png holds values that no class has") as caught:
        class_indices(values, GREY_SPEC, path)
    assert str(caught.value.seen).startswith(str(unknown[0]))
    assert str(caught.value.expected) == "0, 7, 100, 255"


def test_an_unknown_colour_is_an_error_that_names_it() -> None:
    colours = mask_pixels(VALUES, COLOUR_SPEC)
    colours[1, 2] = (255, 0, 2)
    with pytest.raises(ImageError, match="no class") as caught:
        class_indices(colours, COLOUR_SPEC)
    assert "(255, 0, 2) in 1 pixels" in str(caught.value)


def test_a_jpeg_mask_is_told_what_is_wrong(tmp_path: Path) -> None:
    values = np.kron(VALUES, np.ones((9, 9), np.uint8)) * 60
    path = written(tmp_path, Image.fromarray(values), "a.jpg", quality=50)
    spec = ModelSpec(classes=4, mask_values=(0, 60, 120, 180))
    with pytest.raises(ImageError, match="write masks as PNG"):
        class_indices(read_mask(path), spec, path)


def test_ignored_values_are_no_class() -> None:
    spec = ModelSpec(classes=4, mask_values=(0, 7, 100, 255), ignore_index=9)
    pixels = np.array([[0, 9, 255]], np.uint8)
    assert class_indices(pixels, spec).tolist() == [[0, NO_CLASS, 3]]
    overlapping = ModelSpec(classes=4, ignore_index=2)
    assert class_indices(VALUES, overlapping).tolist() == [[0, 1, NO_CLASS], [3, NO_CLASS, 1]]


@pytest.mark.parametrize("ignored", [5, 200])
def test_ignored_colours_are_greys(ignored: int) -> None:
    spec = ModelSpec(classes=4, mask_values=COLOURS, ignore_index=ignored)
    pixels = np.array([[(0, 0, 0), (ignored,) * 3, (9, 9, 9)]], np.uint8)
    assert class_indices(pixels, spec).tolist() == [[0, NO_CLASS, 3]]


def test_a_colour_that_is_ignored_too_is_no_class() -> None:
    spec = ModelSpec(classes=4, mask_values=COLOURS, ignore_index=9)
    pixels = np.array([[(0, 0, 0), (9, 9, 9)]], np.uint8)
    assert class_indices(pixels, spec).tolist() == [[0, NO_CLASS]]


def test_greys_in_three_channels_match_integers() -> None:
    pixels = np.repeat(VALUES[:, :, None], 3, axis=2)
    np.testing.assert_array_equal(class_indices(pixels, ModelSpec(classes=4)), VALUES)


def test_colours_and_single_values_do_not_mix() -> None:
    with pytest.raises(ImageError, match="holds colours"):
        class_indices(mask_pixels(VALUES, COLOUR_SPEC), GREY_SPEC)
    with pytest.raises(ImageError, match="holds single values"):
        class_indices(VALUES, COLOUR_SPEC)


def test_an_index_without_a_class_is_not_written() -> None:
    for index in (4, NO_CLASS):
        with pytest.raises(ValueError, match=f"class {index}"):
            mask_pixels(np.array([[0, index]], np.uint8), GREY_SPEC)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.array([[0, 256]], np.uint16), "0 to 256"),
        (np.array([[-1, 3]], np.int32), "-1 to 3"),
        (np.array([[0.0, 1.0]]), "float64"),
        (np.zeros((2, 2, 2, 2), np.uint8), "shape"),
        (np.zeros((0, 3), np.uint8), "shape"),
        (np.zeros((4, 5, 2), np.uint8), "shape"),
        (np.zeros((4, 5, 4), np.uint8), "shape"),
        (np.array([["a"]]), "not a mask"),
    ],
)
def test_arrays_that_are_no_mask(tmp_path: Path, values: npt.NDArray[Any], message: str) -> None:
    path = tmp_path / "a.npy"
    np.save(path, values)
    with pytest.raises(ImageError, match=message):
        read_mask(path)


def test_files_that_are_no_mask(tmp_path: Path) -> None:
    pickled, text = tmp_path / "p.npy", tmp_path / "t.png"
    np.save(pickled, np.array([{}], object), allow_pickle=True)
    text.write_text("text")
    deep = written(tmp_path, Image.fromarray(np.array([[300]], np.uint16)), "16.png")
    cmyk = written(tmp_path, Image.new("CMYK", (3, 3)), "c.tif")
    for path in (pickled, text, deep, cmyk, tmp_path, tmp_path / "none.png"):
        with pytest.raises(ImageError) as caught:
            read_mask(path)
        assert str(path) in str(caught.value)


def test_planes_of_an_array_are_a_mask(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    values = np.hstack([VALUES, VALUES])
    for array in (values[:, :, None], values[None]):
        np.save(path, array)
        np.testing.assert_array_equal(read_mask(path), values)
    colours = mask_pixels(VALUES, COLOUR_SPEC)
    np.save(path, colours)
    np.testing.assert_array_equal(read_mask(path), colours)


def gif(folder: Path, values: Any) -> Path:
    """As Pillow writes it: colours are numbered in the order of their occurrence."""
    name = "-".join(map(str, np.unique(values))) + ".gif"
    return written(folder, Image.fromarray(np.array(values, np.uint8)), name)


def test_a_gif_of_one_colour_is_of_the_class_of_that_colour(tmp_path: Path) -> None:
    """Its index is 0 always: the spec's grey values tell, or the palette that was trained on."""
    white, both = gif(tmp_path, [[255, 255]]), gif(tmp_path, [[0, 255]])
    assert read_mask(white).tolist() == [[0, 0]]
    greys = ModelSpec(mask_values=(0, 255))
    indices = ModelSpec(palette=((0, 0, 0, 0), (1, 255, 255, 255)))
    for spec in (greys, indices):
        assert true_classes(white, spec).tolist() == [[1, 1]]
        assert true_classes(both, spec).tolist() == [[0, 1]]
    for spec in (ModelSpec(), ModelSpec(classes=1)):
        assert true_classes(both, spec).tolist() == [[0, 1]]
        assert true_classes(white, spec).tolist() == [[1, 1]], "as in a 1-bit file"
    with pytest.raises(ImageError, match="of one colour, and says not of which class"):
        true_classes(white, ModelSpec(classes=3))
    with pytest.raises(ImageError, match="no class"):
        true_classes(gif(tmp_path, [[100, 100]]), greys)


def test_palettes_of_colours_are_indices_unless_the_classes_are_colours(tmp_path: Path) -> None:
    voc = (0, 0, 0), (128, 0, 0), (0, 128, 0)
    image = Image.fromarray(VALUES % 3)
    image.putpalette([x for colour in voc for x in colour])
    path = written(tmp_path, image, "a.png")
    for spec in (ModelSpec(classes=3), ModelSpec(classes=3, mask_values=voc)):
        np.testing.assert_array_equal(true_classes(path, spec), VALUES % 3)
    sparse = Image.fromarray(np.array([[0, 7]], np.uint8))
    sparse.putpalette([x for i in range(8) for x in ((128,) * 3 if i == 7 else (0, 0, 0))])
    spec = ModelSpec(mask_values=(0, 7))
    assert true_classes(written(tmp_path, sparse, "b.png"), spec).tolist() == [[0, 1]]


@pytest.mark.parametrize("classes", [5, 150])
@pytest.mark.parametrize("trained", [False, True])
def test_a_palette_mask_of_ours_reads_back_as_itself(
    classes: int, trained: bool, tmp_path: Path
) -> None:
    """With VOC's colours, of which two are greys by chance, and with those of the training."""
    palette = tuple((i, 255 - i, i // 2, 9) for i in range(0, classes, 2)) if trained else ()
    spec = ModelSpec(classes=classes, palette=palette)
    for held in (range(classes), (0, 7 % classes), (0, 56 % classes), (classes - 1,)):
        mask = np.array([list(held)], np.uint8)
        path = tmp_path / "mask.png"
        path.write_bytes(encode_mask(mask, spec, "palette"))
        np.testing.assert_array_equal(true_classes(path, spec), mask)


@pytest.mark.parametrize("colours", [(255, 255, 255, 0, 0, 0), (0, 0, 0, 255, 255, 255)])
@pytest.mark.parametrize("suffix", [".png", ".bmp"])
def test_black_and_white_is_one_mask_however_it_is_stored(
    suffix: str, colours: tuple[int, ...], tmp_path: Path
) -> None:
    shown = np.array([[0, 255, 255]], np.uint8)
    indices = (shown == colours[3]).astype(np.uint8)
    palette = Image.fromarray(indices)
    palette.putpalette(colours)
    one_bit = Image.fromarray(shown).convert("1")
    for values in ((0, 1), (0, 255)):
        spec = ModelSpec(classes=2, mask_values=values)
        assert true_classes(written(tmp_path, one_bit, "b.png"), spec).tolist() == [[0, 1, 1]]
        path = written(tmp_path, palette, f"p{suffix}")
        assert true_classes(path, spec).tolist() == [[0, 1, 1]], "Pillow reads zeros of one BMP"
        path.write_bytes(path.read_bytes()[: -8 if suffix == ".png" else -2])
        with pytest.raises(ImageError):
            true_classes(path, spec)


def test_values_of_a_pgm_are_not_scaled_by_its_maximum(tmp_path: Path) -> None:
    for maximum in (3, 20, 250, 255, 300):
        plain, binary = tmp_path / "plain.pgm", tmp_path / "binary.pgm"
        plain.write_text(f"P2 3 1 {maximum} 0 1 3\n")
        kind = ">u2" if maximum > 255 else np.uint8
        values = np.array([0, 1, 3], kind).tobytes()
        binary.write_bytes(f"P5 3 1 {maximum}\n".encode() + values)
        for path in (plain, binary):
            assert read_mask(path).tolist() == [[0, 1, 3]], maximum
    binary.write_bytes(b"P5 3 1 20\n" + bytes(2))
    with pytest.raises(ImageError):
        read_mask(binary)


def test_another_palette_than_that_of_the_training_is_read_by_colour(tmp_path: Path) -> None:
    spec = ModelSpec(classes=3, palette=((0, 0, 0, 0), (1, 9, 0, 0), (2, 0, 9, 0)))
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8))
    image.putpalette([0, 9, 0, 9, 0, 0, 0, 0, 0])
    assert true_classes(written(tmp_path, image, "a.png"), spec).tolist() == [[2, 1, 0]]
    image.putpalette([0, 9, 0, 9, 0, 0, 5, 5, 5])
    with pytest.raises(ImageError, match="another palette") as caught:
        true_classes(written(tmp_path, image, "b.png"), spec)
    assert "index 2 is (5, 5, 5)" in str(caught.value)


def test_an_array_of_bool_is_read_as_a_1_bit_file(tmp_path: Path) -> None:
    bits = VALUES > 1
    np.save(tmp_path / "a.npy", bits)
    assert read_mask(tmp_path / "a.npy").dtype == np.bool_
    spec = ModelSpec(mask_values=(0, 255))
    np.testing.assert_array_equal(true_classes(tmp_path / "a.npy", spec), bits)
    np.save(tmp_path / "a.npy", bits[..., None])
    np.testing.assert_array_equal(true_classes(tmp_path / "a.npy", spec), bits)
