"""Engine directories: what engine.json says, and the proof that the files are those it names."""

from __future__ import annotations

import hashlib
import json
import math
import struct
import zipfile
import zlib
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from ..contract.errors import UPGRADE_HINT, UserError, as_word
from ..contract.files import hint_of_run, sha256_from_file
from ..contract.spec import ModelSpec
from ..contract.types import U8, Size

FORMAT = "unetrt-engine-1"
MANIFEST, GOLDEN, GATE = "engine.json", "golden.npz", "gate.json"
GRAPH = "model.onnx"
"""In every directory that was made of one, beside the model file where that is another."""
DIGEST = "sha256"
"""The key of a manifest's own digest."""
VERDICTS = ("passed", "failed", "graph-only")
BUILD = "name a model; unetrt build CHECKPOINT -o ENGINE_DIR   makes one in a folder of its own"

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
        """With the digest of all that it says."""
        return signed_json(asdict(self))

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> Manifest:
        """Raise TypeError, KeyError, AttributeError or UserError for what is no manifest."""
        content = {name: value for name, value in raw.items() if name != DIGEST}
        manifest = cls(**{**content, "spec": ModelSpec.from_dict(raw["spec"])})
        for name, kind in _KINDS.items():
            if not isinstance(getattr(manifest, name), kind):
                raise TypeError(f"{name} is not a {kind.__name__}")
        if not all(isinstance(digest, str) for digest in manifest.files.values()):
            raise TypeError("files holds what is not a digest")
        _check_gate(manifest.gate)
        if not all(_is_profile(profile) for profile in manifest.profiles):
            raise TypeError("profiles hold what is no profile")
        return manifest


def _check_gate(gate: dict[str, Any]) -> None:
    bounds = [gate["min_agreement"]]
    bounds += [gate.get(name, 1.0) for name in ("golden_agreement", "golden_level_error")]
    # type(), not isinstance(): to Python, True is an integer.
    if not all(type(bound) in (float, int) and math.isfinite(bound) for bound in bounds):
        raise TypeError("gate holds a bound that is no number")
    if gate["verdict"] not in VERDICTS:
        raise TypeError("gate holds no verdict")


def _is_profile(profile: Any) -> bool:
    """(least, best, most) shapes of both inputs."""
    return isinstance(profile, dict) and all(
        isinstance(profile.get(name), list)
        and len(profile[name]) == 3
        and all(_is_shape(shape, sides) for shape in profile[name])
        for name, sides in (("image", 4), ("size_like", 2))
    )


def _is_shape(shape: Any, sides: int) -> bool:
    return (
        isinstance(shape, list)
        and len(shape) == sides
        and all(type(side) is int and side > 0 for side in shape)
    )


def signed_json(content: dict[str, Any]) -> str:
    """What engine.json holds: the content and its digest."""
    return json.dumps({**content, DIGEST: _digest(content)}, indent=2) + "\n"


def _digest(content: dict[str, Any]) -> str:
    """SHA-256 of what is said, however it is laid out; a digest of before does not count."""
    said = {name: value for name, value in content.items() if name != DIGEST}
    text = json.dumps(said, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def rebuild_hint(directory: Path) -> str:
    return f"unetrt build CHECKPOINT -o {as_word(directory)} --rebuild   builds it again"


def read_manifest(directory: Path) -> Manifest:
    """Raise UserError unless `directory` holds a manifest of this format."""
    path = directory / MANIFEST
    if not path.is_file():
        if hint := hint_of_run(directory):
            raise UserError(
                f"{directory} is not an engine directory",
                seen="the folder of a training",
                expected="a model",
                hint=hint,
            )
        other = "a file" if directory.exists() else "no such folder"
        raise UserError(
            f"{directory} is not an engine directory",
            seen=f"no {MANIFEST} in it" if directory.is_dir() else other,
            hint=rebuild_hint(directory) if is_part_of_engine(directory) else BUILD,
        )
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        known = raw["format"] == FORMAT
        if known:
            _check_digest(raw)
            return Manifest.from_dict(raw)
    except UserError as error:
        raise _damaged(directory, f"{MANIFEST}: {error.reason}") from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise _damaged(directory, f"{MANIFEST}: {error}") from error
    raise UserError(
        f"{path} has a format that this version does not know",
        seen=raw["format"],
        expected=FORMAT,
        hint=UPGRADE_HINT,
    )


def is_part_of_engine(directory: Path) -> bool:
    """Whether it holds what nobody else calls a file, as a copy that was cut short does."""
    return any((directory / name).is_file() for name in (GOLDEN, GATE))


def _check_digest(raw: dict[str, Any]) -> None:
    """Raise UserError unless the manifest still says what it said when it was written."""
    if DIGEST not in raw:
        raise UserError(
            f"{MANIFEST} holds no digest of itself",
            seen=f"made by {raw.get('made_by') or 'an older unetrt'}",
        )
    found = _digest(raw)
    if raw[DIGEST] != found:
        raise UserError("it was changed", seen=f"SHA-256 {found[:12]}…, not the one it states")


def verify_files(directory: Path, manifest: Manifest) -> None:
    """Raise UserError unless every file has the digest that the manifest states.

    And unless the graph that lies there says the same of itself.
    """
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
    if (directory / GRAPH).is_file():
        _check_graph(directory, manifest)


def _check_graph(directory: Path, manifest: Manifest) -> None:
    """Raise UserError where the graph was made with another spec or precision."""
    from .onnxfile import metadata_from_onnx

    spec, precision, _ = metadata_from_onnx(directory / GRAPH)
    wanted = graph_precision(manifest.backend, manifest.precision)
    names = [field.name for field in fields(spec)]
    others = [name for name in names if getattr(spec, name) != getattr(manifest.spec, name)]
    others += ["precision"] if precision != wanted else []
    if others:
        raise _damaged(directory, f"{MANIFEST} and {GRAPH} differ in {', '.join(others)}")


def graph_precision(backend: str, precision: str) -> str:
    """Of the graph that an engine is made of: OpenVINO computes an fp32 graph in bf16."""
    return "fp32" if (backend, precision) == ("openvino", "bf16") else precision


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
        hint=rebuild_hint(directory),
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
