"""Images with their masks' colours over them, for looking."""

from __future__ import annotations

import numpy as np
import simplejpeg

from ..contract.palettes import class_colour
from ..contract.types import U8

SUFFIX = ".jpg"
QUALITY = 90
MAX_SIDE = 65500
"""The longest side that the JPEG library takes."""

_COLOURS = np.array([class_colour(index) for index in range(256)], np.uint8)


def encode_overlay(image: U8, mask: U8) -> bytes:
    """RGB (H, W, 3) and class indices (H, W) → a JPEG; the first class is left as it is."""
    step = -(-max(mask.shape) // MAX_SIDE)
    blended = blend_mask(image[::step, ::step], mask[::step, ::step])
    return bytes(simplejpeg.encode_jpeg(blended, QUALITY))


def blend_mask(image: U8, mask: U8) -> U8:
    """RGB (H, W, 3), half of it the class's colour by the colour map of PASCAL VOC."""
    marked = (mask > 0)[:, :, None]
    blended: U8 = np.where(marked, image // 2 + _COLOURS[mask] // 2, image)
    return blended
