"""A bench as text: Markdown tables that are read as well on a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from .class_report import class_lines
from .device_memory import memory_rule
from .gain import gain_of
from .job import RowResult
from .layer_report import layer_lines
from .quiet import warnings as warnings
from .result import Bench, Row
from .stages import StageTable
from .sweep import KNEE, Sweep
from .text import markdown_table, number, rates_text

HEAD = (
    "engine",
    "engine only, images/s",
    "engine with copies, images/s",
    "files to files, images/s",
    "speed-up",
    "agreement",
)
DETAILS = (
    "engine",
    "files to files of the engine",
    "p50 / p95 / p99 of a batch, ms",
    "TFLOP/s",
    "of peak",
    "of matrix products",
    "build / open / first batch, s",
    "model, MB",
    "host MiB",
    "device MiB",
    "power, W (SM clock, MHz)",
    "lowest IoU to PyTorch's",
)
STAGES = ("stage", "where", "seconds", "busy", "computing, s")
SWEPT = "by the host's clock from a batch's start to its masks, copies included, no files"
SWEEP = ("image", "batch", "slots", "images/s", "p50, ms", "p95, ms", "p99, ms", "")


def table_lines(bench: Bench) -> list[str]:
    """Speed, agreement and, where the truth is known, mIoU, a row each; then the peers."""
    truth = any(row.judgement and row.judgement.miou is not None for row in bench.rows)
    head = (*HEAD, "foreground mIoU") if truth else HEAD
    baseline = bench.rows[0]
    cells = [(*_cells(row, bench), *([_miou(row, baseline)] * truth)) for row in bench.rows]
    for peer in bench.peers:
        rate = rates_text(peer.rates) if peer.rates else "not run"
        told = _ratio_to_peer(bench, peer.of, peer.rate) if peer.rates else peer.reason
        cells.append((f"peer: {peer.name}", rate, "", "", told, *[""] * (len(head) - 5)))
    return markdown_table([head, *cells])


def detail_lines(bench: Bench) -> list[str]:
    """Latency, arithmetic, times before the first mask and memory of the rows that ran."""
    ran = [row.result for row in bench.rows if row.result]
    cells = [_details(row, row.result, bench) for row in bench.rows if row.result]
    told = dict.fromkeys(r.memory_by for r in ran if r.device_bytes is not None)
    rules = [line for by in told for line in ("", memory_rule(by))]
    return [*markdown_table([DETAILS, *cells]), *rules]


def fastest_row(bench: Bench) -> Row | None:
    """Files to files, of those with trusted masks; None when only the baseline has them."""
    gains = [(gain.ratio, row) for row in bench.rows[1:] if (gain := gain_of(row, bench))]
    return max(gains, key=lambda pair: pair[0])[1] if gains else None


def stage_lines(rows: Sequence[Row]) -> list[str]:
    """For each engine, where one pass over the files spent its time, and what bounds it."""
    lines: list[str] = []
    for row in rows:
        if row.result is not None and row.result.stages is not None:
            table = row.result.stages
            cells = [
                (s.name, _threads(s.where, s.threads), f"{s.seconds:.3f}", f"{s.busy:.0%}", cpu)
                for s in table.stages
                for cpu in ["" if s.cpu is None else f"{s.cpu:.3f}"]
            ]
            lines += [f"{row.name}: where the time of files to files goes", ""]
            lines += [*markdown_table([STAGES, *cells]), "", _bound(table, row.result.shapes), ""]
    return lines[:-1]


def sweep_lines(sweep: Sweep) -> list[str]:
    """Every point, the knee marked."""
    if sweep.reason:
        return [f"sweep of {sweep.model}: {sweep.reason}"]
    cells = []
    for p in sweep.points:
        times = (number(t) for t in (p.latency.p50, p.latency.p95, p.latency.p99))
        mark = "← knee" if p == sweep.knee(p.size) else ""
        size = f"{p.size[0]}×{p.size[1]}"
        cells.append((size, str(p.batch), str(p.slots), number(p.rate), *times, mark))
    refused = [f"{size} does not run: {reason}" for size, reason in sweep.refused.items()]
    rule = f"knee: the fewest images in flight that reach {KNEE:.0%} of its size's best throughput"
    lines = [f"sweep of {sweep.model}, {SWEPT}; {rule}", "", *markdown_table([SWEEP, *cells])]
    return [*lines, "", *refused] if refused else lines


def context_lines(bench: Bench) -> list[str]:
    """What was measured, on what, and what the times leave out; warnings last."""
    size = next((r.result.input_size for r in bench.rows if r.result), (0, 0))
    machine = "; ".join(f"{key} {value}" for key, value in bench.machine.items())
    versions = ", ".join(f"{key} {value}" for key, value in bench.versions.items() if value)
    peaks, matrices = (
        "; ".join(f"{p.precision} {number(p.ops / 1e12)} Tops/s ({p.by})" for p in found)
        for found in (bench.peaks.products, bench.peaks.matrices)
    )
    lines = [
        f"{bench.images} images, network input {size[0]}×{size[1]}; median of repeats ± half their "
        "range; each row in a process of its own; speed-up: files to files, and in brackets the "
        "range that the passes of both rows allow",
        *_baseline_lines(bench.rows[0]),
        *_size_lines(bench),
        *_pass_lines(bench),
        *(f"{name}: {text}" for name, text in bench.regions.items()),
        bench.warm_up,
        f"machine: {machine}; {versions}",
    ]
    if peaks:
        copy = f"copy {number(bench.peaks.copy / 1e9)} GB/s"
        where = "the GPU" if bench.peaks.on_gpu else "the processor"
        lines.append(f"measured peak of {where}: {peaks}; {copy}")
    if matrices:
        lines.append(f"of products of matrices alone: {matrices}")
    return [*lines, *(f"warning: {text}" for text in warnings(bench))]


def _baseline_lines(row: Row) -> list[str]:
    """That the rate which every speed-up hangs on was taken in several processes."""
    if row.result is None or not row.result.again:
        return []
    return [
        f"{row.name}: files to files in {len(row.result.files_to_files)} processes, before the "
        "other rows (the median of its passes), between and after them; the median is of the "
        "processes"
    ]


def _pass_lines(bench: Bench) -> list[str]:
    """Of the rows whose passes were longer or shorter than the list of images."""
    found = {row.name: row.result.pass_images for row in bench.rows if row.result}
    told = [f"{name} {count}" for name, count in found.items() if count not in (0, bench.images)]
    if not told:
        return []
    return [
        f"images of a pass of files to files, where not all {bench.images} once: " + ", ".join(told)
    ]


def _size_lines(bench: Bench) -> list[str]:
    """Where the engine's own numbers are of some of the images alone."""
    shapes = max((row.result.shapes for row in bench.rows if row.result), default=1)
    if shapes == 1:
        return []
    return [
        f"the images are of {shapes} sizes: engine only, with copies and latency are of the "
        "commonest alone, files to files is of all; neither is told as a share of the other"
    ]


def report_lines(bench: Bench, command: str) -> list[str]:
    """The whole report as Markdown."""
    lines = [f"`{command}`", "", *table_lines(bench), "", *detail_lines(bench), ""]
    lines += [*class_lines(bench.rows), "", *stage_lines(bench.rows), ""]
    layers = layer_lines(bench.rows, bench.peaks)
    lines += [*layers, ""] if layers else []
    if bench.sweep is not None:
        lines += [*sweep_lines(bench.sweep), ""]
    lines += [*bench.slo.lines, ""] if bench.slo else []
    return [*lines, *(f"- {line}" for line in context_lines(bench))]


def _cells(row: Row, bench: Bench) -> tuple[str, ...]:
    if row.result is None:
        return (row.name, "not run", "", row.reason, "", "")
    gain = gain_of(row, bench)
    return (
        f"{row.name}: {row.result.label}" if row.name not in row.result.label else row.result.label,
        rates_text(row.result.engine_only) if row.result.engine_only else "not measured",
        copies_text(row.result),
        rates_text(row.result.files_to_files) + _single(row.result.files_to_files),
        row.reason if gain is None else gain.text,
        "" if row.agreement is None else f"{row.agreement:.4%}",
    )


def copies_text(result: RowResult) -> str:
    """A CPU copies to no device: what stands at engine only is not said twice."""
    return rates_text(result.with_copies) if result.on_gpu else "–"


def _single(passes: Sequence[float]) -> str:
    """A rate without a spread is not one with none."""
    return " (1 pass)" if len(passes) == 1 else ""


def _miou(row: Row, baseline: Row) -> str:
    mine, theirs = (r.judgement.miou if r.judgement else None for r in (row, baseline))
    if mine is None:
        return ""
    return f"{mine:.4f}" if theirs is None else f"{mine:.4f} ({mine - theirs:+.4f})"


def _ratio_to_peer(bench: Bench, name: str, rate: float) -> str:
    ours = next(row.result for row in bench.rows if row.name == name)
    return f"ours is {ours.fastest_rate / rate:.2f} of it" if ours else ""


def _details(row: Row, result: RowResult, bench: Bench) -> tuple[str, ...]:
    latency, matrices = result.latency, bench.matrix_share(result)
    before = [row.build_seconds, result.open_seconds, result.first_seconds]
    ious = [iou for iou in row.judgement.iou.values() if iou is not None] if row.judgement else []
    return (
        row.name,
        result.share_text,
        f"{number(latency.p50)} / {number(latency.p95)} / {number(latency.p99)} ({latency.count} × "
        f"batch {result.batch})",
        number(result.achieved / 1e12),
        bench.peak_share(result).text,
        "" if matrices is None else f"{matrices:.0%}",
        " / ".join("–" if s is None else f"{s:.2f}" for s in before),
        number(result.model_bytes / 1e6) if result.model_bytes else "",
        f"{result.host_bytes / 2**20:.0f}",
        "" if result.device_bytes is None else f"{result.device_bytes / 2**20:.0f}",
        _power(result),
        f"{min(ious):.4f}" if ious else "",
    )


def _power(result: RowResult) -> str:
    """Mean and most; empty on a CPU, the reason on a GPU that NVML does not tell of."""
    use = result.use
    if use is None or use.watts is None:
        return result.use_reason
    clocks = f" ({use.sm_mhz[0]} to {use.sm_mhz[1]})" if use.sm_mhz else ""
    return f"{use.watts[0]:.0f}, at most {use.watts[1]:.0f}{clocks}"


def _threads(where: str, threads: int) -> str:
    return f"{threads} {where}" if where.endswith("threads") else where


def _bound(table: StageTable, shapes: int) -> str:
    shared = ""
    if table.shared_bound is not None:
        shared = f", with the other threads on its cores {number(table.shared_bound)}"
    told = (
        f"{table.images} images in {table.wall:.3f} s, {number(table.images / table.wall)} "
        f"images/s; {table.in_no_step:.1%} of it is in no step of the main thread. Bottleneck: "
        f"{table.bottleneck}"
    )
    if table.bound is not None:
        told += f"; alone it allows {number(table.bound)} images/s{shared}; the pass reached "
        told += f"{table.reached:.1%} of that"
    if shapes == 1 and table.cores is not None and table.cores_alone is not None:
        told += f". The engine's threads had {table.cores:.1%} of the cores' time, alone "
        told += f"{table.cores_alone:.1%}"
    if shapes > 1:
        return f"{told}. The engine's time is not known: the images are of several sizes"
    return (
        f"{told}. The engine's time is its images over its rate with copies right before and "
        "after the pass"
    )
