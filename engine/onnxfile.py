"""ONNX files of ours: the spec in their metadata. Reads protobuf only, runs nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..contract.errors import UserError
from ..contract.files import require_file
from ..contract.modules import import_module
from ..contract.spec import ModelSpec

SPEC_KEY, PRECISION_KEY, SOURCE_KEY = "unetrt.spec", "unetrt.precision", "unetrt.source"
EXPORT_HINT = "unetrt export CHECKPOINT -o model.onnx   writes one"


def read_onnx(path: Path) -> Any:
    """The onnx.ModelProto. Raises UserError when the file is not ONNX."""
    require_file(path, "ONNX model", EXPORT_HINT)
    onnx = import_module("onnx")
    decode_error = import_module("google.protobuf.message").DecodeError
    try:
        return onnx.load(str(path))
    except (decode_error, OSError, ValueError) as error:
        raise UserError(f"{path} is not an ONNX file", seen=error, hint=EXPORT_HINT) from error


def metadata_from_onnx(path: Path) -> tuple[ModelSpec, str, str]:
    """(spec, precision, SHA-256 of the checkpoint). Raises UserError without our metadata."""
    entries = {p.key: p.value for p in read_onnx(path).metadata_props}
    if SPEC_KEY not in entries:
        raise UserError(
            f"{path} does not say how its images and masks are made",
            seen=f"metadata: {', '.join(entries) or 'none'}",
            expected=SPEC_KEY,
            hint=EXPORT_HINT,
        )
    spec = ModelSpec.from_json(entries[SPEC_KEY])
    return spec, entries.get(PRECISION_KEY, "fp32"), entries.get(SOURCE_KEY, "")
