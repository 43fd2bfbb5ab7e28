"""What a job with masks at an address was to do: written whole before its first mask is."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from ..contract.addresses import files_below, store_errors
from ..contract.errors import UserError
from ..contract.files import write_atomically
from .entries import JOURNAL_FOLDER
from .shards import Shard, shard_from_plan
from .stamps import Stamp

Facts = dict[PurePosixPath, dict[str, Any]]
"""As files_below gives them: name below the output folder → what its store says of the file."""


@dataclass(frozen=True)
class Plan:
    """Of the last run of a job, or of one of its shards: image → name of its mask.

    others: images of runs before, which the last one was not given; their masks keep their names.
    failed: image → reason, written when a run ends; a run that was killed leaves none.
    stamps: what images had when their masks were made, written like failed.
    job: see job_from_header. begun: when, by the store's clock (ns); no mask of it is older.
    mark: of the list that a shard's images are a part of. All three are empty in older plans.
    """

    images: dict[str, str] = field(default_factory=dict)
    others: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    stamps: dict[str, Stamp] = field(default_factory=dict)
    job: str = ""
    begun: int = 0
    mark: str = ""

    def followed_by(self, images: dict[str, str], stamps: dict[str, Stamp]) -> Plan:
        """The plan of the next run; stamps: of masks that it takes from the plan of another."""
        taken = set(images.values())
        before = self.others | self.images
        others = {
            image: name
            for image, name in before.items()
            if image not in images and name not in taken
        }
        known = self.stamps | stamps
        kept = {image: known[image] for image in (*images, *others) if image in known}
        return replace(self, images=images, others=others, failed={}, stamps=kept)

    def is_of(self, job: str) -> bool:
        return self.job in ("", job)

    @property
    def owners(self) -> dict[str, str]:
        """Mask → image."""
        return {name: image for image, name in (self.others | self.images).items()}


def job_from_header(header: dict[str, Any]) -> str:
    """A digest of what must match: a plan that has another one is of another job."""
    return hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest()


def plan_path(output_dir: Path, shard: Shard | None) -> Path:
    return output_dir / JOURNAL_FOLDER / (shard or Shard(1, 1)).plan


def read_plan(path: Path) -> Plan:
    """An empty one where there is none. UserError: it cannot be read, or is damaged."""
    try:
        with store_errors():
            found = json.loads(gzip.decompress(path.read_bytes()))
        parts = {name: dict(found.get(name, {})) for name in ("images", "others", "failed")}
        stamps = found.get("stamps", {}).items()
        return Plan(
            **parts,
            stamps={image: (int(size), int(time)) for image, (size, time) in stamps},
            job=str(found.get("job", "")),
            begun=int(found.get("begun", 0)),
            mark=str(found.get("mark", "")),
        )
    except FileNotFoundError:
        return Plan()
    except (OSError, EOFError, ValueError, TypeError, AttributeError) as error:
        raise unreachable(path, error) from error


def write_plan(path: Path, plan: Plan) -> None:
    """Raise UserError where the store takes no file."""
    try:
        write_atomically(path, gzip.compress(json.dumps(vars(plan)).encode(), 5, mtime=0))
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


def masks_of(files: Iterable[Path]) -> set[str]:
    """The masks, as text, that the plans among these files name."""
    plans = [path for path in files if shard_from_plan(path.name) is not None]
    return {f"{path.parent.parent}/{name}" for path in plans for name in read_plan(path).owners}


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
