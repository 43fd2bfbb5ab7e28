"""How far the golden results may be off when an engine is opened on another device."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unetrt.contract.errors import UserError
from unetrt.contract.spec import ModelSpec
from unetrt.contract.types import U8, Size
from unetrt.engine.base import Engine
from unetrt.engine.host import HostEngine
from unetrt.engine.levels import MAX_LEVEL_ERROR
from unetrt.engine.manifest import GOLDEN, GoldenCase, Manifest, write_golden
from unetrt.engine.open import replay_golden

SIZE: Size = (100, 100)
RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (50, 50, 1), np.uint8)
MASK = np.zeros(SIZE, np.uint8)
MASK[:30], MASK[30:60, 40:] = 1, 2
PLANES = np.stack([np.where(value == MASK, 240, 2) for value in range(3)]).astype(np.uint8)


class Told(HostEngine):
    """Gives the result that it is told."""

    backend, precision, device = "told", "fp32", "cpu"

    def __init__(self, result: U8) -> None:
        kind: Any = "mask" if result.ndim == 2 else "prob"
        super().__init__(ModelSpec(channels=1, classes=3, result=kind))
        self._result = result

    def infer(self, images: U8, masks: U8) -> None:
        masks[:] = self._result


@pytest.fixture
def replay(tmp_path: Path) -> Callable[..., None]:
    """Replay a golden result on an engine that gives another, under a gate's numbers."""

    def run(golden: U8, found: U8, precision: str = "fp16", **gate: float) -> None:
        write_golden(tmp_path / GOLDEN, [GoldenCase(IMAGE, golden)])
        with Told(found) as engine:
            manifest = _manifest(engine, precision, gate)
            replay_golden(engine, tmp_path, manifest)

    return run


def _manifest(engine: Engine, precision: str, gate: dict[str, float]) -> Manifest:
    return Manifest(
        spec=engine.spec,
        backend="tensorrt",
        backend_version="11",
        precision=precision,
        model="model.plan",
        files={},
        source={},
        gate={"verdict": "passed", "min_agreement": 0.999, **gate},
    )


def off_by(pixels: int) -> U8:
    mask = MASK.copy()
    mask.reshape(-1)[:pixels] = 2
    return mask


@pytest.mark.parametrize(
    ("measured", "pixels", "passes"),
    [
        (1.0, 10, True),
        (1.0, 11, False),
        (0.9995, 10, True),
        (0.9995, 11, False),
        (0.9985, 16, True),  # one more than when it was built
        (0.9985, 30, True),
        (0.9985, 31, False),
    ],
)
def test_what_missed_the_bound_when_it_was_built_may_be_off_twice_as_much(
    replay: Callable[..., None], measured: float, pixels: int, passes: bool
) -> None:
    if passes:
        replay(MASK, off_by(pixels), golden_agreement=measured)
        return
    with pytest.raises(UserError, match="gives other masks") as caught:
        replay(MASK, off_by(pixels), golden_agreement=measured)
    assert "--rebuild" in str(caught.value.hint)


@pytest.mark.parametrize("measured", [0.998, 0.9, 0.5, 0.1])
def test_a_flipped_mask_is_refused_whatever_was_measured(
    replay: Callable[..., None], measured: float
) -> None:
    with pytest.raises(UserError, match="gives other masks"):
        replay(MASK, (MASK + 1) % 3, golden_agreement=measured)


@pytest.mark.parametrize("measured", [1.0, 0.998, 0.97])
def test_a_shifted_mask_is_refused(replay: Callable[..., None], measured: float) -> None:
    with pytest.raises(UserError, match="gives other masks"):
        replay(MASK, np.roll(MASK, 4, axis=0), golden_agreement=measured)


def test_a_batch_as_a_job_runs_it_is_judged_too(tmp_path: Path) -> None:
    """One of several small images, where an image alone has the right mask."""

    class OfSmallImages(Told):
        def batch_for(self, input_size: Size) -> int:
            return 8

        def infer(self, images: U8, masks: U8) -> None:
            super().infer(images, masks)
            masks[1:] = np.roll(masks[1:], 4, axis=1)

    write_golden(tmp_path / GOLDEN, [GoldenCase(IMAGE, MASK)])
    with OfSmallImages(MASK) as engine, pytest.raises(UserError, match="gives other masks"):
        replay_golden(engine, tmp_path, _manifest(engine, "fp32", {}))


def noisy(mean: float) -> U8:
    """All planes off by `mean` levels on average, some numbers by more than one."""
    planes = PLANES.astype(int)
    count = round(mean * planes.size / 10)
    planes.reshape(-1)[RNG.permutation(planes.size)[:count]] += 10
    return planes.astype(np.uint8)


@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8"])
def test_probabilities_may_be_off_as_the_gate_allows(
    replay: Callable[..., None], precision: str
) -> None:
    """Of a mean of three levels, most numbers are off by more than one."""
    most = MAX_LEVEL_ERROR[precision]
    replay(PLANES, noisy(0.9 * most), precision)
    with pytest.raises(UserError, match="gives other probabilities") as caught:
        replay(PLANES, noisy(1.1 * most), precision)
    assert "levels of 255" in str(caught.value.seen)
    assert "--rebuild" in str(caught.value.hint)
    replay(PLANES, noisy(1.9 * most), precision, golden_level_error=1.01 * most)
    with pytest.raises(UserError, match="gives other probabilities"):
        replay(PLANES, noisy(2.1 * most), precision, golden_level_error=1.01 * most)


@pytest.mark.parametrize("wrong", [np.flipud, np.fliplr, lambda plane: np.roll(plane, 4, axis=0)])
def test_flipped_and_shifted_probabilities_are_refused(
    replay: Callable[..., None], wrong: Callable[[U8], U8]
) -> None:
    moved = np.stack([wrong(plane) for plane in PLANES])
    with pytest.raises(UserError, match="gives other"):
        replay(PLANES, moved, "int8")
    flat = (PLANES.astype(int) // 100 + 80).astype(np.uint8)  # hardly any level is off
    moved = np.stack([wrong(plane) for plane in flat])
    with pytest.raises(UserError, match="gives other masks"):
        replay(flat, moved, "int8")
