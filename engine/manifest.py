"""Engine directories: what engine.json says, and the proof that the files are those it names."""

from __future__ import annotations

import json
import math
import struct
import zipfile
import zlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..contract.errors import UserError
from ..contract.files import sha256_from_file
from ..contract.spec import ModelSpec
from ..contract.types import U8, Size

FORMAT = "unetrt-engine-1"
MANIFEST, GOLDEN, GATE = "engine.json", "golden.npz", "gate.json"
REBUILD = "unetrt build CHECKPOINT -o {}   builds it again"

_ARRAY_ERRORS = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    EOFError,
    ArithmeticError,
    MemoryError,
    RuntimeError,  # NotImplementedError too: a kind of compression that is none
    SyntaxError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)
"""What numpy raises for a damaged archive."""

_KINDS: dict[str, type] = {
    "backend": str,
    "backend_version": str,
    "precision": str,
    "model": str,
    "files": dict,
    "source": dict,
    "gate": dict,
    "target": dict,
    "profiles": list,
    "precisions": dict,
    "calibration": dict,
    "options": dict,
}


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """engine.json.

    files: SHA-256 of every other file. source: name and SHA-256 of the checkpoint or ONNX file.
    target: what the model file was compiled for; empty for a file that runs anywhere.
    precisions: shares of layers and of arithmetic in each precision. calibration: what int8
    ranges were measured on. options: what was asked of the build, to tell whether it is current.
    gate: verdict (passed, failed, graph-only), inputs (images, golden, synthetic) and thresholds.
    """

    spec: ModelSpec
    backend: str
    backend_version: str
    precision: str
    model: str
    files: dict[str, str]
    source: dict[str, str]
    gate: dict[str, Any]
    target: dict[str, Any] = field(default_factory=dict)
    profiles: list[dict[str, Any]] = field(default_factory=list)
    timing_cache: str | None = None
    precisions: dict[str, Any] = field(default_factory=dict)
    calibration: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    made_by: str = ""
    format: str = FORMAT

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> Manifest:
        """Raise TypeError, KeyError, AttributeError or UserError for what is no manifest."""
        manifest = cls(**{**raw, "spec": ModelSpec.from_dict(raw["spec"])})
        for name, kind in _KINDS.items():
            if not isinstance(getattr(manifest, name), kind):
                raise TypeError(f"{name} is not a {kind.__name__}")
        if not all(isinstance(digest, str) for digest in manifest.files.values()):
            raise TypeError("files holds what is not a digest")
        if not math.isfinite(manifest.gate["min_agreement"]) or "verdict" not in manifest.gate:
            raise TypeError("gate holds no verdict")
        return manifest


def read_manifest(directory: Path) -> Manifest:
    """Raise UserError unless `directory` holds a manifest of this format."""
    path = directory / MANIFEST
    if not path.is_file():
        raise UserError(
            f"{directory} is not an engine directory",
            seen=f"no {MANIFEST} in it",
            hint=REBUILD.format(directory),
        )
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        known = raw["format"] == FORMAT
        if known:
            return Manifest.from_dict(raw)
    except UserError as error:
        raise _damaged(directory, f"{MANIFEST}: {error.reason}") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise _damaged(directory, f"{MANIFEST}: {error}") from error
    raise UserError(
        f"{path} has a format that this version does not know",
        seen=raw["format"],
        expected=FORMAT,
        hint="pip install --upgrade unetrt",
    )


def verify_files(directory: Path, manifest: Manifest) -> None:
    """Raise UserError unless every file has the digest that the manifest states."""
    for name, digest in manifest.files.items():
        path = directory / name
        if Path(name).name != name or not path.is_file():
            raise _damaged(directory, f"{name} is missing")
        found = sha256_from_file(path)
        if found != digest:
            raise _damaged(directory, f"{name} has SHA-256 {found[:12]}…", f"{digest[:12]}…")
    missing = {manifest.model, GOLDEN, GATE} - set(manifest.files)
    if missing:
        raise _damaged(directory, f"no digest for {', '.join(sorted(missing))}")


def read_gate(directory: Path) -> dict[str, Any]:
    """gate.json. Raises UserError when it is no JSON object."""
    try:
        gate = json.loads((directory / GATE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(directory, f"{GATE}: {error}") from error
    if not isinstance(gate, dict):
        raise _damaged(directory, f"{GATE} holds no verdict")
    return gate


def _damaged(directory: Path, seen: str, expected: str | None = None) -> UserError:
    return UserError(
        f"{directory} is not the engine that was built",
        seen=seen,
        expected=expected,
        hint=REBUILD.format(directory),
    )


@dataclass(frozen=True)
class GoldenCase:
    """A network input (h, w, C) and the mask (H, W) that PyTorch gives in fp32.

    Or (planes, H, W), where the network gives probabilities.
    """

    image: U8
    mask: U8

    @property
    def size(self) -> Size:
        return self.mask.shape[-2], self.mask.shape[-1]

    def equal(self, found: U8) -> int:
        """Numbers of a result that are the golden ones; a probability may round the other way."""
        if self.mask.ndim == 2:
            return int(np.count_nonzero(found == self.mask))
        return int(np.count_nonzero(np.abs(found.astype(np.int16) - self.mask) <= 1))


def write_golden(path: Path, cases: list[GoldenCase]) -> None:
    arrays = {}
    for i, case in enumerate(cases):
        arrays[f"image_{i}"], arrays[f"mask_{i}"] = case.image, case.mask
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]


def read_golden(path: Path) -> list[GoldenCase]:
    """Raise UserError unless `path` holds at least one case."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            count = sum(1 for name in stored.files if name.startswith("image_"))
            cases = [GoldenCase(stored[f"image_{i}"], stored[f"mask_{i}"]) for i in range(count)]
    except _ARRAY_ERRORS as error:
        raise _damaged(path.parent, f"{path.name}: {error}") from error
    if not cases or not all(_is_case(case) for case in cases):
        raise _damaged(path.parent, f"{path.name} holds no images and masks")
    return cases


def _is_case(case: GoldenCase) -> bool:
    image, mask = case.image, case.mask
    whole = image.ndim == 3 and mask.ndim in (2, 3) and min(image.size, mask.size) > 0
    return whole and image.dtype == mask.dtype == np.uint8
