"""A net whose numbers fp16 does not hold: refused as it is, right with a block in fp32."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unetrt.contract.errors import GateError, UserError
from unetrt.contract.types import U8
from unetrt.engine.manifest import read_manifest
from unetrt.engine.open import open_engine
from unetrt.export import modelfile, publish
from unetrt.export.build import BuildOptions, build_engine
from unetrt.export.gate import GateCase, GateOptions, GateResult, judge_engine
from unetrt.export.onnx_export import BLOCKS, onnx_from_checkpoint
from unetrt.export.repair import (
    _judged,
    find_fp32_blocks,
    one_block_more,
    overflowing_blocks,
    smallest_blocks,
)
from unetrt.export.tensorrt_build import Plan, plan_from_onnx
from unetrt.training.checkpoint import Checkpoint, read_checkpoint, write_checkpoint

Export = Callable[..., Path]
RTX = "tensorrt-rtx"


def scaled(checkpoint: Checkpoint, block: str, factor: float) -> Checkpoint:
    """The same function with `factor` times the numbers between a block's two convolutions."""
    state = dict(checkpoint.state)
    for name, by in (("1.weight", factor), ("1.bias", factor), ("3.weight", 1 / factor)):
        state[f"{block}.double_conv.{name}"] = state[f"{block}.double_conv.{name}"] * by
    return replace(checkpoint, state=state)


@pytest.fixture(scope="session")
def overflowing(checkpoint_file: Export) -> Checkpoint:
    return scaled(read_checkpoint(checkpoint_file()), "up2.conv", 2.0**20)


@pytest.fixture(scope="session")
def cases(steel: Callable[..., U8]) -> list[GateCase]:
    return [GateCase(steel(i, 48, 64), (48, 64)) for i in range(2)]


def test_blocks_that_overflow(
    overflowing: Checkpoint, checkpoint_file: Export, cases: list[GateCase]
) -> None:
    assert overflowing_blocks(overflowing, cases) == ("up2",)
    assert overflowing_blocks(read_checkpoint(checkpoint_file()), cases) == ()
    two = scaled(overflowing, "inc", 2.0**20)
    assert overflowing_blocks(two, cases) == ("inc", "up2")


def test_they_are_found(overflowing: Checkpoint, cases: list[GateCase], tmp_path: Path) -> None:
    path = tmp_path / "c.pth"
    write_checkpoint(path, overflowing)
    with open_engine(path, device="cpu") as reference:
        find = partial(find_fp32_blocks, overflowing, reference, lambda: cases)
        assert find(GateOptions(min_agreement=0.99), ("up2",)) == ("up2",)
        assert find(GateOptions(min_agreement=1.1), ("up2",)) == ()


def test_the_block_more_is_the_one_that_brings_it_nearest(
    overflowing: Checkpoint, cases: list[GateCase], tmp_path: Path
) -> None:
    path, options = tmp_path / "c.pth", GateOptions(min_agreement=0.99)
    write_checkpoint(path, overflowing)
    with open_engine(path, device="cpu") as reference:
        asked = (overflowing, reference, lambda: cases, options)
        found = one_block_more(*asked, ("up2",))
        shares = {
            block: _judged(*asked, (block, "up2")).agreement for block in BLOCKS if block != "up2"
        }
        assert one_block_more(*asked, BLOCKS) == ()
    (more,) = set(found) - {"up2"}
    assert list(found) == [b for b in BLOCKS if b in found]
    assert shares[more] == max(shares.values()) > min(shares.values())


@pytest.mark.parametrize(("misses", "passes"), [(1, True), (2, False)])
def test_a_mended_engine_that_misses_its_gate_gets_one_block_more(
    misses: int,
    passes: bool,
    overflowing: Checkpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    judged: list[GateResult] = []

    def judge(*arguments: Any, **named: Any) -> GateResult:
        result = judge_engine(*arguments, **named)
        judged.append(result)
        narrowly = replace(result, agreement=result.min_agreement - 1e-5)
        return narrowly if len(judged) <= misses else result

    monkeypatch.setattr(publish, "judge_engine", judge)
    write_checkpoint(tmp_path / "c.pth", overflowing)
    gate = GateOptions(min_agreement=0.9)
    options = BuildOptions(backend="onnxruntime", precision="fp16", gate=gate)
    if passes:
        built = build_engine(tmp_path / "c.pth", tmp_path / "engine", options)
        kept = built.manifest.precisions["fp32_blocks"]
        assert len(kept) == 2
        assert "up2" in kept
    else:
        with pytest.raises(GateError, match="was not written"):
            build_engine(tmp_path / "c.pth", tmp_path / "engine", options)
        assert not (tmp_path / "engine").exists()
    assert len(judged) == 2


@settings(deadline=None)
@given(st.sets(st.sampled_from(BLOCKS)), st.sets(st.sampled_from(BLOCKS)))
def test_bisection_keeps_what_is_needed_and_no_more(needed: set[str], must: set[str]) -> None:
    found = smallest_blocks(
        tuple(b for b in BLOCKS if b in must), lambda blocks: needed <= set(blocks)
    )
    assert set(found) == needed | must
    assert list(found) == [b for b in BLOCKS if b in found]


@pytest.mark.slow
def test_the_graph_has_casts_around_the_block(overflowing: Checkpoint, tmp_path: Path) -> None:
    onnx_from_checkpoint(overflowing, tmp_path / "m.onnx", "fp16", "", ("up2",))
    graph = onnx.load(str(tmp_path / "m.onnx")).graph
    weights = {i.name: i.data_type for i in graph.initializer if i.name.startswith("net.")}
    single = {name for name, kind in weights.items() if kind == onnx.TensorProto.FLOAT}
    assert single
    assert all(name.startswith("net.up2.") for name in single)


class TestBuild:
    @pytest.fixture(autouse=True)
    def _rtx(self) -> None:
        pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")

    @pytest.fixture
    def source(self, overflowing: Checkpoint, tmp_path: Path) -> Path:
        write_checkpoint(tmp_path / "large.pth", overflowing)
        return tmp_path / "large.pth"

    def test_plain_fp16_fails(self, source: Path, tmp_path: Path) -> None:
        gate = GateOptions(min_agreement=0.0)
        plain = BuildOptions(backend=RTX, fp32_blocks=(), gate=gate)
        with pytest.raises(GateError, match="not finite"):
            build_engine(source, tmp_path / "engine", plain)

    def test_the_repaired_engine_passes(
        self,
        source: Path,
        tmp_path: Path,
        caplog: pytest.LogCaptureFixture,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        plans: list[Path] = []

        def counted(*arguments: Any) -> Plan:
            plans.append(arguments[1])
            return plan_from_onnx(*arguments)

        monkeypatch.setattr(modelfile, "plan_from_onnx", counted)
        gate = GateOptions(min_agreement=0.99)
        built = build_engine(source, tmp_path / "engine", BuildOptions(backend=RTX, gate=gate))
        assert not built.gate.failures
        precisions = read_manifest(tmp_path / "engine").precisions
        assert precisions["fp32_blocks"] == ["up2"]
        assert 0.05 < precisions["flops"]["fp32"] < 0.3
        assert "up2 will stay in fp32" in caplog.text
        assert len(plans) == 1, "what overflows is known before a plan is built"
        again = build_engine(source, tmp_path / "engine", BuildOptions(backend=RTX, gate=gate))
        assert again.reused

    @pytest.mark.slow
    def test_blocks_that_are_named(self, source: Path, tmp_path: Path) -> None:
        options = BuildOptions(
            backend=RTX, fp32_blocks=("up2", "outc"), gate=GateOptions(min_agreement=0.9)
        )
        built = build_engine(source, tmp_path / "engine", options)
        assert built.manifest.precisions["fp32_blocks"] == ["up2", "outc"]

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"fp32_blocks": ("up9",)}, "no such block"),
            ({"fp32_blocks": ("up2",), "precision": "fp32"}, "keeps blocks of an fp16 engine"),
        ],
    )
    def test_what_makes_no_sense(
        self, source: Path, tmp_path: Path, changes: dict[str, object], message: str
    ) -> None:
        options = replace(BuildOptions(backend=RTX), **changes)  # type: ignore[arg-type]
        with pytest.raises(UserError, match=message):
            build_engine(source, tmp_path / "engine", options)


def test_it_is_the_same_function(
    overflowing: Checkpoint, checkpoint_file: Export, cases: list[GateCase], tmp_path: Path
) -> None:
    write_checkpoint(tmp_path / "c.pth", overflowing)
    with (
        open_engine(tmp_path / "c.pth", device="cpu") as large,
        open_engine(checkpoint_file(), device="cpu") as plain,
    ):
        for case in cases:
            same = large.run(case.image, case.size) == plain.run(case.image, case.size)
            assert np.mean(same) > 0.999
