"""The rows of a bench, one after another: measured, judged, the baseline between, the sweep."""

from __future__ import annotations

import shlex
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..contract.errors import UserError
from ..contract.headers import read_bytes
from ..contract.spec import ModelSpec
from .file_passes import output_folder, remove_aside
from .job import RowJob, RowResult, result_from_dict
from .judge import Judgement, judge_masks, partial_truth, verdict
from .options import BenchOptions
from .pass_length import put_rounds_aside
from .peers import Peer, measure_peer
from .process import answer_from_process
from .result import Row, judged_row
from .rows import Entry, override_flags
from .samples import Samples, read_samples
from .sweep import Sweep, SweepJob, sweep_model

AGAIN = "again"
"""For a row's number: the masks of the baseline's further passes, which nobody reads."""


class Run:
    """The images and the folder of masks that all rows of a bench share."""

    def __init__(
        self,
        images: Sequence[Path],
        truth: Mapping[int, Path],
        folder: Path,
        options: BenchOptions,
        spec: ModelSpec,
    ) -> None:
        self.images, self.truth, self.folder = images, truth, folder
        self.options, self.spec = options, spec
        self.baseline: Judgement | None = None
        self.rows: list[Row] = []
        self.peers: list[Peer] = []
        self.notes = partial_truth(len(truth), len(images))
        self.sweep: Sweep | None = None
        self.interrupted = False
        self._again_failed = False

    def read_files(self) -> None:
        """All of them once: else the first row alone would wait for the disk."""
        for path in self.images:
            read_bytes(path)

    def measure(
        self,
        entries: Sequence[Entry],
        peers: bool,
        after_row: Callable[[], None] = lambda: None,
    ) -> None:
        """Every row, the baseline again between them, the sweep.

        Ctrl-C keeps the rows that are finished. Raises KeyboardInterrupt where none is.
        """
        try:
            turns, due = baseline_turns(entries, self.options.repeats), 0
            for index, entry in enumerate(entries):
                self._add_row(entry, index, peers)
                due = self._measure_baseline_again(entries[0], due + turns[index])
                after_row()
            if self.options.sweep:
                self.sweep = self._swept(entries)
        except KeyboardInterrupt:
            if not self.rows:
                raise
            self.interrupted = True

    def all_rows(self, entries: Sequence[Entry]) -> list[Row]:
        """Those that are measured; the others, of a bench that has not come so far, say so."""
        left = entries[len(self.rows) :]
        missing = (Row(name=e.name, reason=e.reason or "interrupted", required=False) for e in left)
        return [*self.rows, *missing]

    def _add_row(self, entry: Entry, index: int, peers: bool) -> None:
        row = self._row(entry, index)
        self.rows.append(row)
        if index == 0:
            self.baseline = row.judgement
        if peers and row.result is not None and entry.slots is None:
            seconds, repeats = self.options.seconds, self.options.repeats
            peer = measure_peer(entry.name, entry.model, row.result, seconds, repeats)
            self.peers += [peer] if peer else []

    def _measure_baseline_again(self, entry: Entry, times: int) -> int:
        """Passes over the files, each in a process of its own; return how many are still due.

        All are while no other row has a result, none where one has failed. Every speed-up hangs on
        this rate, and a small network in PyTorch runs at one of several speeds, kept for seconds.
        """
        if not any(row.result for row in self.rows[1:]):
            return times
        while times and self.rows[0].result is not None and not self._again_failed:
            times -= 1
            self.rows[0] = replace(self.rows[0], result=self._again(entry, self.rows[0].result))
        return 0

    def _again(self, entry: Entry, first: RowResult) -> RowResult:
        sys.stderr.write(f"bench: {entry.name} once more\n")
        job = replace(
            self._job(entry, self.outputs(AGAIN)),
            repeats=1,
            files_only=True,
            pass_images=first.pass_images or None,
        )
        answer = answer_from_process("unetrt.bench.row", job, self.options.row_timeout)
        passes = answer.get("passes") if isinstance(answer, dict) else None
        if passes is not None:
            return _with_passes(first, passes)
        why = answer["error"] if isinstance(answer, dict) else answer
        self.notes.append(f"{entry.name} was not measured again: {why}")
        self._again_failed = True
        return first

    def outputs(self, index: int | str) -> list[Path]:
        folder = self.folder / f"masks-{index}"
        folder.mkdir(exist_ok=True)
        return [folder / f"{i}.png" for i in range(len(self.images))]

    def _row(self, entry: Entry, index: int) -> Row:
        """Run the job in a fresh process and compare the mask files that it wrote."""
        if entry.reason:
            return Row(name=entry.name, reason=entry.reason, required=entry.failed)
        sys.stderr.write(f"bench: {entry.name}\n")
        job = self._job(entry, self.outputs(index))
        result = run_job(job, self.options.row_timeout)
        put_rounds_aside(output_folder(job))  # of a row that was given up
        remove_aside(self.folder)
        if isinstance(result, str):
            return Row(
                name=entry.name,
                reason=result,
                build_seconds=entry.build_seconds,
                required=entry.required,
            )
        return self._judged(entry, index, result)

    def _judged(self, entry: Entry, index: int, result: RowResult) -> Row:
        row = Row(
            name=entry.name,
            result=result,
            build_seconds=entry.build_seconds,
            required=entry.required,
        )
        try:
            found = judge_masks(self.outputs(index), self.outputs(0), self.spec, self.truth)
        except UserError as error:
            return judged_row(row, reason=f"no speed-up: {error.reason}")
        reason = verdict(found, self.baseline, result.precision)
        return judged_row(row, judgement=found, reason=reason)

    def _job(self, entry: Entry, outputs: Sequence[Path]) -> RowJob:
        return RowJob(
            name=entry.name,
            model=str(entry.model),
            backend=entry.backend,
            device=entry.device or self.options.device,
            images=[str(path) for path in self.images],
            outputs=[str(path) for path in outputs],
            seconds=self.options.seconds,
            repeats=self.options.repeats,
            batch=entry.batch or self.options.batch,
            slots=entry.slots,
            graphs=entry.graphs,
            overrides=self.options.overrides,
            layers=self.options.layers,
            bit_depth=self.options.bit_depth,
            until=time.time() + self.options.row_timeout,
        )

    def samples(self) -> Samples | None:
        """Images with every row's masks, for the report; None when none are asked for."""
        if not self.options.samples:
            return None
        masks = {row.name: self.outputs(i) for i, row in enumerate(self.rows) if row.judgement}
        count, depth = self.options.samples, self.options.bit_depth
        return read_samples(self.images, self.truth, masks, self.spec, count, depth)

    def _swept(self, entries: Sequence[Entry]) -> Sweep | None:
        """Of the fastest row whose masks are trusted and that `predict` can run too."""
        usable = [
            (row.result.files_rate, entry)
            for row, entry in zip(self.rows, entries, strict=True)
            if row.trusted
            and row.result is not None
            and entry.backend == "auto"
            # A step of the waterfall is what no flag of predict asks for.
            and entry.slots is None
            and entry.graphs is None
        ]
        if not usable:
            return None
        fastest = max(usable, key=lambda pair: pair[0])[1]
        sys.stderr.write(f"bench: sweep of {fastest.name}\n")
        swept = sweep_model(fastest.name, self._sweep_job(fastest), self.options.row_timeout)
        return replace(
            swept,
            build=fastest.build,
            target=fastest.target or str(fastest.model),
            flags=predict_flags(
                replace(self.options, device=fastest.device or self.options.device),
                built=bool(fastest.build),
            ),
            images=str(self.options.images),
        )

    def _sweep_job(self, entry: Entry) -> SweepJob:
        return SweepJob(
            model=str(entry.model),
            device=entry.device or self.options.device,
            images=[str(path) for path in self.images],
            seconds=self.options.seconds,
            overrides=self.options.overrides,
            sizes=self.options.sizes,
            fewest=self.options.sweep_batches,
            bit_depth=self.options.bit_depth,
        )


def predict_flags(options: BenchOptions, built: bool) -> str:
    """What `predict` must be told as the bench was; an engine that was built knows the rest."""
    flags = [] if options.device == "auto" else ["--device", options.device]
    flags += [] if built else override_flags(options.overrides)
    flags += [] if options.bit_depth is None else ["--bit-depth", str(options.bit_depth)]
    return shlex.join(flags)


def baseline_turns(entries: Sequence[Entry], count: int) -> Counter[int]:
    """Row → how often the baseline is measured after it: `count` times, spread over what runs."""
    runs = [index for index, entry in enumerate(entries) if index and not entry.reason]
    if not runs:
        return Counter()
    return Counter(runs[-(-len(runs) * turn // count) - 1] for turn in range(1, count + 1))


def _with_passes(result: RowResult, passes: dict[str, Any]) -> RowResult:
    """The baseline with one more process, a rate of each; of all crowds the largest counts."""
    rates = result.files_to_files if result.again else [statistics.median(result.files_to_files)]
    others = [share for share in (result.others, passes["others"]) if share is not None]
    return replace(
        result,
        files_to_files=[*rates, *passes["rates"]],
        again=result.again + len(passes["rates"]),
        others=max(others, default=None),
    )


def run_job(job: RowJob, timeout: float) -> RowResult | str:
    """The result of a fresh process, or why there is none."""
    answer = answer_from_process("unetrt.bench.row", job, timeout)
    if isinstance(answer, str):
        return answer
    return answer["error"] if "error" in answer else result_from_dict(answer["result"])
