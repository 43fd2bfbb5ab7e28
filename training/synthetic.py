"""Pictures drawn for the demo, the tests and the gate: rolled steel with three kinds of defects.

Brightness alone does not tell the classes apart: light is uneven, the steel has dark and bright
bands of its own, and patches are told by their texture.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from ..contract.files import write_atomically
from ..contract.types import U8, Size

CLASS_NAMES = ("background", "inclusion", "patches", "scratches")
MASK_VALUES = (0, 1, 2, 3)

_Floats = npt.NDArray[np.float32]
_Shape = npt.NDArray[np.bool_]
_Draw = Callable[[_Floats, np.random.Generator], _Shape]


def draw_pair(index: int, size: Size, seed: int = 0) -> tuple[U8, U8]:
    """Draw picture `index`: a grey image (H, W) and its mask (H, W) of indices into CLASS_NAMES."""
    rng = np.random.default_rng((seed, index))
    image = _steel(size, rng)
    mask = np.zeros(size, np.uint8)
    for _ in range(rng.integers(2, 5)):
        kind = int(rng.integers(1, len(CLASS_NAMES)))
        mask[_DRAWINGS[kind](image, rng)] = kind
    image += rng.normal(0, rng.uniform(2, 7), size).astype(np.float32)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8), mask


def write_dataset(folder: Path, count: int, size: Size, seed: int = 0) -> tuple[Path, Path]:
    """Write pictures 0 to count - 1 as PNG; return the folders of images and of masks."""
    images, masks = folder / "imgs", folder / "masks"
    images.mkdir(parents=True, exist_ok=True)
    masks.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        image, mask = draw_pair(index, size, seed)
        write_atomically(images / f"steel-{index:05}.png", _png(image))
        write_atomically(masks / f"steel-{index:05}.png", _png(mask))
    return images, masks


def _png(pixels: U8) -> bytes:
    return cv2.imencode(".png", pixels)[1].tobytes()


def _steel(size: Size, rng: np.random.Generator) -> _Floats:
    """Uneven light, and streaks along the rolling direction."""
    image = rng.uniform(90, 165) + rng.uniform(10, 30) * _cloud(size, rng, 0.7)
    streaks = _standard(
        cv2.GaussianBlur(_noise(size, rng), (0, 0), sigmaX=9 * _unit(size) + 1, sigmaY=0.6)
    )
    bands = _standard(
        cv2.resize(_noise((size[0] // 6 + 1, 1), rng), size[::-1], interpolation=cv2.INTER_CUBIC)
    )
    marks = rng.uniform(3, 8) * streaks + rng.uniform(2, 9) * bands
    if rng.random() < 0.5:
        marks = cv2.resize(np.ascontiguousarray(marks.T), size[::-1])
    return image + marks.astype(np.float32)


def _draw_inclusion(image: _Floats, rng: np.random.Generator) -> _Shape:
    """Darken a few elongated blobs with ragged edges, all in one direction."""
    shape = np.zeros(image.shape, bool)
    angle = rng.uniform(0, np.pi)
    for _ in range(rng.integers(1, 4)):
        length = rng.uniform(7, 16)
        radii = (length, length * rng.uniform(0.22, 0.4))
        shape |= _blob(_size(image), radii, angle + rng.normal(0, 0.15), 0.35, rng)
    dark = rng.uniform(32, 64) * (1 + 0.25 * _cloud(_size(image), rng, 0.04))
    image -= dark * _soft(shape)
    return shape


def _draw_patch(image: _Floats, rng: np.random.Generator) -> _Shape:
    """Mottle a larger area: a little darker or brighter on the whole, blotched within."""
    radius = rng.uniform(17, 32)
    shape = _blob(
        _size(image), (radius, radius * rng.uniform(0.6, 1)), rng.uniform(0, 3), 0.35, rng
    )
    blotches = rng.uniform(17, 30) * _cloud(_size(image), rng, 0.035)
    shift = rng.choice((-1, 1)) * rng.uniform(4, 22)
    image += (shift + blotches) * _soft(shape)
    return shape


def _draw_scratch(image: _Floats, rng: np.random.Generator) -> _Shape:
    """Brighten one thin, slightly bent line."""
    height, width = image.shape
    unit, angle = _unit(_size(image)), rng.uniform(0, np.pi)
    along = np.linspace(-1, 1, 24) * rng.uniform(22, 60) * unit
    bend = rng.uniform(-20, 20) * unit * (along / (60 * unit)) ** 2
    x = rng.uniform(0.2, 0.8) * width + along * np.cos(angle) - bend * np.sin(angle)
    y = rng.uniform(0.2, 0.8) * height + along * np.sin(angle) + bend * np.cos(angle)
    points = np.rint(np.stack([x, y], 1)).astype(np.int32)
    canvas = np.zeros(image.shape, np.uint8)
    thickness = max(1, round(rng.uniform(2, 5) * unit))
    shape = cv2.polylines(canvas, [points], False, 1, thickness) > 0
    image += rng.uniform(30, 64) * _soft(shape)
    return shape


_DRAWINGS: dict[int, _Draw] = {1: _draw_inclusion, 2: _draw_patch, 3: _draw_scratch}


def _blob(
    size: Size, radii: tuple[float, float], angle: float, ragged: float, rng: np.random.Generator
) -> _Shape:
    """Cut an ellipse at a random place, its edge moved by noise; radii of a 128-pixel picture."""
    y, x = np.mgrid[: size[0], : size[1]].astype(np.float32)
    y -= rng.uniform(0.12, 0.88) * size[0]
    x -= rng.uniform(0.12, 0.88) * size[1]
    along = (x * np.cos(angle) + y * np.sin(angle)) / (radii[0] * _unit(size))
    across = (y * np.cos(angle) - x * np.sin(angle)) / (radii[1] * _unit(size))
    distance = along**2 + across**2 + ragged * np.clip(_cloud(size, rng, 0.06), -1.5, 1.5)
    return np.asarray(distance < 1)


def _unit(size: Size) -> float:
    """Drawings are measured in pixels of a picture whose shorter side is 128."""
    return min(size) / 128


def _size(image: _Floats) -> Size:
    return image.shape[0], image.shape[1]


def _noise(size: Size, rng: np.random.Generator) -> _Floats:
    return rng.standard_normal(size, np.float32)


def _cloud(size: Size, rng: np.random.Generator, grain: float) -> _Floats:
    """Smooth noise of mean 0 and deviation 1; `grain` is a blotch's share of the shorter side."""
    step = max(1.0, grain * min(size))
    coarse = _noise((int(size[0] / step) + 3, int(size[1] / step) + 3), rng)
    return _standard(cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_CUBIC))


def _standard(field: npt.NDArray[np.generic]) -> _Floats:
    field = np.asarray(field, np.float32)
    return np.asarray((field - field.mean()) / (field.std() + 1e-6), np.float32)


def _soft(shape: _Shape) -> _Floats:
    """Give the shape an edge as soft as a camera's."""
    return np.asarray(cv2.GaussianBlur(shape.astype(np.float32), (0, 0), 0.6), np.float32)
