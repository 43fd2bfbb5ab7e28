"""Images → masks at the speed of the engine: load in threads, batch by size, slots in flight."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Generic, TypeVar

from ..contract.closing import Closing
from ..contract.cores import usable_cores
from ..contract.errors import DeviceMemoryError, ImageError, UserError
from ..contract.tiles import Tile
from ..contract.types import NO_CLASS, U8, Size
from ..engine.base import Engine, Slot
from .buckets import Found, as_they_lie
from .budget import Budget
from .cutter import Cutter
from .fill import Fill
from .fit import MOST_UNFIT, Fit, forget_frames, refuse_batch
from .lending import Loan, Outputs
from .loading import MOST_AHEAD, Loading
from .loading import Loaded as Loaded
from .pages import Key, Pages
from .pipeline_options import PipelineOptions as PipelineOptions
from .slots import Slots
from .threads import cv2_without_threads
from .waiting import Bin, Waiting, key_of, whole_key
from .writing import Result as Result
from .writing import Writing

T = TypeVar("T")

NOT_FINITE = "the network's output is not finite"


def run_pipeline(
    engine: Engine,
    tasks: Iterable[T],
    load: Callable[[T], Loaded],
    consume: Callable[[T, U8], None],
    options: PipelineOptions | None = None,
    stop: Callable[[], bool] = lambda: False,
    lend: bool = False,
) -> Iterator[Result[T]]:
    """Yield one Result a task, in no fixed order; memory does not grow with their number.

    load and consume(task, mask (H, W)) run in threads: their ImageError costs that task alone,
    anything else that they raise ends the run. lend: consume keeps no mask when it returns: others
    come where it lay. Once stop() is true, what runs on the engine is finished and written, and
    what is only loaded is dropped. When the caller stops early, nothing new is started and what is
    in flight is dropped. Where the device has no memory for a batch, half of it is tried from then
    on; an image for which the smallest is too large is cut into tiles, and fails where it cannot
    be. DeviceMemoryError when none has ever fitted.
    """
    chosen = options or PipelineOptions()
    with cv2_without_threads(), Pipeline(engine, load, consume, chosen, stop, lend) as pipeline:
        yield from pipeline.run(iter(tasks))


@dataclass
class _Flight(Generic[T]):
    """A batch on the engine, of tasks and of tiles of them.

    copied: their images lie in the slot's own memory, and not where they were loaded.
    """

    slot: Slot
    found: list[Found[T | Tile[T]]]
    key: Key
    batch: int
    number: int
    row: int
    started: int = 0
    copied: bool = False


class Pipeline(Closing, Generic[T]):
    """The queues between the stages; every one is bounded. Its slots serve one run after another.

    See run_pipeline.
    """

    def __init__(
        self,
        engine: Engine,
        load: Callable[[T], Loaded],
        consume: Callable[[T, U8], None],
        options: PipelineOptions,
        stop: Callable[[], bool],
        lend: bool = False,
    ) -> None:
        self.options, self.stop = options, stop
        self.engine, self.trace = engine, options.trace
        engine.timed = options.trace.of_device
        most, count = options.batch or engine.most_batch, options.slots or engine.slots
        spare = 0 if options.slots or options.single else engine.spare_slots
        self.fit = Fit(most, 1 if options.single else count, engine.min_batch, spare)
        self.most_waiting = max(options.waiting, most)
        self.pages, self.budget = Pages(engine, options.memory), Budget(options.memory)
        self.outputs = Outputs(engine, options.memory, lend and not options.single)
        threads = options.load_threads or usable_cores()
        self.loading = Loading(load, threads, self.budget, self.pages, options.trace)
        self.writing = Writing(consume, options.write_threads, options.memory, options.trace)
        self.slots = Slots(engine, self.fit)
        batch = options.batch or engine.batch
        self._look_ahead(batch)
        cutter = Cutter(engine, options.tile, batch, options.memory)
        self.waiting: Waiting[T] = Waiting(cutter, self.budget, self.pages)
        self.buckets = self.waiting.buckets
        self.unfit: list[Result[T]] = []
        self.flying: deque[_Flight[T]] = deque()
        self.numbers, self.fill = itertools.count(), Fill()

    def run(self, tasks: Iterator[T]) -> Iterator[Result[T]]:
        while self.loading.ask(tasks) and not self.stop():
            asked = self.loading.next()
            try:
                found, size = self.trace.waited("wait for an image", asked.future)
            except ImageError as error:
                yield Result(asked.task, error)
            else:
                yield from self._bucket(found, size)
        while self.flying or (self.buckets.count and not self.stop()):
            for key in {key: None for key, _ in self.buckets.keys}:
                yield from self._empty(key)
            while self.flying:
                yield from self._land()
        yield from self.writing.results()
        self.fill.tell(self.engine.min_batch)
        if self.unfit and self.fit.error and not self.stop():
            raise self.fit.error

    def _look_ahead(self, batch: int) -> None:
        """Load as many images as keep all slots, of so many each, and all threads busy."""
        ahead = 2 * self.loading.threads + min(batch * self.fit.count, MOST_AHEAD)
        self.loading.ahead = ahead
        # Those in flight, those that are loaded meanwhile, and one that begins before one is full.
        self.pages.most = self.fit.count + -(-ahead // batch) + 1

    def _batch(self, key: Key) -> int:
        """Of a full slot."""
        return min(self.fit.batch, self.options.batch or self.engine.batch_for(key[0]))

    def _bucket(self, found: Found[T], size: Size) -> Iterator[Result[T]]:
        try:
            with self.trace.span("sort an image"):
                place = self._sort(found, size)
        except ImageError as error:
            yield Result(found.item, error)
            return
        if self.options.single and self.buckets.count > 1:
            self.fit.widen(self.options.slots or self.engine.slots)
            self.slots.fill()
        # An image may have many tiles: a stop does not wait for all of them.
        full = self.waiting.full(place, self._batch(place[0]))
        while self.buckets.size(place) >= full and not self.stop():
            yield from self._launch(place)
        while self.buckets.count > self.most_waiting and not self.stop():
            yield from self._empty(self.waiting.fullest)
        # The other half is for what comes.
        while self.buckets.bytes > self.budget.most // 2 and not self.stop():
            yield from self._launch(self.buckets.heaviest)

    def _empty(self, key: Key) -> Iterator[Result[T]]:
        """All of a size at once: another one has to be compiled first, perhaps."""
        self.waiting.gather(key)
        while self.buckets.size((key, None)) and not self.stop():
            yield from self._launch((key, None))

    def _sort(self, found: Found[T], size: Size) -> Bin:
        """Put it, or its tiles, with others of its size, or of its page; where that is."""
        self.budget.give_back(found.image.nbytes)
        key = key_of(found.image, size)
        grid = self.waiting.cutter.grid(*key)
        try:
            if grid is None:
                self._check(key, found.image.nbytes)
        except ImageError:
            self.pages.expect(key, None)
            self.pages.refuse(found.row)
            raise
        place = self.waiting.put(found, size, grid)
        batch = self._batch(place[0])
        self.pages.expect(key, batch if grid is None else None)
        self._look_ahead(batch)
        return place

    def _check(self, key: Key, image_bytes: int) -> None:
        """Raise ImageError for what the engine does not take whole."""
        refusal = self.engine.refusal(*key)
        if refusal is None and self.options.batch is not None:
            refusal = refuse_batch(self.fit, image_bytes, key[1])
        if refusal is not None:
            raise refusal

    def _launch(self, place: Bin) -> Iterator[Result[T]]:
        """Start a slot on a bucket; a short batch runs padded, or one by one."""
        while self.slots.none_free or self.fit.enough(len(self.flying)):
            if self.flying:
                yield from self._land()
            else:
                yield from self.writing.results()
                self.pages.trim()
                self.outputs.trim()
                self.slots.renew()
        if not self.buckets.size(place):  # what has landed made it be cut into smaller tiles
            return
        key, page = place
        batch = self.waiting.full(place, self._batch(key))
        if self.engine.any_batch and self.buckets.size(place) < batch and not self.options.batch:
            batch = self.engine.min_batch
        if page is not None:
            self.pages.seal(page)
        bucket = self.waiting.take(place, batch)
        slot, row = self.slots.take()
        flight = _Flight(slot, bucket, key, batch, next(self.numbers), row)
        try:
            with self.trace.span("fill a slot", batch=flight.number, slot=row):
                images = self._fill(slot, bucket, batch)
            flight.started = time.perf_counter_ns()
            with self.trace.span("start a batch", batch=flight.number, slot=row):
                slot.submit(len(bucket), key[1])
        except DeviceMemoryError as error:
            yield from self._take_back(flight, error)
            return
        if images is not None:
            self.pages.give_back(found.row for found in bucket)
            pairs = zip(bucket, images, strict=False)
            flight.found = [Found(found.item, image) for found, image in pairs]
            flight.copied = True
        self.flying.append(flight)

    def _fill(self, slot: Slot, bucket: list[Found[T | Tile[T]]], batch: int) -> U8 | None:
        """Copy the images into the slot, and return its own; None where it runs on theirs."""
        images = as_they_lie(bucket, batch, self.engine.any_memory)
        if images is not None:
            slot.use(images)
            return None
        first = bucket[0].image
        images = slot.reserve(batch, (first.shape[0], first.shape[1]))
        for place, found in zip(images, bucket, strict=False):
            place[:] = found.image
        return images

    def _land(self) -> Iterator[Result[T]]:
        """Wait for the oldest slot and hand its masks to the writers."""
        flight = self.flying.popleft()
        slot, found, number = flight.slot, flight.found, flight.number
        try:
            with self.trace.span("wait for a batch", batch=number, slot=flight.row):
                masks = slot.masks()
        except DeviceMemoryError as error:
            yield from self._take_back(flight, error)
            return
        self.fit.ran(flight.batch, self.slots.count, time.perf_counter_ns() - flight.started)
        self.fill.add(len(found), flight.batch)
        yield from self._tell_unfit()
        told = {"batch": number, "images": len(found), "of": flight.batch}
        self.trace.note("batch", flight.row, flight.started, slot.spans(), **told)
        span = self.trace.span("hand over masks", batch=number, slot=flight.row)
        with span, self.outputs.lend(slot, masks, flight.batch) as loan:
            pairs = zip(found, masks, strict=True)
            failed = [r for one, m in pairs for r in self._hand_over(one.item, m, number, loan)]
        self.slots.give_back(slot)
        self.pages.give_back(one.row for one in found)
        yield from failed
        yield from self.writing.results(waiting=4 * flight.batch)

    def _hand_over(
        self, item: T | Tile[T], mask: U8, number: int, loan: Loan | None
    ) -> Iterator[Result[T]]:
        if (mask[..., 0, 0] == NO_CLASS).all():
            yield from self.waiting.fail(item, ImageError(NOT_FINITE))
        elif not isinstance(item, Tile):
            yield from self.writing.put(item, mask, number, loan=loan)
        elif not item.mosaic.void and item.mosaic.put(item, mask):
            mosaic = item.mosaic
            yield from self.writing.put(mosaic.task, mosaic.mask, number, own=True)

    def _take_back(self, flight: _Flight[T], error: DeviceMemoryError) -> Iterator[Result[T]]:
        """What found no memory waits again: for a smaller batch, or in smaller tiles."""
        self.slots.give_back(flight.slot)
        forget_frames(error)
        # Where a batch of before has said it already, this one only comes back.
        smaller = self.slots.too_large or self._make_smaller(flight, error)
        self.slots.too_large = True
        again: list[Found[T | Tile[T]]] = []
        with suppress(MemoryError):
            again = self._kept(flight) if smaller else []
        for found in again:  # all, or none
            try:
                self.waiting.put_back(found, flight.key)
            except ImageError as error_of_it:
                yield from self.waiting.fail(found.item, error_of_it)
        if not again:
            self.pages.give_back(found.row for found in flight.found)
            failure = self.fit.refuse(whole_key(flight.found[0].item, flight.key)[1], error)
            for found in flight.found:
                self.unfit += self.waiting.fail(found.item, failure)
            yield from self._tell_unfit()

    def _kept(self, flight: _Flight[T]) -> list[Found[T | Tile[T]]]:
        """Its images where they may stay: the slot's memory is needed for others."""
        if not flight.copied:
            return flight.found
        return [Found(found.item, found.image.copy()) for found in flight.found]

    def _make_smaller(self, flight: _Flight[T], error: DeviceMemoryError) -> bool:
        """Smaller batches, then tiles; of tiles smaller ones first. False: neither is possible."""
        first = flight.found[0].item
        whole = whole_key(first, flight.key)
        if whole == flight.key and self.waiting.cutter.grid(*whole) is not None:
            return True  # it was loaded before images of its size were cut
        if whole == flight.key and self.fit.shrink(flight.batch, self.slots.count, error):
            return True
        if self.waiting.cutter.lower(flight.key[0], whole):
            self.fit.take_up_again()
            return True
        return whole != flight.key and self.fit.shrink(flight.batch, self.slots.count, error)

    def _tell_unfit(self) -> Iterator[Result[T]]:
        """Images too large by themselves: said once another one has fitted, and not before."""
        if self.fit.proven:
            yield from self.unfit
            self.unfit = []
        elif len(self.unfit) > MOST_UNFIT and self.fit.error:
            raise self.fit.error

    def close(self) -> None:
        """Start nothing new, wait for what runs, free the slots; twice is harmless."""
        self.loading.close()
        self.writing.close()
        self.buckets.clear()  # no image refers to a page any more
        with ExitStack() as stack:  # every slot is freed, also when a run has failed
            stack.callback(self.pages.close)
            stack.callback(self.outputs.close)
            stack.callback(self.slots.close)
            for flight in self.flying:
                stack.callback(_drop, flight.slot)
            self.flying = deque()


def _drop(slot: Slot) -> None:
    """Wait for masks that nobody wants; an error of theirs must not hide the one that ended it."""
    with suppress(UserError):
        slot.masks()
