"""The judge alone, on engines whose masks are set."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from unetrt.contract.errors import GateError
from unetrt.contract.spec import ModelSpec
from unetrt.contract.types import NO_CLASS, U8
from unetrt.engine.host import HostEngine
from unetrt.export.gate import MIN_AGREEMENT, GateCase, GateOptions, GateResult, judge_engine

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
