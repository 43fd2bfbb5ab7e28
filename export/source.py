"""What is built from: a checkpoint or an ONNX file of ours, with its reference and inputs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..contract.errors import UserError
from ..contract.files import sha256_from_file, told_of_masks
from ..contract.log import log
from ..contract.resize import network_input, resize_image
from ..contract.spec import NO_OVERRIDES, ModelSpec, SpecOverrides
from ..contract.types import U8, Size
from ..engine.base import Engine
from ..engine.onnxfile import is_onnx, metadata_from_onnx, require_runnable
from ..engine.open import check_overrides, open_engine
from ..engine.torch_backend import TorchEngine
from ..runtime.inputs import images_below
from ..training.checkpoint import Checkpoint, Golden, read_checkpoint
from .gate import PYTORCH

GOLDEN_CASES = 4
DRAWN_SIZE: Size = (256, 320)


@dataclass(frozen=True)
class Source:
    """checkpoint is None for an ONNX file; digest is the file's SHA-256."""

    path: Path
    spec: ModelSpec
    digest: str
    precision: str
    checkpoint: Checkpoint | None

    @property
    def reference_name(self) -> str:
        """What the gate compares with, as its verdict says it."""
        return PYTORCH if self.checkpoint is not None else "the ONNX file's own graph"

    def reference(self) -> Engine:
        """fp32 PyTorch on the CPU; an ONNX file's own graph in ONNX Runtime."""
        if self.checkpoint is None:
            return open_engine(
                self.path, "onnxruntime", "cpu", SpecOverrides(result=self.spec.result)
            )
        return TorchEngine(self.checkpoint, "cpu")


def read_source(path: Path, overrides: SpecOverrides = NO_OVERRIDES) -> Source:
    """Raise UserError unless `path` is a checkpoint or an ONNX file of ours."""
    if path.is_dir():
        raise UserError(
            f"{path} is a folder", expected="a checkpoint (.pth) or an ONNX file (.onnx)"
        )
    if is_onnx(path):
        spec, precision, _ = metadata_from_onnx(path)
        require_runnable(path, precision)
        check_overrides(path, spec, overrides)
        return Source(path, spec, sha256_from_file(path), precision, None)
    checkpoint = read_checkpoint(path).with_overrides(overrides)
    return Source(path, checkpoint.spec, sha256_from_file(path), "fp32", checkpoint)


def gate_inputs(source: Source, images: Path | None) -> tuple[list[Path] | list[Golden], str]:
    """What the gate looks at, and its name: "images", else "golden", else "synthetic"."""
    if images is not None:
        return judging_images(images), "images"
    if source.checkpoint is not None and source.checkpoint.golden:
        return [_at_scale(case, source.spec) for case in source.checkpoint.golden], "golden"
    return _drawn_inputs(source.spec), "synthetic"


def judging_images(folder: Path) -> list[Path]:
    """Its images, which an engine is judged or calibrated by; warns of masks among them."""
    images = images_below(folder)
    if told := told_of_masks(images, folder):
        log.warning("%s", told)
    return images


def load_inputs(inputs: list[Path] | list[Golden], spec: ModelSpec) -> Iterator[Golden]:
    """Network inputs one at a time: a folder of gate images need not fit in memory."""
    for item in inputs:
        yield network_input(item, spec) if isinstance(item, Path) else item


def _at_scale(case: Golden, spec: ModelSpec) -> Golden:
    """Stored at the scale of training; --scale may ask for another."""
    image, size = case
    return resize_image(image, spec.input_size(size), spec.resize), size


def _drawn_inputs(spec: ModelSpec) -> list[Golden]:
    from ..training.synthetic import draw_pair

    cases = []
    for index in range(GOLDEN_CASES):
        grey, _ = draw_pair(index, DRAWN_SIZE, seed=0)
        picture: U8 = np.repeat(grey[..., None], spec.channels, axis=2)
        size = spec.input_size(DRAWN_SIZE)
        cases.append((resize_image(picture, size, spec.resize), DRAWN_SIZE))
    return cases
