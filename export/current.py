"""Whether an engine directory is what a build would make again: then it is not built twice."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ..contract.errors import UserError
from ..contract.files import folders_below
from ..engine.manifest import MANIFEST, Manifest, read_gate, read_manifest, verify_files
from ..engine.probe import describe_device, package_version
from .gate import GateOptions, GateResult
from .modelfile import backend_version
from .source import Source
from .tensorrt_build import PlanOptions


def request_of_build(
    backend: str, gate: GateOptions, plan: PlanOptions, calibration: Path | None
) -> dict[str, Any]:
    """All that a build depends on beside source, backend and precision, as JSON holds it."""
    has_plan = backend.startswith("tensorrt")
    request = {
        "device": describe_device(backend),
        "plan": asdict(replace(plan, verbose=False)) if has_plan else None,
        "gate": request_of_gate(gate),
        "calibration": _digest(calibration),
    }
    return _as_json(request)


def request_of_gate(gate: GateOptions) -> dict[str, Any]:
    """What the gate was asked, --force aside, as JSON holds it."""
    images = {"images": _digest(gate.images), "masks": _digest(gate.masks)}
    return _as_json(asdict(replace(gate, force=False)) | images)


def _as_json(request: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(request, default=str))
    return found


def _digest(folder: Path | None) -> str | None:
    """Names, sizes and times of a folder's files: a changed picture is another request.

    Where the folder is reached from, and by which of its names, is none of it.
    """
    if folder is None:
        return None
    found = hashlib.sha256()
    # Through links, as the images themselves are found; who reads them tells of a missing folder.
    below = folders_below(folder) if folder.is_dir() else {}
    for path in sorted(root / name for root, names in below.items() for name in names):
        if path.is_file():
            status = path.stat()
            name = os.fsencode(path.relative_to(folder))
            found.update(name + f"\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return found.hexdigest()


def current_build(
    directory: Path,
    source: Source,
    backend: str,
    precision: str,
    request: dict[str, Any],
    force: bool = False,
) -> tuple[Manifest, GateResult] | None:
    """What `directory` holds, if it is whole and was made by this request.

    And passed its gate, unless `force` publishes it all the same.
    """
    if not (directory / MANIFEST).is_file():
        return None
    try:
        manifest = read_manifest(directory)
        verify_files(directory, manifest)
        gate = GateResult.from_dict(read_gate(directory))
    except (UserError, TypeError, KeyError):
        return None  # damaged: building it again is the remedy
    wanted = (
        source.spec,
        source.digest,
        backend,
        precision,
        backend_version(backend),
        f"unetrt {package_version('unetrt')}",
        request,
    )
    found = (
        manifest.spec,
        manifest.source.get("sha256"),
        manifest.backend,
        manifest.precision,
        manifest.backend_version,
        manifest.made_by,
        manifest.options,
    )
    passed = force or not gate.failures
    return (manifest, gate) if found == wanted and passed else None
