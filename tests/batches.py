"""Whether an engine gives an image the same mask in a batch of any number."""

from __future__ import annotations

from contextlib import closing

import numpy as np

from unetrt.contract.types import U8, Size
from unetrt.engine.base import Engine

MOST = 8

SIZES: list[tuple[Size, Size]] = [
    ((100, 100), (200, 200)),
    ((37, 53), (37, 53)),
    ((16, 130), (9, 9)),
]


def in_batches(engine: Engine, images: U8, size: Size, batch: int) -> U8:
    """(N, H, W), with so many images a batch."""
    found = []
    with closing(engine.slot()) as slot:
        for start in range(0, len(images), batch):
            slot.reserve(batch, (images.shape[1], images.shape[2]))[:] = images[
                start : start + batch
            ]
            slot.submit(batch, size)
            found.append(slot.masks().copy())
    return np.concatenate(found)


def check_any_batch(engine: Engine) -> None:
    """Noise has no margin between its classes: the last bit of a logit would show."""
    assert engine.any_batch
    generator = np.random.default_rng(0)
    for input_size, size in SIZES:
        shape = (2 * MOST, *input_size, engine.spec.channels)
        noise = generator.integers(0, 256, shape, np.uint8)
        alone = in_batches(engine, noise, size, 1)
        assert len(np.unique(alone)) > 1
        for batch in (2, 4, MOST):
            np.testing.assert_array_equal(in_batches(engine, noise, size, batch), alone)
