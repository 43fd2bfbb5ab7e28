"""What a bench warns of: a machine that was not quiet, and numbers that cannot be right."""

from __future__ import annotations

from .job import RowResult
from .machine import BUSY, LOADED, NOISY
from .measure import spread
from .peaks import ABOVE, Peaks
from .result import Bench
from .stages import LOOSE
from .text import number
from .throttle import throttle_warning


def warnings(bench: Bench) -> list[str]:
    """What says that the machine was not quiet, and what could not be measured."""
    found = [*bench.notes, *_peak_warnings(bench.peaks)]
    load = bench.load_before
    if load is not None and load > LOADED * bench.cores:
        found.append(f"others were running before the bench: load {load}")
    throttled = throttle_warning(bench.machine)
    found += [throttled] if throttled else []
    for row in bench.rows:
        if row.result:
            told = [*_unquiet(row.result), *_impossible(row.result, bench)]
            found += [f"{row.name}: {text}" for text in told]
    return found


def _peak_warnings(peaks: Peaks) -> list[str]:
    found = [f"no measured peak: {peaks.reason}"] if peaks.reason else []
    if peaks.others is not None and peaks.others > BUSY:
        what = "no share of it is told" if peaks.crowd else "shares of it may be too high"
        busy = f"others kept {peaks.others:.0%} of the cores busy while the peak was probed"
        found.append(f"{busy}: {what}")
    return found


def _unquiet(result: RowResult) -> list[str]:
    found = []
    files = [] if result.again else result.files_to_files
    regions = [r for r in (result.engine_only, result.with_copies, files) if r]
    widest = max(map(spread, regions), default=0.0)
    if result.again and spread(result.files_to_files) > NOISY:
        found.append(f"processes differ by ±{spread(result.files_to_files):.0%}, files to files")
    if widest > NOISY:
        found.append(f"repeats differ by ±{widest:.0%}: the machine was not quiet")
    if result.others is not None and result.others > BUSY:
        found.append(f"others kept {result.others:.0%} of the cores busy during files to files")
    if not result.warm_up.stable:
        found.append(f"not stable after {result.warm_up.seconds:.1f} s of warm-up")
    throttled = result.use.throttled if result.use else {}
    for reason, part in throttled.items():
        found.append(f"the GPU was held back by {reason}, {part:.0%} of the time")
    return found


def _impossible(result: RowResult, bench: Bench) -> list[str]:
    """Numbers that contradict one another: what was measured is not what the table says."""
    found = []
    if result.files_rate > (1 + NOISY) * result.fastest_rate:
        why = "the machine was not quiet"
        if result.shapes > 1:
            why += ", or images of other sizes than the commonest are faster"
        rates = f"{number(result.files_rate)} images/s, is above"
        engine = f"the engine's {number(result.fastest_rate)}"
        found.append(f"files to files, {rates} {engine}: {why}")
    if result.stages is not None and abs(result.stages.in_no_step) > LOOSE:
        found.append(
            f"{result.stages.in_no_step:.0%} of the pass whose stages were timed is in no step of "
            "the main thread: the table does not say where that time went"
        )
    reached = result.stages.reached if result.stages is not None else None
    if reached is not None and reached > 1 + NOISY:
        found.append(
            f"the pass whose stages were timed reached {reached:.0%} of what bounds it: the engine "
            "was slower right before and after it, as on a machine that is not quiet"
        )
    return [*found, *_above_the_peak(result, bench)]


def _above_the_peak(result: RowResult, bench: Bench) -> list[str]:
    found = []
    peaks = bench.peaks.of_device(result.on_gpu)
    if bench.peak_share(result).reason == ABOVE:
        found.append("its arithmetic is")
    layers = result.layers.layers if result.layers else ()
    above = [
        layer
        for layer in layers
        if layer.achieved and peaks.share(layer.achieved, layer.precision).reason == ABOVE
    ]
    if above:
        found.append("1 layer is" if len(above) == 1 else f"{len(above)} layers are")
    why = "above the measured peak: it is too low, or fewer products ran than are counted"
    return [f"{what} {why}" for what in found]
