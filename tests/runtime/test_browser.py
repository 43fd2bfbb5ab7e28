"""Mask files in a browser's decoder: the pixels that Pillow reads."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.browser import answer_of_page
from unetrt.contract.spec import ModelSpec
from unetrt.contract.types import Size
from unetrt.runtime.encode import MaskFormat, encode_mask

pytestmark = pytest.mark.slow

SIZES: tuple[Size, ...] = ((1, 1), (5, 17), (33, 65))
KINDS: tuple[tuple[MaskFormat, ModelSpec], ...] = (
    ("index", ModelSpec(classes=4)),
    ("index", ModelSpec(classes=254)),
    ("index", ModelSpec(classes=3, mask_values=((0, 0, 0), (255, 0, 0), (1, 2, 3)))),
    ("palette", ModelSpec(classes=4)),
    ("palette", ModelSpec(classes=16)),
    ("palette", ModelSpec(classes=17)),
    ("bilevel", ModelSpec(classes=2)),
)
SCRIPT = """<pre id="probe"></pre><script>
addEventListener("load", () => {
  const pixels = [...document.images].map((image) => {
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
    const context = canvas.getContext("2d", {colorSpace: "srgb"});
    context.drawImage(image, 0, 0);
    return [...context.getImageData(0, 0, canvas.width, canvas.height).data];
  });
  document.getElementById("probe").textContent = JSON.stringify(pixels);
});
</script>"""


def test_a_browser_reads_the_same_pixels(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    files = [
        encode_mask(rng.integers(0, spec.mask_classes, size, dtype=np.uint8), spec, kind)
        for kind, spec in KINDS
        for size in SIZES
    ]
    links = (base64.b64encode(data).decode() for data in files)
    images = "".join(f'<img src="data:image/png;base64,{link}">' for link in links)
    found, _ = answer_of_page(images + SCRIPT, tmp_path)
    for data, pixels in zip(files, found, strict=True):
        with Image.open(io.BytesIO(data)) as image:
            expected = np.asarray(image.convert("RGB"))
        shown = np.array(pixels, np.uint8).reshape(*expected.shape[:2], 4)[..., :3]
        np.testing.assert_array_equal(shown, expected)
