"""The command that a refused refit names makes the same engine of the new checkpoint."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from unetrt.cli.build import add_arguments
from unetrt.contract.spec import ModelSpec
from unetrt.engine.manifest import Manifest
from unetrt.export.refit import _rebuild_command
from unetrt.training.checkpoint import Checkpoint, read_checkpoint

SPEC = ModelSpec(channels=1, classes=1, scale=0.5)


def command(engine: ModelSpec, checkpoint: Checkpoint | None) -> str:
    manifest = Manifest(
        spec=engine,
        backend="openvino",
        backend_version="1",
        precision="fp32",
        model="model.onnx",
        files={},
        source={},
        gate={},
    )
    return _rebuild_command(Path("engine"), Path("new.pth"), manifest, checkpoint)


@pytest.mark.parametrize(
    ("engine", "flags"),
    [
        ({}, ""),
        ({"scale": 1.0}, " --scale 1.0"),
        ({"threshold": 0.3}, " --mask-threshold 0.3"),
        ({"mask_values": (0, 255)}, " --mask-values 0,255"),
        ({"mask_values": ((0, 0, 0), (9, 8, 7))}, " --mask-values 0:0:0,9:8:7"),
        ({"bit_depth": 12}, " --bit-depth 12"),
        ({"scale": 1.0, "bit_depth": 12}, " --scale 1.0 --bit-depth 12"),
    ],
)
def test_what_the_engine_has_otherwise(engine: dict[str, Any], flags: str) -> None:
    found = command(replace(SPEC, **engine), Checkpoint(SPEC, {}))
    assert found == f"unetrt build new.pth -o engine --backend openvino --precision fp32{flags}"


def test_what_means_nothing_there_is_not_named() -> None:
    four = ModelSpec(classes=4, scale=0.5)
    assert "--mask" not in command(replace(four, threshold=0.3), Checkpoint(four, {}))
    assert "--mask-values" not in command(four, Checkpoint(SPEC, {})), "they would not fit"
    deep = Checkpoint(replace(SPEC, bit_depth=12), {})
    assert "--bit-depth" not in command(SPEC, deep), "no flag takes it away"
    assert "--scale" not in command(SPEC, None)


def test_the_flags_are_those_of_a_build(checkpoint_file: Callable[..., Path]) -> None:
    """Parsed and applied they give the engine's own spec."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    checkpoint = read_checkpoint(checkpoint_file(classes=1))
    engine = replace(checkpoint.spec, scale=0.25, threshold=0.3, mask_values=(0, 255), bit_depth=12)
    args = parser.parse_args(command(engine, checkpoint).split()[2:])
    given = {
        "scale": args.scale,
        "threshold": args.mask_threshold,
        "mask_values": args.mask_values,
        "bit_depth": args.bit_depth,
    }
    assert replace(checkpoint.spec, **given) == engine
