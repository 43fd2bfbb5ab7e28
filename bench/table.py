"""The table: the reference loop against every engine, speed and agreement in one row."""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..contract.errors import UserError
from ..contract.files import image_paths
from ..contract.resize import network_input
from ..contract.spec import ModelSpec, SpecOverrides
from ..contract.types import Size
from ..engine.probe import package_version
from ..training.checkpoint import read_checkpoint
from .job import RowJob, RowResult, result_from_dict
from .judge import Judgement, judge_masks, truth_masks, verdict
from .machine import describe_bench_machine
from .peak import Peaks, probe_peaks
from .peers import Peer, measure_peer
from .process import answer_from_process
from .result import Bench, Row, judged_row
from .rows import (
    Entry,
    baseline_checkpoint,
    build_command,
    entries_from_checkpoint,
    entries_from_models,
)
from .samples import Samples, read_samples
from .sweep import Sweep, SweepJob, sweep_model


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """limit: images taken from the folder. seconds, repeats: of every engine-only measurement.

    masks: the truth, for mIoU. peers: also run the makers' benchmarks. sweep: batches and slots
    of the fastest engine, and sizes (H, W) of images; none takes half and twice those of most.
    row_timeout: seconds after which a row is given up. samples: images whose masks are kept for
    the report. peaks: probe what the device can do at most. layers: run the engines' profilers.
    """

    images: Path
    masks: Path | None = None
    limit: int = 64
    seconds: float = 3.0
    repeats: int = 3
    batch: int | None = None
    device: str = "auto"
    scale: float | None = None
    peers: bool = False
    sweep: bool = False
    sizes: tuple[Size, ...] = ()
    row_timeout: float = 1800.0
    samples: int = 0
    peaks: bool = True
    layers: bool = False


def bench_models(models: Sequence[Path], options: BenchOptions) -> Bench:
    """Measure every model in a process of its own. The first checkpoint is the baseline.

    Given nothing but that, build engines from it and measure those, PyTorch's own variants and
    the peers. Raises UserError without a checkpoint or images.
    """
    machine = describe_bench_machine()  # first: its load is that of others
    checkpoint = baseline_checkpoint(models)
    images = image_paths(options.images)[: options.limit]
    truth = truth_masks(images, options.images, options.masks)
    alone = len(models) == 1
    with tempfile.TemporaryDirectory(prefix="unetrt-bench-") as name:
        run = _Run(images, truth, Path(name), options, _spec(checkpoint, options))
        peaks = probe_peaks(options.device, options.seconds) if options.peaks else Peaks()
        if alone:
            entries = entries_from_checkpoint(
                checkpoint, run.folder, run.sizes(), options.device, options.scale
            )
        else:
            entries = entries_from_models(models, checkpoint)
        rows, peers = run.measure(entries, options.peers or alone)
        return Bench(
            rows=tuple(rows),
            images=len(images),
            machine=machine,
            versions=_versions(),
            peaks=peaks,
            peers=tuple(peers),
            sweep=_sweep(rows, entries, images, options) if options.sweep else None,
            seconds=options.seconds,
            samples=run.samples(rows),
        )


def _spec(checkpoint: Path, options: BenchOptions) -> ModelSpec:
    overrides = SpecOverrides(scale=options.scale)
    return read_checkpoint(checkpoint).with_overrides(overrides).spec


def _versions() -> dict[str, str]:
    names = ("torch", "onnxruntime", "openvino", "tensorrt", "tensorrt-rtx-cu13")
    return {name: package_version(name, f"{name}-gpu") for name in names}


class _Run:
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

    def measure(self, entries: Sequence[Entry], peers: bool) -> tuple[list[Row], list[Peer]]:
        rows, others = [], []
        for index, entry in enumerate(entries):
            row = self._row(entry, index)
            rows.append(row)
            if index == 0:
                self.baseline = row.judgement
            if peers and row.result is not None and entry.slots is None:
                seconds, repeats = self.options.seconds, self.options.repeats
                peer = measure_peer(entry.name, entry.model, row.result, seconds, repeats)
                others += [peer] if peer else []
        return rows, others

    def sizes(self) -> list[Size]:
        """(H, W) of the images, the most frequent first."""
        found = Counter(network_input(path, self.spec)[1] for path in self.images)
        return [size for size, _ in found.most_common()]

    def outputs(self, index: int) -> list[Path]:
        folder = self.folder / f"masks-{index}"
        folder.mkdir(exist_ok=True)
        return [folder / f"{i}.png" for i in range(len(self.images))]

    def _row(self, entry: Entry, index: int) -> Row:
        """Run the job in a fresh process and compare the mask files that it wrote."""
        if entry.reason:
            return Row(name=entry.name, reason=entry.reason, required=False)
        sys.stderr.write(f"bench: {entry.name}\n")
        job = self._job(entry, self.outputs(index))
        result = run_job(job, self.options.row_timeout)
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
            device=self.options.device,
            images=[str(path) for path in self.images],
            outputs=[str(path) for path in outputs],
            seconds=self.options.seconds,
            repeats=self.options.repeats,
            batch=entry.batch or self.options.batch,
            slots=entry.slots,
            graphs=entry.graphs,
            scale=self.options.scale,
            layers=self.options.layers,
        )

    def samples(self, rows: Sequence[Row]) -> Samples | None:
        """Images with every row's masks, for the report; None when none are asked for."""
        if not self.options.samples:
            return None
        masks = {row.name: self.outputs(i) for i, row in enumerate(rows) if row.judgement}
        return read_samples(self.images, self.truth, masks, self.spec, self.options.samples)


def run_job(job: RowJob, timeout: float) -> RowResult | str:
    """The result of a fresh process, or why there is none."""
    answer = answer_from_process("unetrt.bench.row", job, timeout)
    if isinstance(answer, str):
        return answer
    return answer["error"] if "error" in answer else result_from_dict(answer["result"])


def _sweep(
    rows: Sequence[Row], entries: Sequence[Entry], images: Sequence[Path], options: BenchOptions
) -> Sweep | None:
    """Of the fastest row whose masks are trusted and that `predict` can run too."""
    usable = [
        (row.result.files_rate, entry)
        for row, entry in zip(rows, entries, strict=True)
        if row.trusted and row.result is not None and entry.backend == "auto"
    ]
    if not usable:
        return None
    fastest = max(usable, key=lambda pair: pair[0])[1]
    sys.stderr.write(f"bench: sweep of {fastest.name}\n")
    job = SweepJob(
        model=str(fastest.model),
        device=options.device,
        images=[str(path) for path in images],
        seconds=options.seconds,
        scale=options.scale,
        sizes=options.sizes,
    )
    command = build_command(fastest)
    return sweep_model(fastest.name, job, options.row_timeout, command.line, command.target)
