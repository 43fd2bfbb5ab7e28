"""Small images in OpenVINO: several a batch, and the masks that each has by itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.batches import check_any_batch
from unetrt.contract.types import Size
from unetrt.engine.open import open_engine
from unetrt.engine.openvino_backend import OpenVinoEngine, supports_bf16


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("width", [4, 16])
def test_a_mask_is_the_same_in_a_batch_of_any_number(
    precision: str, width: int, exported: Callable[..., Path]
) -> None:
    if precision == "bf16" and not supports_bf16():
        pytest.skip("this processor has no bfloat16")
    model = exported(width=width)
    with open_engine(model, "openvino") as opened:
        spec = opened.spec
    with OpenVinoEngine(model, spec, precision) as engine:
        check_any_batch(engine)


@pytest.mark.parametrize(
    ("width", "size", "batch"),
    [
        (4, (100, 100), 8),
        (16, (100, 100), 8),
        (16, (200, 200), 2),
        (16, (640, 959), 1),
        (64, (100, 100), 2),
        (64, (200, 200), 1),
        (64, (24, 24), 8),
        (64, (10_000, 10_000), 1),
    ],
)
def test_batches_hold_more_images_the_less_work_they_are(
    width: int, size: Size, batch: int, exported: Callable[..., Path]
) -> None:
    with open_engine(exported(), "openvino") as engine:
        engine.spec = replace(engine.spec, width=width)
        assert engine.batch_for(size) == batch <= engine.most_batch
