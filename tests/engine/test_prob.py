"""Probabilities in place of masks: every backend, against softmax in float64."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.conftest import balanced_checkpoint, steel
from unetrt.contract.errors import UserError
from unetrt.contract.spec import ModelSpec, SpecOverrides
from unetrt.contract.types import NO_CLASS, U8, Size
from unetrt.engine.base import Engine
from unetrt.engine.open import open_engine
from unetrt.engine.torch_backend import TorchEngine
from unetrt.export.onnx_export import export_checkpoint
from unetrt.export.source import read_source
from unetrt.training.checkpoint import (
    Checkpoint,
    read_checkpoint,
    unet_from_checkpoint,
    write_checkpoint,
)
from unetrt.training.masknet import MaskNet

PROB = SpecOverrides(result="prob")
SIZE, OUT = (48, 40), (70, 56)


def expected_levels(checkpoint: Checkpoint, image: U8, size: Size) -> U8:
    """(classes, H, W): the logits are resized, then softmax or sigmoid is taken."""
    spec = checkpoint.spec
    net = MaskNet(unet_from_checkpoint(checkpoint).double().eval(), spec)
    with torch.no_grad():
        logits = net.logits(torch.from_numpy(image[None]))
        resized = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)[0]
    if spec.classes == 1:
        foreground = torch.sigmoid(resized[0])
        shares = torch.stack([1 - foreground, foreground])
    else:
        shares = resized.softmax(0)
    return (shares * 255).round().to(torch.uint8).numpy()


def slot_result(engine: Engine, images: U8, size: Size) -> U8:
    slot = engine.slot()
    slot.reserve(len(images), (images.shape[1], images.shape[2]))[:] = images
    slot.submit(len(images), size)
    found = slot.masks().copy()
    slot.close()
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("prob")


@pytest.fixture(scope="module")
def vivid(folder: Path) -> Callable[[int], Path]:
    """A checkpoint whose probabilities go from 0 to 1: an untrained net's all lie near 1 / n."""

    def write(classes: int) -> Path:
        path = folder / f"{classes}.pth"
        if not path.exists():
            checkpoint = balanced_checkpoint(classes=classes)
            for name in ("outc.conv.weight", "outc.conv.bias"):
                checkpoint.state[name] *= 100
            write_checkpoint(path, checkpoint)
        return path

    return write


@pytest.fixture(scope="module")
def exported_prob(folder: Path, vivid: Callable[[int], Path]) -> Callable[[int], Path]:

    def export(classes: int) -> Path:
        path = folder / f"{classes}.onnx"
        if not path.exists():
            export_checkpoint(vivid(classes), path, "fp32", PROB)
        return path

    return export


@pytest.mark.parametrize(
    ("backend", "classes"),
    [
        ("torch", 1),
        ("torch", 2),
        ("torch", 4),
        ("onnxruntime", 2),
        ("onnxruntime", 4),
        ("openvino", 2),
        ("openvino", 4),
    ],
)
def test_probabilities_are_those_of_softmax_to_one_level(
    backend: str,
    classes: int,
    vivid: Callable[[int], Path],
    exported_prob: Callable[[int], Path],
) -> None:
    path = vivid(classes) if backend == "torch" else exported_prob(classes)
    images = np.stack([steel(index, *SIZE) for index in range(2)])
    with open_engine(path, backend, "cpu", PROB) as engine:
        found = slot_result(engine, images, OUT)
    checkpoint = read_checkpoint(vivid(classes))
    expected = np.stack([expected_levels(checkpoint, image, OUT) for image in images])
    assert found.shape == (2, max(2, classes), *OUT)
    difference = np.abs(found.astype(int) - expected)
    assert difference.max() <= 1
    assert np.mean(difference == 0) > 0.99
    assert found[:, 1].std() > 10, "a picture, not a constant"


def test_the_mask_is_where_the_probability_is_highest(vivid: Callable[[int], Path]) -> None:
    image = steel(0, *SIZE)
    with (
        open_engine(vivid(4), device="cpu") as masks,
        open_engine(vivid(4), device="cpu", overrides=PROB) as probabilities,
    ):
        mask, found = masks.run(image, OUT), probabilities.run(image, OUT)
    chosen = np.take_along_axis(found, mask[None].astype(int), 0)[0]
    assert (chosen == found.max(0)).all()


@pytest.mark.parametrize("classes", [1, 2, 4])
def test_logits_that_are_not_finite_give_what_no_probabilities_are(classes: int) -> None:
    checkpoint = balanced_checkpoint(classes=classes).with_overrides(PROB)
    checkpoint.state["outc.conv.bias"][0] = float("inf")
    with TorchEngine(checkpoint, "cpu") as engine:
        assert (engine.run(steel(0, *SIZE), OUT) == NO_CLASS).all()
    sure = balanced_checkpoint(classes=classes).with_overrides(PROB)
    sure.state["outc.conv.bias"][-1] = 1e4
    with TorchEngine(sure, "cpu") as engine:
        found = engine.run(steel(0, *SIZE), OUT)
    assert (found[-1] == 255).all()
    assert not found[:-1].any()


def test_who_wants_masks_is_not_given_probabilities(
    exported_prob: Callable[[int], Path], exported: Callable[..., Path]
) -> None:
    with pytest.raises(UserError, match="gives probabilities") as caught:
        open_engine(exported_prob(4))
    assert "--format prob" in str(caught.value.hint)
    with pytest.raises(UserError, match="gives probabilities"):
        read_source(exported_prob(4))
    with pytest.raises(UserError, match="gives masks, not probabilities") as caught:
        open_engine(exported(), overrides=PROB)
    assert "--result prob" in str(caught.value.hint)


def test_the_spec_says_what_is_given() -> None:
    spec = ModelSpec(classes=1, result="prob")
    assert ModelSpec.from_json(spec.to_json()) == spec
    assert spec.result_shape(3, (4, 5)) == (3, 2, 4, 5)
    assert ModelSpec(classes=1).result_shape(3, (4, 5)) == (3, 4, 5)
    assert ModelSpec.from_dict({}).result == "mask"
    with pytest.raises(UserError, match="result"):
        ModelSpec.from_dict({"result": "logits"})
