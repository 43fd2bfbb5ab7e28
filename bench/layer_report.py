"""The layer tables as text."""

from __future__ import annotations

from collections.abc import Sequence

from .job import RowResult
from .layers import Layer, LayerTable
from .peaks import Peaks
from .result import Row
from .text import markdown_table, number

HEAD = ("layer", "kind", "ran in", "ms a batch", "share", "GFLOP", "of peak")
LEAST_SHARE = 0.01
"""Layers below it are one line together; the JSON report holds them all."""


def layer_lines(rows: Sequence[Row], peaks: Peaks) -> list[str]:
    """For each engine whose profiler ran: its layers, and their sum against engine only."""
    lines: list[str] = []
    for row in rows:
        if row.result is not None and row.result.layers is not None:
            table = row.result.layers
            lines += [f"{row.name}: layer by layer, from {table.profiler}", ""]
            lines += markdown_table([HEAD, *_cells(table, peaks.of_device(row.result.on_gpu))])
            lines += ["", _sum(table, row.result), ""]
    return lines[:-1]


def _cells(table: LayerTable, peaks: Peaks) -> list[tuple[str, ...]]:
    total = table.total
    shown = [layer for layer in table.layers if layer.ms >= LEAST_SHARE * total]
    rest = [layer for layer in table.layers if layer.ms < LEAST_SHARE * total]
    cells = [_layer_cells(layer, total, peaks) for layer in shown]
    if rest:
        spent = sum(layer.ms for layer in rest)
        name = f"{len(rest)} others, each below {LEAST_SHARE:.0%}"
        flops = sum(layer.flops or 0 for layer in rest)
        cells.append((name, "", "", number(spent), f"{spent / total:.1%}", _giga(flops), ""))
    return cells


def _layer_cells(layer: Layer, total: float, peaks: Peaks) -> tuple[str, ...]:
    achieved = layer.achieved
    return (
        f"{layer.block} ({layer.name})" if layer.block else layer.name,
        layer.kind,
        layer.precision,
        number(layer.ms),
        f"{layer.ms / total:.1%}",
        _giga(layer.flops or 0),
        peaks.share(achieved, layer.precision).text if achieved else "",
    )


def _giga(flops: int) -> str:
    return number(flops / 1e9) if flops else ""


def _sum(table: LayerTable, result: RowResult) -> str:
    batch = 1000 * result.batch / result.engine_rate
    convolutions = [layer for layer in table.layers if layer.flops]
    share = sum(layer.ms for layer in convolutions) / table.total if table.total else 0.0
    told = (
        f"its {len(convolutions)} convolutions take {share:.0%} of it"
        if convolutions
        else "its convolutions are not the network's one by one, so that no arithmetic is shown"
    )
    streams = f", {table.streams} streams at once" if table.streams > 1 else ""
    return (
        f"The layers take {number(table.total)} ms of a batch of {table.batch}{streams}; {told}. A "
        f"batch took {number(table.wall)} ms under the profiler ({table.runs} runs) and "
        f"{number(batch)} ms engine only: the sum is {table.total / table.wall:.0%} and "
        f"{table.total / batch:.0%} of it"
    )
