from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unetrt.contract.errors import UserError
from unetrt.contract.files import sha256_from_file
from unetrt.engine.manifest import (
    GATE,
    GOLDEN,
    MANIFEST,
    GoldenCase,
    Manifest,
    read_golden,
    read_manifest,
    verify_files,
    write_golden,
)
from unetrt.engine.open import open_engine

FILES = (GATE, GOLDEN, "model.onnx")


def edit_manifest(directory: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = directory / MANIFEST
    raw = json.loads(path.read_text())
    change(raw)
    path.write_text(json.dumps(raw))


def refresh_digest(directory: Path, name: str) -> None:
    digest = sha256_from_file(directory / name)
    edit_manifest(directory, lambda raw: raw["files"].update({name: digest}))


def refused(directory: Path) -> UserError:
    with pytest.raises(UserError) as caught:
        open_engine(directory)
    assert str(directory) in str(caught.value)
    return caught.value


def test_json_and_back_is_the_same_manifest(built_directory: Path) -> None:
    text = (built_directory / MANIFEST).read_text(encoding="utf-8")
    manifest = read_manifest(built_directory)
    assert manifest.to_json() == text
    assert Manifest.from_dict(json.loads(text)) == manifest


def test_the_manifest_names_every_other_file(built_directory: Path) -> None:
    manifest = read_manifest(built_directory)
    assert set(manifest.files) == set(FILES)
    assert {p.name for p in built_directory.iterdir()} == {MANIFEST, *FILES}
    for name, digest in manifest.files.items():
        assert sha256_from_file(built_directory / name) == digest
    verify_files(built_directory, manifest)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("place", [0, 0.5, 1])
def test_one_byte_changed_is_refused(directory: Path, name: str, place: float) -> None:
    path = directory / name
    data = bytearray(path.read_bytes())
    data[int(place * (len(data) - 1))] ^= 1
    path.write_bytes(data)
    error = refused(directory)
    assert name in str(error.seen)
    assert "unetrt build" in str(error.hint)


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_missing_is_named(directory: Path, name: str) -> None:
    (directory / name).unlink()
    assert refused(directory).seen == f"{name} is missing"


@pytest.mark.parametrize("count", range(4))
def test_a_directory_copied_in_part_is_refused(
    built_directory: Path, tmp_path: Path, count: int
) -> None:
    part = tmp_path / "part"
    part.mkdir()
    for path in sorted(built_directory.iterdir())[:count]:
        (part / path.name).write_bytes(path.read_bytes())
    assert "unetrt build" in str(refused(part).hint)


@pytest.mark.parametrize("text", ["", "no json", "[]", "null", '"text"', "7", "{}", '{"format":'])
def test_a_manifest_that_is_no_manifest(directory: Path, text: str) -> None:
    (directory / MANIFEST).write_text(text)
    assert "unetrt build" in str(refused(directory).hint)


def test_a_manifest_in_another_encoding(directory: Path) -> None:
    (directory / MANIFEST).write_bytes(b"\xff\xfe{}")
    refused(directory)


def test_a_format_of_another_version(directory: Path) -> None:
    edit_manifest(directory, lambda raw: raw.update(format="unetrt-engine-9"))
    error = refused(directory)
    assert (error.seen, error.expected) == ("unetrt-engine-9", "unetrt-engine-1")


EDITS: dict[str, Callable[[dict[str, Any]], object]] = {
    "no spec": lambda raw: raw.pop("spec"),
    "no files": lambda raw: raw.pop("files"),
    "no gate": lambda raw: raw.pop("gate"),
    "empty gate": lambda raw: raw.update(gate={}),
    "gate of text": lambda raw: raw.update(gate="passed"),
    "bound of text": lambda raw: raw["gate"].update(min_agreement="0.9"),
    "bound is no number": lambda raw: raw["gate"].update(min_agreement=math.nan),
    "no verdict": lambda raw: raw["gate"].pop("verdict"),
    "spec is a list": lambda raw: raw.update(spec=[]),
    "spec is a number": lambda raw: raw.update(spec=3),
    "classes without names": lambda raw: raw["spec"].update(classes=9),
    "unknown field": lambda raw: raw.update(colour="red"),
    "files is a list": lambda raw: raw.update(files=list(FILES)),
    "digest is a number": lambda raw: raw["files"].update({GATE: 7}),
    "another digest": lambda raw: raw["files"].update({GATE: "0" * 64}),
    "no digest": lambda raw: raw["files"].pop("model.onnx"),
    "model elsewhere": lambda raw: raw.update(model="../model.onnx"),
    "model is null": lambda raw: raw.update(model=None),
    "backend is a list": lambda raw: raw.update(backend=["openvino"]),
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=list(EDITS))
def test_an_edited_manifest_is_refused(
    directory: Path, edit: Callable[[dict[str, Any]], object]
) -> None:
    edit_manifest(directory, edit)
    assert "unetrt build" in str(refused(directory).hint)


def test_a_backend_that_is_none(directory: Path) -> None:
    edit_manifest(directory, lambda raw: raw.update(backend="abacus"))
    with pytest.raises(UserError, match="no such backend"):
        open_engine(directory)


@pytest.mark.parametrize("name", ["../outside", "sub/inside", "/etc/hostname", "..", ""])
def test_a_file_outside_the_directory_is_never_read(directory: Path, name: str) -> None:
    """Even where it is there and has the digest that is named."""
    for path in (directory.parent / "outside", directory / "sub" / "inside"):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"secret")
    digest = sha256_from_file(directory.parent / "outside")
    edit_manifest(directory, lambda raw: raw["files"].update({name: digest}))
    assert f"{name} is missing" in str(refused(directory).seen)


def test_other_golden_masks_are_refused_on_replay(directory: Path) -> None:
    cases = read_golden(directory / GOLDEN)
    write_golden(directory / GOLDEN, [GoldenCase(c.image, 3 - c.mask) for c in cases])
    refresh_digest(directory, GOLDEN)
    error = refused(directory)
    assert "other masks on this device" in error.message
    assert "unetrt build" in str(error.hint)


def test_a_failed_engine_that_was_published_opens(directory: Path) -> None:
    cases = read_golden(directory / GOLDEN)
    write_golden(directory / GOLDEN, [GoldenCase(c.image, 3 - c.mask) for c in cases])
    refresh_digest(directory, GOLDEN)
    edit_manifest(directory, lambda raw: raw["gate"].update(verdict="failed"))
    open_engine(directory).close()


GOLDENS: dict[str, Callable[[Path], None]] = {
    "text": lambda path: path.write_bytes(b"no archive") and None,
    "nothing": lambda path: path.write_bytes(b"") and None,
    "no cases": lambda path: write_golden(path, []),
    "no masks": lambda path: np.savez(path, image_0=np.zeros((9, 9, 1), np.uint8)),
    "one array": lambda path: np.save(path.open("wb"), np.zeros(3)),
    "objects": lambda path: np.savez(path, image_0=np.array([{}]), mask_0=np.zeros((2, 2))),
    "no pixels": lambda path: write_golden(
        path, [GoldenCase(np.zeros((0, 4, 1), np.uint8), np.zeros((0, 4), np.uint8))]
    ),
    "floats": lambda path: write_golden(
        path,
        [GoldenCase(np.zeros((9, 9, 1)), np.zeros((9, 9)))],  # type: ignore[arg-type]
    ),
    "three channels": lambda path: write_golden(
        path, [GoldenCase(np.zeros((9, 9, 3), np.uint8), np.zeros((9, 9), np.uint8))]
    ),
}


@pytest.mark.parametrize("write", GOLDENS.values(), ids=list(GOLDENS))
def test_golden_masks_that_are_none(directory: Path, write: Callable[[Path], None]) -> None:
    write(directory / GOLDEN)
    refresh_digest(directory, GOLDEN)
    refused(directory)


def test_golden_cases_come_back_as_they_were(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    cases = [
        GoldenCase(
            rng.integers(0, 256, (5, 4 + i, 3), np.uint8), rng.integers(0, 4, (10, 9), np.uint8)
        )
        for i in range(12)
    ]
    write_golden(tmp_path / GOLDEN, cases)
    found = read_golden(tmp_path / GOLDEN)
    assert len(found) == 12
    for a, b in zip(cases, found, strict=True):
        assert np.array_equal(a.image, b.image)
        assert np.array_equal(a.mask, b.mask)
        assert b.size == (10, 9)
