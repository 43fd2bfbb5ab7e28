"""What a job with masks at an address was to do: written whole before its first mask is."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from ..contract.addresses import files_below
from ..contract.errors import UserError
from ..contract.files import write_atomically
from .shards import JOURNAL_FOLDER, Shard, shard_from_plan

Facts = dict[PurePosixPath, dict[str, Any]]
"""As files_below gives them: name below the output folder → what its store says of the file."""


@dataclass(frozen=True)
class Plan:
    """Of the last run of a job, or of one of its shards: image → name of its mask.

    others: images of runs before, which the last one was not given; their masks keep their names.
    failed: image → reason, written when a run ends; a run that was killed leaves none.
    """

    images: dict[str, str] = field(default_factory=dict)
    others: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def followed_by(self, images: dict[str, str]) -> Plan:
        """The plan of the next run."""
        taken = set(images.values())
        before = self.others | self.images
        others = {
            image: name
            for image, name in before.items()
            if image not in images and name not in taken
        }
        return Plan(images, others)

    @property
    def owners(self) -> dict[str, str]:
        """Mask → image."""
        return {name: image for image, name in (self.others | self.images).items()}


def plan_path(output_dir: Path, shard: Shard | None) -> Path:
    return output_dir / JOURNAL_FOLDER / (shard or Shard(1, 1)).plan


def read_plan(path: Path) -> Plan:
    """An empty one where there is none. UserError: it cannot be read, or is damaged."""
    try:
        found = json.loads(gzip.decompress(path.read_bytes()))
        return Plan(**{name: dict(part) for name, part in found.items()})
    except FileNotFoundError:
        return Plan()
    except (OSError, EOFError, ValueError, TypeError, AttributeError) as error:
        raise unreachable(path, error) from error


def write_plan(path: Path, plan: Plan) -> None:
    """Raise UserError where the store takes no file."""
    try:
        write_atomically(path, gzip.compress(json.dumps(asdict(plan)).encode(), 5, mtime=0))
    except OSError as error:
        raise unreachable(path, error) from error


def plans_below(output_dir: Path) -> Iterator[tuple[Shard, Path]]:
    """Every plan of a folder at an address, without a look at its masks."""
    files = list_files(output_dir / JOURNAL_FOLDER)
    return plans_among({JOURNAL_FOLDER / name: facts for name, facts in files.items()}, output_dir)


def plans_among(files: Facts, output_dir: Path) -> Iterator[tuple[Shard, Path]]:
    for name in sorted(files):
        shard = shard_from_plan(name.name) if str(name.parent) == JOURNAL_FOLDER else None
        if shard is not None:
            yield shard, output_dir / name


def list_files(output_dir: Path) -> Facts:
    """files_below, with its OSError as a UserError."""
    try:
        return files_below(output_dir)
    except FileNotFoundError:  # some stores say so of a folder without files
        return {}
    except OSError as error:
        raise unreachable(output_dir, error) from error


def unreachable(path: object, error: Exception) -> UserError:
    return UserError(
        f"cannot use {path}",
        seen=error,
        expected="an address that this machine may read and write",
        hint="check the name, the region and the credentials of the store",
    )
