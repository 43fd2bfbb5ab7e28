"""Damaged engine directories and checkpoints: a named error or a model that opens, nothing else."""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from unetrt.contract.errors import UserError
from unetrt.contract.files import sha256_from_file
from unetrt.engine.manifest import MANIFEST, signed_json
from unetrt.engine.open import open_engine
from unetrt.export.inspect import describe_model
from unetrt.training.checkpoint import Checkpoint, read_checkpoint

CASES = 250
REFUSED = ("not the engine that was built", "a format that this version does not know")
LONGEST = 120.0
"""Seconds for one file: what takes longer hangs, however busy the machine is."""


def damaged(data: bytes, draw: random.Random) -> bytes:
    """Flip, cut, repeat, insert or blank a part."""
    place, length = draw.randrange(len(data)), draw.randint(1, 64)
    kinds = (
        data[:place] + bytes([data[place] ^ 1 << draw.randrange(8)]) + data[place + 1 :],
        data[:place],
        data[:place] + data[place : place + length] * 2 + data[place + length :],
        data[:place] + draw.randbytes(length) + data[place:],
        data[:place] + bytes(length) + data[place + length :],
        data[:place] + draw.randbytes(length) + data[place + length :],
    )
    return draw.choice(kinds)


def check(path: Path, action: Callable[[Path], object], seed: int) -> str:
    """ "opened", or the error's first line; anything but a UserError comes through."""
    start = time.monotonic()
    try:
        action(path)
        result = "opened"
    except UserError as error:
        result = error.message
        assert result, seed
    assert time.monotonic() - start < LONGEST, seed
    return result


def open_and_close(path: Path) -> None:
    open_engine(path, device="cpu").close()


def sign(directory: Path, name: str) -> None:
    """Make the manifest state the damaged file's digest: what digests guard is reached too."""
    path = directory / MANIFEST
    raw = json.loads(path.read_text())
    if name != MANIFEST:
        raw["files"][name] = sha256_from_file(directory / name)
    path.write_text(signed_json(raw))


def is_json_object(path: Path) -> bool:
    try:
        return isinstance(json.loads(path.read_text()), dict)
    except ValueError:
        return False


def says_the_same(directory: Path, other: Path) -> bool:
    """A blank more in engine.json changes nothing of what it says."""
    first, second = directory / MANIFEST, other / MANIFEST
    return is_json_object(first) and json.loads(first.read_text()) == json.loads(second.read_text())


def are_equal(first: Checkpoint, second: Checkpoint) -> bool:
    if (first.spec, first.state.keys()) != (second.spec, second.state.keys()):
        return False
    golden = zip(first.golden, second.golden, strict=True)
    return all(torch.equal(first.state[name], second.state[name]) for name in first.state) and all(
        np.array_equal(image, other) and size == other_size
        for (image, size), (other, other_size) in golden
    )


@pytest.mark.slow
def test_engine_directories(built_directory: Path, tmp_path: Path) -> None:
    names = sorted(p.name for p in built_directory.iterdir())
    opened = 0
    for seed in range(CASES):
        draw = random.Random(seed)
        path = shutil.copytree(built_directory, tmp_path / "engine", dirs_exist_ok=True)
        name = draw.choice(names)
        before = (path / name).read_bytes()
        (path / name).write_bytes(damaged(before, draw))
        changed = (path / name).read_bytes() != before
        result = check(path, open_and_close, seed)
        if name == MANIFEST and says_the_same(path, built_directory):
            changed = False
        if changed:
            assert any(words in result for words in REFUSED), seed
            # A damaged model can crash the runtime that reads it: only what we read is signed.
            if name != "model.onnx" and is_json_object(path / MANIFEST):
                sign(path, name)
                check(path, open_and_close, seed)
        check(path, describe_model, seed)
        opened += result == "opened"
    assert opened < CASES / 4


@pytest.mark.slow
def test_checkpoints(checkpoint_file: Callable[..., Path], tmp_path: Path) -> None:
    """What opens has the weights, the spec and the golden images of before, bit by bit."""
    data, whole = checkpoint_file().read_bytes(), read_checkpoint(checkpoint_file())
    path = tmp_path / "c.pth"
    results = []
    for seed in range(CASES):
        path.write_bytes(damaged(data, random.Random(seed)))
        results.append(check(path, open_and_close, seed))
        if results[-1] == "opened":
            assert are_equal(read_checkpoint(path), whole), seed
    assert results.count("opened") < CASES / 4
