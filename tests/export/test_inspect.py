from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

from unetrt.contract.errors import UserError
from unetrt.contract.files import sha256_from_file
from unetrt.export.inspect import describe_model
from unetrt.training.checkpoint import read_checkpoint, write_bare


def test_a_checkpoint(checkpoint_file: Callable[..., Path]) -> None:
    found = describe_model(checkpoint_file())
    assert found["kind"] == "checkpoint"
    assert found["spec"] == asdict(read_checkpoint(checkpoint_file()).spec)
    assert found["sha256"] == sha256_from_file(checkpoint_file())
    json.dumps(found)


def test_a_bare_checkpoint(checkpoint_file: Callable[..., Path], tmp_path: Path) -> None:
    write_bare(tmp_path / "bare.pth", read_checkpoint(checkpoint_file()))
    found = describe_model(tmp_path / "bare.pth")
    assert found["kind"] == "checkpoint of Pytorch-UNet"
    assert found["spec"]["scale"] == 0.5


def test_an_onnx_file(exported: Callable[..., Path]) -> None:
    found = describe_model(exported())
    assert (found["kind"], found["precision"]) == ("onnx", "fp32")
    assert found["inputs"] == {"image": ["N", "h", "w", 1], "size_like": ["H", "W"]}
    assert found["outputs"] == {"mask": ["N", "H", "W"]}
    json.dumps(found)


def test_what_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("text")
    for path in (tmp_path, tmp_path / "text.onnx", tmp_path / "none.pth"):
        with pytest.raises(UserError):
            describe_model(path)
