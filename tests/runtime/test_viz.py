"""Images beside their masks, drawn without a window."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib import pyplot
from PIL import Image

from unetrt.contract.palettes import class_colour
from unetrt.contract.spec import ModelSpec
from unetrt.runtime.plan import Task
from unetrt.runtime.viz import MaskViewer, coloured_mask, draw_mask

SPEC = ModelSpec(channels=1, classes=4, width=4, scale=1.0)


@pytest.fixture(autouse=True)
def _no_window() -> Iterator[None]:
    mpl.use("Agg")
    yield
    pyplot.close("all")


def test_every_class_has_its_colour() -> None:
    coloured = coloured_mask(np.array([[0, 1], [2, 255]], np.uint8))
    assert coloured.shape == (2, 2, 3)
    assert [tuple(pixel) for pixel in coloured.reshape(-1, 3).tolist()] == [
        class_colour(value) for value in (0, 1, 2, 255)
    ]


def test_a_figure_names_the_classes_that_are_there() -> None:
    image, mask = np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8), np.uint8)
    mask[0, 0] = 3
    figure = draw_mask(image, mask, SPEC, "a.png")
    assert [axis.get_title() for axis in figure.axes] == ["image", "mask: background, class 3"]


def test_the_viewer_shows_each_mask_once_and_reads_deep_images_as_the_job_did(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[str] = []
    monkeypatch.setattr(pyplot, "show", lambda: shown.append(pyplot.gcf().get_label()))
    viewer = MaskViewer(bit_depth=12)
    for name in ("a.png", "b.png"):
        Image.fromarray(np.full((8, 8), 4000, np.uint16)).save(tmp_path / name)
        viewer.keep(Task(tmp_path / name, None), np.zeros((8, 8), np.uint8))
    viewer.show(SPEC)
    assert shown == [str(tmp_path / "a.png"), str(tmp_path / "b.png")]
    assert pyplot.get_fignums() == []
