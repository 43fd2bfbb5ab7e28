"""The digest of a model: what says that a job goes on with the network that it began with."""

from __future__ import annotations

from pathlib import Path

from ..contract.errors import UserError
from ..contract.files import sha256_from_file
from ..engine.manifest import MANIFEST


def digest_from_model(path: Path) -> str:
    """SHA-256 of a checkpoint or ONNX file; of an engine's manifest, which names all the others."""
    return sha256_from_file(path / MANIFEST if path.is_dir() else path)


def digest_if_there(path: Path) -> str:
    """digest_from_model; "" where it cannot be read, of which opening it says more."""
    try:
        return digest_from_model(path)
    except OSError:
        return ""


def require_unchanged(model: Path, digest: str) -> None:
    """Raise UserError where a model is another one than before it was opened (digest_if_there)."""
    if digest_if_there(model) != digest:
        raise UserError(
            f"{model} has changed while it was opened",
            seen="another digest than a moment ago, as when a training writes it",
            expected="a file that stays",
            hint="run the same command again, or give it a copy",
        )
