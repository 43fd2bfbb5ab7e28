"""The table: the reference loop against every engine, speed and agreement in one row."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from ..contract.files import told_of_masks
from ..contract.spec import ModelSpec
from ..engine.probe import package_version
from ..runtime.inputs import images_below
from ..runtime.stop import interrupted_by_signals
from ..training.checkpoint import read_checkpoint
from .judge import truth_masks
from .machine import describe_bench_machine
from .models import check_device, check_models, image_sizes
from .options import BenchOptions as BenchOptions
from .pass_length import spread_out
from .peak import probe_peaks
from .peaks import Peaks
from .result import Bench
from .rows import (
    UNCALIBRATED,
    baseline_checkpoint,
    check_calibration,
    check_skipped,
    entries_from_checkpoint,
    entries_from_models,
    is_uncalibrated,
)
from .run import Run
from .throttle import ThrottleClock

PACKAGES = {
    "torch": ("torch",),
    "onnxruntime": ("onnxruntime-gpu", "onnxruntime"),
    "openvino": ("openvino",),
    "tensorrt": ("tensorrt-cu13", "tensorrt-cu12", "tensorrt"),
    "tensorrt-rtx": ("tensorrt-rtx-cu13", "tensorrt-rtx-cu12", "tensorrt-rtx"),
}
"""Runtimes by the names that labels have, and what each may be installed as."""


CUT = "the bench was interrupted: what is missing was not measured"


def bench_models(
    models: Sequence[Path],
    options: BenchOptions,
    after_row: Callable[[Bench], None] = lambda bench: None,
) -> Bench:
    """Measure every model in a process of its own. The first checkpoint is the baseline.

    Given nothing but that, build engines from it and measure those, PyTorch's own variants and
    the peers. after_row: is given the bench as far as it has come. Raises UserError without a
    checkpoint or images, and for a device or an engine that cannot be compared.
    """
    machine = describe_bench_machine()  # first: its load is that of others
    throttle = ThrottleClock()
    checkpoint = baseline_checkpoint(models)
    found = images_below(options.images)
    images = spread_out(found, options.limit)
    spec = _spec(checkpoint, options)
    alone = len(models) == 1
    check_device(options.device)
    notes = check_models(models, checkpoint, spec, options.overrides)
    check_skipped(options.skip, alone)
    check_calibration(options.calibration, alone)
    sizes = image_sizes(images, checkpoint, spec, options)
    truth = truth_masks(images, options.images, options.masks, spec)
    with (
        interrupted_by_signals(),
        tempfile.TemporaryDirectory(prefix="unetrt-bench-") as name,
    ):
        run = Run(images, truth, Path(name), options, spec)
        run.notes += [*notes, *filter(None, [told_of_masks(found, options.images)])]
        peaks = probe_peaks(options.device, options.seconds) if options.peaks else Peaks()
        if alone:
            entries = entries_from_checkpoint(
                checkpoint,
                run.folder,
                sizes,
                options.device,
                options.overrides,
                options.skip,
                options.calibration,
            )
            run.notes += [UNCALIBRATED] * is_uncalibrated(entries, options.calibration)
        else:
            entries = entries_from_models(models, checkpoint)
        run.read_files()

        def bench_so_far(cut: bool) -> Bench:
            return Bench(
                rows=tuple(run.all_rows(entries)),
                images=len(images),
                machine={**machine, **throttle.told()},
                versions=_versions(),
                peaks=peaks,
                peers=tuple(run.peers),
                sweep=run.sweep,
                seconds=options.seconds,
                samples=run.samples(),
                notes=(*run.notes, *[CUT] * cut),
                interrupted=cut,
            )

        run.measure(entries, options.peers or alone, lambda: after_row(bench_so_far(cut=True)))
        return bench_so_far(run.interrupted)


def _spec(checkpoint: Path, options: BenchOptions) -> ModelSpec:
    return read_checkpoint(checkpoint).with_overrides(options.overrides).spec


def _versions() -> dict[str, str]:
    return {runtime: package_version(*packages) for runtime, packages in PACKAGES.items()}
