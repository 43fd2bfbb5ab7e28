"""Engine directories → a Triton model repository: whole, or not at all."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..contract.errors import UserError, as_word
from ..contract.files import atomic_path, sha256_from_file
from ..contract.log import log
from ..engine.manifest import GOLDEN, MANIFEST, Manifest, read_golden, read_manifest, verify_files
from ..engine.probe import package_version
from .triton_config import (
    KINDS,
    TritonOptions,
    batcher_config,
    engine_config,
    max_batch,
    text_from_config,
)

FORMAT = "unetrt-triton-1"
RECORD = "unetrt.json"
"""Says what was written; Triton looks at folders alone and passes it over."""

VERSION = "1"
SUFFIX = "_engine"
BATCHER = Path(__file__).with_name("triton_batcher.py")


@dataclass(frozen=True)
class Served:
    """An engine directory and what Triton calls it. max_batch: images merged into one run."""

    name: str
    directory: Path
    manifest: Manifest
    max_batch: int


@dataclass(frozen=True)
class Repository:
    """What was written. reused: it was there already, made of the same by the same."""

    path: Path
    models: tuple[Served, ...]
    reused: bool = False


def write_repository(
    directories: Sequence[Path], path: Path, options: TritonOptions, *, replace: bool = False
) -> Repository:
    """Two models an engine: NAME, which batches requests, and NAME_engine, the file as it is.

    Raises UserError for a damaged engine, for one that Triton cannot run, and for a folder that
    holds anything else; a repository of ours is written over only by `replace`. Where `path` is a
    link, that is its target: a server may read it by its own name.
    """
    models = _served(directories, options)
    request = _request(models, options)
    found = _record(path)
    if found is not None and found["request"] == request and _unchanged(path, found):
        return Repository(path, models, reused=True)
    _check_target(path, found, replace)
    place = Path(os.path.realpath(path)) if path.is_symlink() else path
    place.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(place) as temporary:
        for served in models:
            _write_models(temporary, served, options)
        record = {"format": FORMAT, "request": request, "files": _digests(temporary)}
        (temporary / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return Repository(path, models)


def _served(directories: Sequence[Path], options: TritonOptions) -> tuple[Served, ...]:
    models = []
    for directory in directories:
        manifest = read_manifest(directory)
        verify_files(directory, manifest)
        _check_backend(directory, manifest)
        if manifest.gate["verdict"] != "passed":
            log.warning("%s: the verdict of its gate is %s", directory, manifest.gate["verdict"])
        batch = max_batch(manifest, options)
        models.append(Served(_model_name(directory), directory, manifest, batch))
    names = [name for m in models for name in (m.name, m.name + SUFFIX)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(
            "two engines would be served under one name",
            seen=", ".join(twice),
            expected="engine directories whose names differ",
            hint="mv ENGINE_DIR OTHER_NAME",
        )
    return tuple(models)


def _check_backend(directory: Path, manifest: Manifest) -> None:
    if manifest.spec.result != "mask":
        raise UserError(
            f"{directory} gives probabilities: the batcher and its client know masks alone",
            seen=f"an engine built with --result {manifest.spec.result}",
            expected="an engine that gives masks",
            hint="unetrt build CHECKPOINT -o ENGINE_DIR   makes one",
        )
    if manifest.backend not in KINDS:
        # An engine of PyTorch is made where there is no TensorRT.
        instead = "onnxruntime" if manifest.backend == "torch" else "tensorrt"
        raise UserError(
            f"Triton has no backend for {directory}",
            seen=manifest.backend,
            expected=", ".join(KINDS),
            hint=f"unetrt build CHECKPOINT -o ENGINE_DIR --backend {instead}",
        )


def _model_name(directory: Path) -> str:
    """The folder's own name: it is part of the addresses that clients use."""
    name = directory.resolve().name
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise UserError(
            f"{name!r} is no name for a model in Triton",
            seen=directory,
            expected="letters, digits, '_', '.' and '-'",
            hint="mv ENGINE_DIR OTHER_NAME",
        )
    return name


def _request(models: Sequence[Served], options: TritonOptions) -> dict[str, Any]:
    """All that the files depend on, as JSON holds it."""
    return {
        "made_by": f"unetrt {package_version('unetrt')}",
        "options": asdict(options),
        "engines": {m.name: sha256_from_file(m.directory / MANIFEST) for m in models},
        "batcher": sha256_from_file(BATCHER),
    }


def _record(path: Path) -> dict[str, Any] | None:
    """The record of a repository of ours, or None."""
    try:
        record = json.loads((path / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    whole = isinstance(record, dict) and isinstance(record.get("files"), dict)
    return record if whole and record.get("format") == FORMAT and "request" in record else None


def _unchanged(path: Path, record: dict[str, Any]) -> bool:
    return bool(_digests(path) == record["files"])


def _digests(path: Path) -> dict[str, str]:
    files = sorted(p for p in path.rglob("*") if p.is_file() and p != path / RECORD)
    return {p.relative_to(path).as_posix(): sha256_from_file(p) for p in files}


def _check_target(path: Path, record: dict[str, Any] | None, replace: bool) -> None:
    """Nothing but a repository of ours is ever replaced, and that only when it is asked."""
    if path.name in ("", "..") or (path.exists() and not path.is_dir()):
        raise UserError(f"{path} is no place for a model repository", expected="a new folder")
    names = sorted(p.name for p in path.iterdir()) if path.is_dir() else []
    if names and record is None:
        raise UserError(
            f"{path} holds other files",
            seen=", ".join(names[:4]),
            expected="a new folder, or a repository that unetrt triton has written",
        )
    if names and not replace:
        seen = "other engines or options" if _unchanged(path, record or {}) else "files changed"
        raise UserError(
            f"{path} is there already, and would change",
            seen=seen,
            expected="a new folder",
            hint=f"unetrt triton … -o {as_word(path)} --replace",
        )


def _write_models(repository: Path, served: Served, options: TritonOptions) -> None:
    manifest, engine = served.manifest, served.name + SUFFIX
    golden = read_golden(served.directory / GOLDEN)
    direct = engine_config(engine, manifest, golden, options)
    batcher = batcher_config(served.name, engine, manifest, options)
    for config, source, target in (
        (direct, served.directory / manifest.model, manifest.model),
        (batcher, BATCHER, "model.py"),
    ):
        version = repository / config.name / VERSION
        version.mkdir(parents=True)
        shutil.copyfile(source, version / target)
        text = text_from_config(config)
        (repository / config.name / "config.pbtxt").write_text(text, encoding="utf-8")
    _check_copy(repository / engine / VERSION / manifest.model, manifest)


def _check_copy(copy: Path, manifest: Manifest) -> None:
    """The digest is checked again: the file may have changed since it was verified."""
    if sha256_from_file(copy) != manifest.files[manifest.model]:
        raise UserError(f"{manifest.model} changed while it was copied", hint="run it again")
