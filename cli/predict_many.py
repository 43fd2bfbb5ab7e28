"""predict past one process: several devices, a cluster, shards, and what all of them have done."""

from __future__ import annotations

import argparse
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from .shared import (
    engine_from_args,
    overrides_from_args,
    place,
    positive,
    printable,
    show_failures,
    write_json,
    wrong,
)

if TYPE_CHECKING:
    from ..runtime.cluster import Cluster
    from ..runtime.devices import Workers
    from ..runtime.merge import Merged
    from ..runtime.predict import Crew, Look
    from ..runtime.shards import Shard

SHOWN = 20

HERE = "here"
"""--ray without an address."""


def add_many_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--devices", metavar="LIST", help="a process each: 0,1 or all (CUDA), or cpu:N")
    add("--ray", nargs="?", const=HERE, metavar="ADDRESS", help="on a Ray cluster (default: here)")
    add("--ray-engines", type=positive, metavar="N", help="engines in it (default: one a GPU)")
    add("--shard", type=shard, metavar="I/N", help="do part I of N, for a job array")
    text = "no images: say what the shards that wrote into these folders have done"
    add("--merge", nargs="+", action="extend", type=place, metavar="DIR", help=text)


def shard(text: str) -> Shard:
    from ..runtime.shards import Shard

    found = re.fullmatch(r"([1-9]\d{0,8})/([1-9]\d{0,8})", text)
    if not found or int(found[1]) > int(found[2]):
        raise wrong(text, "I/N with I from 1 to N, as 3/8")
    return Shard(int(found[1]), int(found[2]))


def check_many_arguments(args: argparse.Namespace) -> None:
    """Raise UserError for what does not go together."""
    from ..contract.errors import UserError

    if args.shard is not None and (args.output_dir is None or args.no_save):
        missing = "no --output-dir" if args.output_dir is None else "--no-save"
        hint = f"--shard {args.shard} --output-dir DIR"
        raise UserError("--shard needs a folder that keeps its journal", seen=missing, hint=hint)
    if args.ray_engines is not None and args.ray is None:
        raise UserError("--ray-engines is of a cluster", seen="no --ray", hint="--ray [ADDRESS]")
    if args.devices is not None and args.ray is not None:
        raise UserError(
            "--devices and --ray exclude each other",
            seen=f"--devices {args.devices} with --ray",
            expected="processes on this machine, or on a cluster",
            hint="leave --devices or --ray out; --ray-engines N   says how many on the cluster",
        )
    many = "--ray" if args.ray is not None else "--devices"
    if args.devices is None and args.ray is None:
        return
    alone = {
        "--device": args.device != "auto" and args.ray is None,
        "--viz": args.viz,
        "--trace": args.trace,
        "--fast-decode": args.fast_decode,
    }
    for flag in (flag for flag, given in alone.items() if given):
        raise UserError(
            f"{flag} goes with one process",
            seen=f"{flag} with {many}",
            hint=f"leave {flag} or {many} out",
        )


@contextmanager
def crew_from_args(
    args: argparse.Namespace, look: Look | None, stop: threading.Event
) -> Iterator[Crew]:
    """Open the model here, on every device of --devices or in --ray; say on stderr what is used."""
    from ..runtime.predict import OneEngine

    if args.devices is None and args.ray is None:
        with engine_from_args(args) as engine:
            yield OneEngine(engine, look)
        return
    with _crew_of_many(args, stop) as crew:
        sys.stderr.write(f"engine: {crew.label} ({crew.opened.why})\n")
        yield crew


def _crew_of_many(args: argparse.Namespace, stop: threading.Event) -> Workers | Cluster:
    from ..runtime.worker import EngineOptions

    options = EngineOptions(
        model=args.model, backend=args.backend, overrides=overrides_from_args(args)
    )
    if args.ray is None:
        from ..runtime.devices import Workers, devices_from_text

        return Workers(options, devices_from_text(args.devices), stop=stop.is_set)
    from ..runtime.cluster import Cluster, ClusterOptions

    address = None if args.ray == HERE else args.ray
    cluster = ClusterOptions(address=address, engines=args.ray_engines, device=args.device)
    return Cluster(options, cluster, stop=stop.is_set)


def merge(args: argparse.Namespace) -> int:
    """Say what is done in the folders of --merge. Exit status 1: something failed or is missing."""
    from ..runtime.merge import merge_journals

    merged = merge_journals(args.merge)
    _show_merged(merged)
    (sys.stderr if str(args.json) == "-" else sys.stdout).write(merged.text + "\n")
    write_json(args.json, merged.to_dict())
    return 0 if merged.complete else 1


def _show_merged(merged: Merged) -> None:
    show_failures([(failure["input"], failure["reason"]) for failure in merged.failures])
    for name in merged.missing_shards[:SHOWN]:
        sys.stderr.write(f"missing: shard {name} has not begun\n")
    for name in merged.missing_images[:SHOWN]:
        sys.stderr.write(f"missing: {printable(name)}\n")
    for found in merged.lists:
        shards = ", ".join(found["shards"][:SHOWN]) + (" …" if len(found["shards"]) > SHOWN else "")
        sys.stderr.write(f"another list: {found['images']} images, of shard {shards}\n")
    for name in merged.twice[:SHOWN]:
        sys.stderr.write(f"in two shards: {printable(name)}\n")
    more = sum(
        max(0, len(found) - SHOWN) for found in (merged.missing_shards, merged.missing_images)
    )
    if more:
        sys.stderr.write(f"… and {more} more missing (--json FILE lists all)\n")
