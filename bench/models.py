"""What a bench is given, looked at before the first row: a row may take many minutes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ..contract.errors import ImageError, UserError, as_word
from ..contract.resize import network_input
from ..contract.spec import ModelSpec, SpecOverrides
from ..contract.types import Size
from ..engine.manifest import read_manifest, verify_files
from ..engine.onnxfile import is_onnx, metadata_from_onnx
from ..engine.open import check_overrides
from ..training.checkpoint import read_checkpoint
from ..training.options import values_text
from .machine import cuda_device
from .options import BenchOptions
from .text import listed

ALIKE = ("channels", "classes", "mask_values")
"""What networks have in common whose masks are compared."""


def check_device(device: str) -> None:
    """Raise UserError for a GPU that PyTorch, the baseline, cannot use.

    Counted, not tried: this process would hold memory there that the rows are told to have.
    """
    if not device.startswith("cuda"):
        return
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(cuda_device(device).partition(":")[2] or 0) >= count:
        raise UserError(
            f"no device {device} for PyTorch, which the bench compares with",
            seen=f"{count} GPUs",
            expected="auto, cpu, or a GPU that is there",
            hint="unetrt doctor   says what this machine can run",
        )


def image_sizes(
    images: Sequence[Path], checkpoint: Path, spec: ModelSpec, options: BenchOptions
) -> list[Size]:
    """(H, W) of the images, the most frequent first; every one of them is decoded.

    Raises UserError where some cannot be read: no row could be measured on them.
    """
    found: Counter[Size] = Counter()
    wrong: list[ImageError] = []
    for path in images:
        try:
            found[network_input(path, spec, bit_depth=options.bit_depth)[1]] += 1
        except ImageError as error:
            wrong.append(error)
    if wrong:
        every = f"unetrt predict -m {as_word(checkpoint)} -i {as_word(options.images)} --no-save"
        raise UserError(
            "the bench measures on all of its images, and some cannot be read",
            seen=f"{len(wrong)} of {len(images)}: {listed([error.reason for error in wrong])}",
            expected="images that are whole, of the network's channels and bits",
            hint=wrong[0].hint or f"{every}   lists all such images: take them out of the folder",
        )
    return [size for size, _ in found.most_common()]


def check_models(
    models: Sequence[Path], checkpoint: Path, spec: ModelSpec, overrides: SpecOverrides
) -> list[str]:
    """Give notes of models of another scale, whose masks are others without being wrong.

    spec: the checkpoint's. Raises UserError for what is no model, a damaged engine, and one of
    another network or threshold.
    """
    notes = []
    for model in (model for model in models if model != checkpoint):
        if model.is_dir():
            manifest = read_manifest(model)
            verify_files(model, manifest)
            found = manifest.spec
        elif is_onnx(model):
            found = metadata_from_onnx(model)[0]
        else:
            found = read_checkpoint(model).with_overrides(overrides).spec
        check_overrides(model, found, overrides)
        differ = [name for name in ALIKE if getattr(found, name) != getattr(spec, name)]
        if differ:
            raise UserError(
                f"{model} is of another network than {checkpoint}",
                seen=", ".join(f"{name} {getattr(found, name)}" for name in differ),
                expected=", ".join(f"{name} {getattr(spec, name)}" for name in differ),
                hint="unetrt bench CHECKPOINT ENGINE_DIR …   with the engines of that checkpoint"
                if differ != ["mask_values"]
                else f"unetrt bench … --mask-values {values_text(found.mask_values)}   if the "
                "checkpoint does not say its own",
            )
        if spec.classes == 1 and found.threshold != spec.threshold:
            raise UserError(
                f"{model} was made with another threshold than {checkpoint} is compared at",
                seen=f"threshold {found.threshold:g}",
                expected=f"threshold {spec.threshold:g}",
                hint=f"unetrt bench … --mask-threshold {found.threshold:g}   compares at that one",
            )
        if found.scale != spec.scale:
            notes.append(
                f"{model} is of scale {found.scale:g}, the baseline of {spec.scale:g}: they see "
                f"other images, and differ by that too; --scale {found.scale:g} compares alike"
            )
    return notes
