"""A job cut into shards that know nothing of each other, as the tasks of a job array do."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

WHOLE_JOURNAL, _SHARD_JOURNAL = "journal.jsonl", "journal-{}-of-{}.jsonl"
_WHOLE_PLAN, _SHARD_PLAN = "plan.json.gz", "plan-{}-of-{}.json.gz"


@dataclass(frozen=True, order=True)
class Shard:
    """Shard `index` of `count`, counted from 1."""

    index: int
    count: int

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    @property
    def journal(self) -> str:
        """The name of its journal."""
        return _SHARD_JOURNAL.format(self.index, self.count)

    @property
    def plan(self) -> str:
        """The name of its plan, where masks are at an address."""
        return _WHOLE_PLAN if self.count == 1 else _SHARD_PLAN.format(self.index, self.count)

    def holds(self, name: str) -> bool:
        """Whether an image whose output has this name belongs to the shard."""
        digest = hashlib.blake2b(os.fsencode(name), digest_size=8).digest()
        return int.from_bytes(digest) % self.count == self.index - 1


def list_mark(names: Sequence[str]) -> str:
    """What a list of images is known by, in whatever order: their number and a digest."""
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(names):
        digest.update(os.fsencode(name) + b"\0")
    return f"{len(names)}-{digest.hexdigest()}"


def shard_from_journal(name: str) -> Shard | None:
    """The shard whose journal is called `name`; None for what is no journal."""
    return _shard_from_name(name, WHOLE_JOURNAL, _SHARD_JOURNAL)


def shard_from_plan(name: str) -> Shard | None:
    """The shard whose plan is called `name`; None for what is no plan."""
    return _shard_from_name(name, _WHOLE_PLAN, _SHARD_PLAN)


def _shard_from_name(name: str, whole: str, part: str) -> Shard | None:
    if name == whole:
        return Shard(1, 1)
    found = re.fullmatch(re.escape(part).replace(r"\{\}", r"(\d+)"), name)
    return Shard(int(found[1]), int(found[2])) if found else None
