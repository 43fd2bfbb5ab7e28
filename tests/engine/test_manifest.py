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
    signed_json,
    verify_files,
    write_golden,
)
from unetrt.engine.open import open_engine
from unetrt.export.inspect import describe_model

FILES = (GATE, GOLDEN, "model.onnx")


def edit_manifest(directory: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """The digest of its own is renewed: what else guards it is reached."""
    path = directory / MANIFEST
    raw = json.loads(path.read_text())
    change(raw)
    path.write_text(signed_json(raw))


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


def test_nobody_is_told_to_build_over_a_folder_of_pictures(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    hint = str(refused(tmp_path).hint)
    assert "name a model" in hint
    assert str(tmp_path) not in hint


def test_a_folder_that_is_not_there_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not an engine directory") as caught:
        read_manifest(tmp_path / "nothing")
    assert caught.value.seen == "no such folder"


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
    "golden bound of text": lambda raw: raw["gate"].update(golden_agreement="0.9"),
    "golden bound of truth": lambda raw: raw["gate"].update(golden_agreement=True),
    "another verdict": lambda raw: raw["gate"].update(verdict="fine"),
    "a profile of nothing": lambda raw: raw.update(profiles=[{}]),
    "a profile of text": lambda raw: raw.update(profiles=["image"]),
    "a profile of one shape": lambda raw: raw.update(
        profiles=[{"image": [[1, 9, 9, 1]], "size_like": [[9, 9]] * 3}]
    ),
    "a side of text": lambda raw: raw.update(
        profiles=[{"image": [[1, 9, 9, "1"]] * 3, "size_like": [[9, 9]] * 3}]
    ),
    "another spec than the graph's": lambda raw: raw["spec"].update(scale=0.5),
    "another precision than the graph's": lambda raw: raw.update(precision="zz"),
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


UNSIGNED: dict[str, Callable[[dict[str, Any]], object]] = {
    "scale": lambda raw: raw["spec"].update(scale=0.5),
    "mask values": lambda raw: raw["spec"].update(mask_values=[0, 1, 9, 3]),
    "precision": lambda raw: raw.update(precision="fp16"),
    "a bound of nothing": lambda raw: raw["gate"].update(min_agreement=0),
    "a verdict that skips the replay": lambda raw: raw["gate"].update(verdict="failed"),
    "its digest": lambda raw: raw.update(sha256="0" * 64),
    "a digest of another kind": lambda raw: raw.update(sha256=None),
}


@pytest.mark.parametrize("edit", UNSIGNED.values(), ids=list(UNSIGNED))
def test_a_manifest_says_what_it_said_when_it_was_written(
    directory: Path, edit: Callable[[dict[str, Any]], object]
) -> None:
    path = directory / MANIFEST
    raw = json.loads(path.read_text())
    edit(raw)
    path.write_text(json.dumps(raw))
    error = refused(directory)
    assert "changed" in str(error.seen)
    assert "unetrt build" in str(error.hint)
    with pytest.raises(UserError, match="not the engine that was built"):
        describe_model(directory)


def test_another_layout_says_the_same(directory: Path) -> None:
    raw = json.loads((directory / MANIFEST).read_text())
    (directory / MANIFEST).write_text(json.dumps(dict(reversed(raw.items()))))
    open_engine(directory).close()


def test_a_manifest_without_its_digest_is_of_an_older_version(directory: Path) -> None:
    raw = json.loads((directory / MANIFEST).read_text())
    del raw["sha256"]
    (directory / MANIFEST).write_text(json.dumps(raw | {"made_by": "unetrt 0.1"}))
    error = refused(directory)
    assert "no digest of itself" in str(error.seen)
    assert "unetrt 0.1" in str(error.seen)


def test_a_manifest_nested_beyond_reading(directory: Path) -> None:
    (directory / MANIFEST).write_text('{"format":' * 200_000)
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
