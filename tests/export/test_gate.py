"""The judge alone, on engines whose masks are set."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from unetrt.cli.build import gate_text
from unetrt.contract.errors import GateError
from unetrt.contract.spec import ModelSpec
from unetrt.contract.types import NO_CLASS, U8
from unetrt.engine.host import HostEngine
from unetrt.export.gate import (
    MIN_AGREEMENT,
    MIN_CLASS_IOU,
    MIN_CLASS_PIXELS,
    PYTORCH,
    GateCase,
    GateOptions,
    GateResult,
    judge_engine,
)

SPEC = ModelSpec(channels=1, classes=3, width=2, scale=1.0)
SIZE = (10, 100)


class Painter(HostEngine):
    """Gives the image itself as the mask, a number of its pixels replaced."""

    backend, device = "painter", "cpu"

    def __init__(self, wrong: int = 0, value: int = 0, precision: str = "fp32") -> None:
        super().__init__(SPEC)
        self.wrong, self.value, self.precision = wrong, value, precision

    def infer(self, images: U8, masks: U8) -> None:
        masks[:] = images[..., 0]
        masks.reshape(len(masks), -1)[:, : self.wrong] = self.value


def picture(value: int = 1) -> U8:
    return np.full((*SIZE, 1), value, np.uint8)


def judge(
    engine: Painter, cases: list[GateCase] | None = None, options: GateOptions | None = None
) -> GateResult:
    return judge_engine(
        Painter(),
        engine,
        cases or [GateCase(picture(), SIZE), GateCase(picture(2), SIZE)],
        inputs="golden",
        options=options or GateOptions(),
    )


def test_equal_masks_pass() -> None:
    result = judge(Painter())
    assert (result.verdict, result.agreement, result.not_finite) == ("passed", 1.0, 0)
    assert (result.images, result.inputs, result.ran_on) == (2, "golden", "painter fp32 on cpu")
    assert not result.failures
    assert [c.iou for c in result.classes] == [None, 1.0, 1.0]
    assert all(c.iou_drop is None for c in result.classes)


@pytest.mark.parametrize("precision", MIN_AGREEMENT)
def test_the_bound_is_that_of_the_precision(precision: str) -> None:
    result = judge(Painter(precision=precision))
    assert result.min_agreement == MIN_AGREEMENT[precision]


@pytest.mark.parametrize(
    ("wrong", "verdict"), [(0, "passed"), (9, "passed"), (10, "passed"), (11, "failed")]
)
def test_agreement_is_the_share_of_equal_pixels(wrong: int, verdict: str) -> None:
    result = judge(Painter(wrong), options=GateOptions(min_agreement=0.99))
    assert result.agreement == pytest.approx(1 - wrong / 1000)
    assert result.verdict == verdict


def test_a_failure_says_what_and_what_helps() -> None:
    result = judge(Painter(500))
    assert result.verdict == "failed"
    error = result.error(Path("engine"))
    assert isinstance(error, GateError)
    assert error.status == 1
    assert "50.0000% of the pixels equal, not 99.9900%" in str(error)
    assert "--force" in str(error.hint)
    assert "--gate-images" not in str(error.hint)


def test_on_drawn_pictures_a_failure_asks_for_images_first() -> None:
    """A trained net decides them by a hair: bf16 failed there and passed on its own images."""
    error = replace(judge(Painter(500)), inputs="synthetic").error(Path("engine"))
    assert str(error.hint).startswith("--gate-images DIR")
    assert "--force" in str(error.hint)


@pytest.mark.parametrize(
    ("ran_on", "reference", "hint"),
    [
        ("onnxruntime fp32 on cpu", PYTORCH, "--min-agreement"),
        ("onnxruntime fp16 on cpu", PYTORCH, "--precision fp32, or --min-agreement"),
        ("torch fp16 on cpu", PYTORCH, "--backend onnxruntime --precision fp32, or "),
        ("onnxruntime fp16 on cpu", "the ONNX file's own graph", "unetrt build CHECKPOINT …  "),
        ("openvino int8 on cpu", "the ONNX file's own graph", "--precision fp32, or "),
    ],
)
def test_the_hint_names_a_build_that_rounds_less(ran_on: str, reference: str, hint: str) -> None:
    """Where there is one: no graph in fp16 is built in fp32."""
    error = replace(judge(Painter(500)), ran_on=ran_on, reference=reference).error(Path("engine"))
    assert str(error.hint).startswith(hint)


def test_output_that_is_not_finite_fails_whatever_the_bound() -> None:
    result = judge(Painter(1000, NO_CLASS), options=GateOptions(min_agreement=0.0))
    assert result.not_finite == 2
    assert result.verdict == "failed"
    assert "2 images whose output is not finite" in str(result.error(Path("engine")))


def test_a_reference_that_is_not_finite_fails_too() -> None:
    result = judge_engine(
        Painter(1000, NO_CLASS),
        Painter(),
        [GateCase(picture(), SIZE)],
        inputs="images",
        options=GateOptions(),
    )
    assert result.verdict == "failed"


def test_a_plan_that_would_overflow_fails_by_its_rounded_twin() -> None:
    result = judge_engine(
        Painter(),
        Painter(),
        [GateCase(picture(), SIZE)],
        inputs="images",
        options=GateOptions(),
        graph_only=True,
        rounded=Painter(1000, NO_CLASS),
    )
    assert (result.verdict, result.not_finite, result.agreement) == ("failed", 1, 1.0)


def test_differences_at_borders_are_told_from_those_inside() -> None:
    image = picture()
    image[:, 50:] = 2
    result = judge(Painter(wrong=20, value=0), [GateCase(image, SIZE)])  # far from column 50
    borders = result.borders
    assert (borders.reach, borders.share) == (2, pytest.approx(0.04))
    assert (borders.at_border, borders.inside) == (0.0, pytest.approx(20 / 960))
    wrong = result.to_dict()["borders"]["inside"] * 960 + borders.at_border * 40
    assert 1 - result.agreement == pytest.approx(wrong / 1000)
    assert GateResult.from_dict(json.loads(json.dumps(result.to_dict()))) == result


def test_graph_only_is_its_own_verdict() -> None:
    cases = [GateCase(picture(), SIZE)]
    options = GateOptions()
    result = judge_engine(
        Painter(), Painter(), cases, inputs="images", options=options, graph_only=True
    )
    assert result.verdict == "graph-only"
    result = judge_engine(
        Painter(), Painter(900), cases, inputs="images", options=options, graph_only=True
    )
    assert result.verdict == "failed"


@pytest.mark.parametrize(("allowed", "verdict"), [(0.01, "failed"), (0.3, "passed")])
def test_iou_against_the_truth(allowed: float, verdict: str) -> None:
    truth = picture()[..., 0]
    options = GateOptions(min_agreement=0.0, max_iou_drop=allowed)
    result = judge(Painter(200, 2), [GateCase(picture(), SIZE, truth)], options)
    assert result.classes[1].iou_drop == pytest.approx(0.2)
    assert result.verdict == verdict
    if verdict == "failed":
        assert "IoU of class 1 down by 0.2000" in str(result.failures)


def test_a_better_iou_is_no_drop() -> None:
    truth = picture()[..., 0].copy()
    truth.reshape(-1)[:200] = 2
    result = judge(
        Painter(200, 2), [GateCase(picture(), SIZE, truth)], GateOptions(min_agreement=0.5)
    )
    assert result.classes[1].iou_drop is not None
    assert result.classes[1].iou_drop < 0
    assert result.verdict == "passed"


def test_no_images_pass_nothing() -> None:
    result = judge_engine(Painter(), Painter(), [], inputs="images", options=GateOptions())
    assert (result.verdict, result.images) == ("failed", 0)


def rare(pixels: int) -> GateCase:
    """An image of 100,000 pixels, some of which are of class 2."""
    image = np.ones((100, 1000, 1), np.uint8)
    image.reshape(-1)[:pixels] = 2
    return GateCase(image, (100, 1000))


@pytest.mark.parametrize(
    ("pixels", "verdict"),
    [(800, "failed"), (MIN_CLASS_PIXELS, "failed"), (MIN_CLASS_PIXELS - 1, "passed")],
)
def test_a_rare_class_cannot_vanish(pixels: int, verdict: str) -> None:
    """Without masks, although nearly all pixels are equal; a few pixels are no class."""
    result = judge(Painter(pixels, 1, "int8"), [rare(pixels)])
    assert result.agreement > result.min_agreement
    assert result.verdict == verdict
    if verdict == "failed":
        assert result.failures == ["IoU of class 2 to the masks of PyTorch 0.0000, not 0.9"]
    assert GateResult.from_dict(json.loads(json.dumps(result.to_dict()))) == result


@pytest.mark.parametrize(("pixels", "verdict"), [(MIN_CLASS_PIXELS, "failed"), (99, "passed")])
def test_a_class_cannot_be_invented(pixels: int, verdict: str) -> None:
    """One that PyTorch's masks never hold."""
    result = judge(Painter(pixels, 2, "int8"), [rare(0)])
    assert result.agreement > result.min_agreement
    assert result.verdict == verdict


def test_the_class_bound_follows_a_looser_agreement() -> None:
    for precision, least in MIN_CLASS_IOU.items():
        assert GateOptions().class_bound(precision) == least
        assert GateOptions(min_agreement=1.0).class_bound(precision) == least
        assert GateOptions(min_agreement=0.0).class_bound(precision) == 0
        assert GateOptions(min_agreement=0.0, min_class_iou=0.7).class_bound(precision) == 0.7
    assert GateOptions(min_agreement=0.999).class_bound("fp16") == pytest.approx(0.98)


def test_a_verdict_of_before_the_class_bound_is_read() -> None:
    raw = judge(Painter()).to_dict()
    for name in ("min_class_iou", "reference"):
        del raw[name]
    for score in raw["classes"]:
        del score["pixels"]
    assert not GateResult.from_dict(raw).failures


def test_the_table_names_reference_and_bounds() -> None:
    result = judge_engine(
        Painter(),
        Painter(800, 1, "int8"),
        [rare(800)],
        inputs="images",
        options=GateOptions(),
        reference_name="the ONNX file's own graph",
    )
    text = gate_text(result)
    assert "pixels equal to those of the ONNX file's own graph: 99.2000%" in text
    assert "class 2: IoU to the masks of the ONNX file's own graph 0.0000 (at least 0.9)" in text
    assert "masks like those of the ONNX file's own graph" in str(result.error(Path("e")))
    few = gate_text(judge(Painter(), [rare(20)]))
    assert "NOT JUDGED: " in few
    assert "--gate-images" in few
    assert "class 2: IoU to the masks of PyTorch 1.0000 (not judged: 20 pixels)" in few


def test_a_change_to_the_truth_is_told_as_one() -> None:
    case = GateCase(picture(), SIZE, picture()[..., 0])
    assert "IoU to the truth unchanged" in gate_text(judge(Painter(), [case]))
    options = GateOptions(min_agreement=0.0, max_iou_drop=1.0)
    assert "IoU to the truth changed by -0.2000" in gate_text(
        judge(Painter(200, 2), [case], options)
    )
