"""Clocks: warm up until stable, rates of repeats, latencies one batch at a time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

SAMPLE_SECONDS = 0.02
"""Batches shorter than this are timed together: a clock's jitter is not the engine's."""
WINDOW, TOLERANCE = 5, 0.1
WARM_UP_RULE = (
    f"warm-up until the last {WINDOW} samples of at least {SAMPLE_SECONDS * 1000:.0f} ms lie "
    f"within {TOLERANCE:.0%} of their median, at most three times the seconds of a repeat, but "
    f"{WINDOW} samples in any case"
)
FEWEST_LATENCIES = 10


@dataclass(frozen=True, kw_only=True)
class WarmUp:
    """seconds: spent on it. stable: the rule was met before the time was up.

    rate: images a second of the last samples; 0 in reports that do not tell.
    """

    seconds: float
    stable: bool
    rate: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Milliseconds of one batch with none beside it, over `count` batches; slowest: of all."""

    p50: float
    p95: float
    p99: float
    count: int
    slowest: float = 0.0


def warm_up(run: Callable[[], int], seconds: float) -> WarmUp:
    """Call `run` until its rate is stable (WARM_UP_RULE), at most 3 × `seconds`.

    WINDOW samples are taken however long: with fewer, no batch of a slow net is ever stable.
    """
    start = time.perf_counter()
    rates: list[float] = []
    while not (stable := is_stable(rates)) and (
        len(rates) < WINDOW or time.perf_counter() - start < 3 * seconds
    ):
        rates.append(rate(run, SAMPLE_SECONDS))
    took = time.perf_counter() - start
    return WarmUp(seconds=took, stable=stable, rate=statistics.median(rates[-WINDOW:]))


def is_stable(rates: Sequence[float]) -> bool:
    last = rates[-WINDOW:]
    middle = statistics.median(last) if last else 0.0
    return len(last) == WINDOW and all(abs(r - middle) <= TOLERANCE * middle for r in last)


def beside_this_thread() -> float:
    """Seconds that the other threads of the process have computed, those that are gone included."""
    return time.process_time() - time.thread_time()


def rate(run: Callable[[], int], seconds: float) -> float:
    """Images a second of `run`, which returns how many it did, repeated for `seconds`."""
    done, start, elapsed = 0, time.perf_counter(), 0.0
    while elapsed < seconds:
        done += run()
        elapsed = time.perf_counter() - start
    return done / elapsed


def latency(run: Callable[[], int], seconds: float) -> Latency:
    """Of single calls of `run`, for `seconds` and at least FEWEST_LATENCIES calls."""
    times: list[float] = []
    start = time.perf_counter()
    while len(times) < FEWEST_LATENCIES or time.perf_counter() - start < seconds:
        before = time.perf_counter()
        run()
        times.append(time.perf_counter() - before)
    return latency_from_seconds(times)


def latency_from_seconds(times: Sequence[float]) -> Latency:
    """Percentiles by linear interpolation between the samples, as numpy's."""
    ordered = sorted(times)
    p50, p95, p99 = (1000 * _percentile(ordered, share) for share in (0.5, 0.95, 0.99))
    return Latency(p50=p50, p95=p95, p99=p99, count=len(times), slowest=1000 * ordered[-1])


def _percentile(ordered: Sequence[float], share: float) -> float:
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def spread(rates: Sequence[float]) -> float:
    """Half the range of the repeats, as a share of their median; 0 for a single one."""
    return (max(rates) - min(rates)) / 2 / statistics.median(rates) if len(rates) > 1 else 0.0
