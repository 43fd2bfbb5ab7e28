"""Engines with wrong masks, from their file to the table: none gets a speed-up."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from tests.conftest import balanced_checkpoint, steel
from unetrt.bench import gain
from unetrt.bench.judge import FEW_PIXELS, Judgement, judge_masks, least_iou, verdict
from unetrt.bench.report import table_lines
from unetrt.bench.result import Bench
from unetrt.bench.table import BenchOptions, bench_models
from unetrt.contract.masks import mask_pixels
from unetrt.contract.spec import ModelSpec
from unetrt.export.onnx_export import onnx_from_checkpoint
from unetrt.training.checkpoint import Checkpoint, unet_from_checkpoint, write_checkpoint
from unetrt.training.masknet import MaskNet

SIDE, PICTURES, RARE, PIXELS = 256, 4, 3, 15
"""Of 262,144 pixels 15 are of the rare class: without them the agreement is still 0.99994."""


def checkpoint_with_a_rare_class(pictures: list[np.ndarray]) -> Checkpoint:
    """balanced_checkpoint with the bias of a class lowered until PIXELS are left of it."""
    checkpoint = balanced_checkpoint()
    with torch.no_grad():
        net = MaskNet(unet_from_checkpoint(checkpoint), checkpoint.spec).eval()
        logits = torch.cat([net.logits(torch.from_numpy(p[None])) for p in pictures])
        others = torch.cat([logits[:, :RARE], logits[:, RARE + 1 :]], 1).amax(1)
        margins = (logits[:, RARE] - others).flatten().sort(descending=True).values
        lowered = (margins[PIXELS - 1] + margins[PIXELS]) / 2
    state = dict(checkpoint.state)
    state["outc.conv.bias"] = state["outc.conv.bias"].clone()
    state["outc.conv.bias"][RARE] -= lowered
    return Checkpoint(checkpoint.spec, state)


def sabotaged(source: Path, target: Path, nodes: list[onnx.NodeProto], **constants: object) -> Path:
    """The model with `nodes` between its own `mask`, as `right`, and the one that it gives."""
    model = onnx.load(str(source))
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = ["right" if name == "mask" else name for name in names]
    for name, value in constants.items():
        model.graph.initializer.append(numpy_helper.from_array(np.array(value), name))
    model.graph.node.extend(nodes)
    onnx.save(model, str(target))
    return target


def moved(source: Path, target: Path) -> Path:
    """Every mask one pixel to the right."""
    bounds = {
        "first": np.array([0], np.int64),
        "before_last": np.array([-1], np.int64),
        "end": np.array([2**31], np.int64),
        "across": np.array([2], np.int64),
    }
    nodes = [
        helper.make_node("Slice", ["right", "before_last", "end", "across"], ["last"]),
        helper.make_node("Slice", ["right", "first", "before_last", "across"], ["rest"]),
        helper.make_node("Concat", ["last", "rest"], ["mask"], axis=2),
    ]
    return sabotaged(source, target, nodes, **bounds)


def without_class(source: Path, target: Path) -> Path:
    """Every pixel of the rare class is background."""
    nodes = [
        helper.make_node("Cast", ["right"], ["whole"], to=TensorProto.INT32),
        helper.make_node("Equal", ["whole", "rare"], ["is_rare"]),
        helper.make_node("Where", ["is_rare", "background", "whole"], ["left"]),
        helper.make_node("Cast", ["left"], ["mask"], to=TensorProto.UINT8),
    ]
    return sabotaged(source, target, nodes, rare=np.int32(RARE), background=np.int32(0))


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder = tmp_path_factory.mktemp("sabotage")
    (folder / "imgs").mkdir()
    pictures = [steel(index, SIDE, SIDE) for index in range(PICTURES)]
    for index, picture in enumerate(pictures):
        Image.fromarray(picture[..., 0]).save(folder / "imgs" / f"{index}.png")
    checkpoint = checkpoint_with_a_rare_class(pictures)
    write_checkpoint(folder / "net.pth", checkpoint)
    right = folder / "right.onnx"
    onnx_from_checkpoint(checkpoint, right, "fp32")
    wrong = [moved(right, folder / "moved.onnx"), without_class(right, folder / "erased.onnx")]
    options = BenchOptions(
        images=folder / "imgs", seconds=0.05, repeats=1, device="cpu", peaks=False
    )
    return bench_models([folder / "net.pth", right, *wrong], options)


@pytest.mark.slow
def test_wrong_masks_get_no_speed_up_from_file_to_table(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WORTHLESS", "CROWDED", "OVERLOADED"):  # the machine may be busy
        monkeypatch.setattr(gain, name, float("inf"))
    rows = {Path(row.name).stem: row for row in bench.rows}
    assert rows["right"].trusted, rows["right"].reason
    moved, erased = rows["moved"], rows["erased"]
    assert not moved.trusted
    assert "no speed-up" in moved.reason
    assert erased.agreement is not None
    assert erased.agreement > 0.9999, "agreement alone would have passed it"
    assert erased.reason == "IoU of class 3 to PyTorch's 0.0000, below 0.999: no speed-up"
    assert not erased.trusted
    told = table_lines(bench)[2:]
    assert [("×" in line) for line in told] == [True, True, True, False, False]
    baseline = bench.rows[0].result
    assert baseline is not None
    assert baseline.again == 1


def test_a_class_is_bounded_in_every_precision() -> None:
    bounds = {name: least_iou(name) for name in ("fp32", "fp16", "bf16", "int8")}
    assert bounds == {"fp32": 0.999, "fp16": 0.995, "bf16": 0.98, "int8": 0.9}
    near = Judgement(agreement=1.0, iou={"a": 1.0, "b": 0.985}, differ={"a": 0, "b": 500})
    assert verdict(near, None, "bf16") == ""
    assert "IoU of b to PyTorch's 0.9850, below 0.995" in verdict(near, None, "fp16")
    tiny = replace(near, iou={"a": 1.0, "b": 0.0}, differ={"a": 0, "b": FEW_PIXELS})
    assert verdict(tiny, None, "fp32") == "", "a few pixels are no class"
    gone = replace(tiny, differ={"a": 0, "b": FEW_PIXELS + 1})
    assert "IoU of b" in verdict(gone, None, "int8")
    absent = replace(near, iou={"a": 1.0, "b": None}, differ={})
    assert verdict(absent, None, "fp32") == ""


def test_pixels_that_differ_are_counted_for_each_class(tmp_path: Path) -> None:
    spec = ModelSpec(classes=3, mask_values=(0, 100, 255), class_names=("a", "b", "c"))
    mine, theirs = np.zeros((4, 5), np.uint8), np.zeros((4, 5), np.uint8)
    theirs[0, :3] = 2
    paths = []
    for name, mask in (("mine", mine), ("theirs", theirs)):
        paths.append(tmp_path / f"{name}.png")
        Image.fromarray(mask_pixels(mask, spec)).save(paths[-1])
    judged = judge_masks(paths[:1], paths[1:], spec)
    assert judged.differ == {"a": 3, "b": 0, "c": 3}
    assert judged.iou["c"] == 0
