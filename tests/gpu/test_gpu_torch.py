"""An engine directory of PyTorch on an NVIDIA GPU: fused, pooled by our kernel, replayed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.conftest import steel
from tests.gpu.test_gpu import PICTURES, agreement, masks_of
from unetrt.contract.types import U8, Size
from unetrt.engine.base import Engine
from unetrt.engine.open import open_engine
from unetrt.engine.probe import choose_backend, probe_backends
from unetrt.engine.torch_pooling import _kernel, halved
from unetrt.export.build import BuildOptions, build_engine
from unetrt.export.gate import GateOptions
from unetrt.export.onnx_export import BLOCKS

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU here"),
]

SIZE: Size = (75, 101)
Files = Callable[..., Path]


@pytest.fixture(scope="module", params=[{"width": 8}, {"width": 16, "bilinear": True}, {}])
def built(
    request: pytest.FixtureRequest, checkpoint_file: Files, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """(checkpoint, engine directory); untrained networks have thin margins."""
    checkpoint = checkpoint_file(**request.param)
    directory = tmp_path_factory.mktemp("torch") / "engine"
    options = BuildOptions(backend="torch", gate=GateOptions(min_agreement=0.98))
    built = build_engine(checkpoint, directory, options)
    assert built.gate.verdict == "passed"
    assert built.manifest.precision == "fp16"
    return checkpoint, directory


@pytest.fixture
def engine(built: tuple[Path, Path]) -> Iterator[Engine]:
    with open_engine(built[1]) as found:
        assert found.device == "cuda"
        assert found.graphs is False
        yield found


def test_auto_takes_it_where_there_is_no_tensorrt() -> None:
    plans = [s for s in probe_backends() if s.name.startswith("tensorrt") and s.runs and s.builds]
    if plans:
        pytest.skip(f"{plans[0].name} is here")
    assert choose_backend()[0] == "torch"


def test_its_masks_are_those_of_the_cpu(built: tuple[Path, Path], engine: Engine) -> None:
    with open_engine(built[0], device="cpu") as cpu:
        assert agreement(masks_of(engine, PICTURES), masks_of(cpu, PICTURES)) > 0.99


def test_blocks_in_fp32_are_not_in_tf32(checkpoint_file: Files, tmp_path: Path) -> None:
    """Which rounds as fp16 does: all of them together give the masks of fp32."""
    gate = GateOptions(min_agreement=0.999)
    options = BuildOptions(backend="torch", fp32_blocks=BLOCKS, gate=gate)
    built = build_engine(checkpoint_file(width=8), tmp_path / "engine", options)
    assert built.gate.agreement > 0.9999


@pytest.mark.parametrize("graphs", [False, True])
def test_three_slots_in_flight_keep_their_own_masks(engine: Engine, graphs: bool) -> None:
    """With graphs the second batch of a slot is captured, all others are replayed."""
    engine.graphs = graphs
    pictures = [steel(index, *SIZE) for index in range(7)]
    with closing(engine.slot()) as slot:
        expected = [one_by_one(slot, picture) for picture in pictures]
    slots = [engine.slot() for _ in range(3)]
    count = 300
    for index in range(count + len(slots)):
        slot = slots[index % len(slots)]
        if index >= len(slots):
            shown = (index - len(slots)) % len(pictures)
            np.testing.assert_array_equal(slot.masks()[0], expected[shown])
        if index < count:
            slot.reserve(2, SIZE)[:] = pictures[index % len(pictures)]
            slot.submit(2, SIZE)
    for slot in slots:
        if graphs:
            assert slot._kernel._replay._graph is not None, "no graph was captured"  # type: ignore[attr-defined]
        slot.close()


def one_by_one(slot: object, picture: U8) -> U8:
    slot.reserve(2, SIZE)[:] = picture  # type: ignore[attr-defined]
    slot.submit(2, SIZE)  # type: ignore[attr-defined]
    return slot.masks()[0].copy()  # type: ignore[attr-defined, no-any-return]


@pytest.mark.parametrize("graphs", [False, True])
def test_new_slots_take_no_new_memory(engine: Engine, graphs: bool) -> None:
    """Nor do new shapes of a slot."""
    engine.graphs = graphs
    picture = steel(0, 160, 160)

    def use_slots(count: int) -> None:
        for _ in range(count):
            with closing(engine.slot()) as slot:
                for batch in (4, 4, 4, 2, 2, 2):
                    slot.reserve(batch, (160, 160))[:] = picture
                    slot.submit(batch, (160, 160))
                    slot.masks()

    use_slots(3)
    before = torch.cuda.mem_get_info()[0]
    use_slots(100)
    assert before - torch.cuda.mem_get_info()[0] < 1 << 20


@pytest.mark.parametrize("shape", [(2, 8, 33, 50), (1, 64, 2, 3), (3, 40, 101, 7)])
def test_the_kernel_gives_the_maxima(shape: tuple[int, ...]) -> None:
    if torch.cuda.get_device_capability() >= (8, 0):
        assert _kernel(0) is not None
    numbers = np.random.default_rng(0).normal(0, 1000, shape).astype(np.float16)
    numbers[numbers > 1500] = np.nan
    x = torch.from_numpy(numbers).contiguous(memory_format=torch.channels_last)
    found = halved(x.cuda()).cpu()
    torch.testing.assert_close(found, F.max_pool2d(x, 2), rtol=0, atol=0, equal_nan=True)
