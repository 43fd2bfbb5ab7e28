"""Cases for the timeline of the device, on the lazy host driver; run as lazy_cases.py is."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime

from tests.cuda.lazy import OnnxKernel, driver
from tests.cuda.lazy_cases import drive, expected, pictures
from unetrt.contract.spec import ModelSpec
from unetrt.contract.types import U8
from unetrt.engine.base import Engine, Slot
from unetrt.engine.cuda import CudaSlot
from unetrt.engine.cuda_device import CudaDevice
from unetrt.engine.cuda_spans import PARTS
from unetrt.runtime.pipeline import PipelineOptions, run_pipeline
from unetrt.runtime.trace import DEVICE_ROWS, SLOT_ROWS, Trace

Session = onnxruntime.InferenceSession
SIZE = (24, 32)


class TimedEngine(Engine):
    backend, precision, device, slots, batch = "lazy", "fp32", "cuda", 3, 2

    def __init__(self, cuda: CudaDevice, session: Session) -> None:
        super().__init__(ModelSpec(channels=1, classes=4, width=4, scale=1.0))
        self._cuda, self._session = cuda, session

    def slot(self) -> Slot:
        return CudaSlot(self._cuda, 1, OnnxKernel(self._session), timed=self.timed)


def test_a_trace_shows_copies_and_network_of_every_batch(
    device: CudaDevice, session: Session
) -> None:
    images = {i: pictures(np.random.default_rng(i), 1, SIZE)[0] for i in range(24)}
    masks: dict[int, U8] = {}
    trace, captured = Trace(), driver.lazy_graph_launches()
    results = run_pipeline(
        TimedEngine(device, session),
        images,
        lambda i: (images[i], SIZE),
        masks.__setitem__,
        PipelineOptions(trace=trace),
    )
    assert [result.error for result in results] == [None] * 24
    assert driver.lazy_graph_launches() == captured, "a graph would be one span"
    for index, image in images.items():
        assert np.array_equal(masks[index], expected(session, image[None], SIZE)[0])
    spans: dict[tuple[int, int], list[Any]] = {}
    whole = {}
    for event in trace.events():
        if event.get("cat") == "device":
            place = event["tid"] - DEVICE_ROWS, event["args"]["batch"]
            spans.setdefault(place, []).append(event)
        elif event["name"] == "batch":
            whole[event["tid"] - SLOT_ROWS, event["args"]["batch"]] = event
    assert len(whole) == 12
    assert set(spans) == set(whole)
    for place, parts in spans.items():
        assert [part["name"] for part in parts] == list(PARTS)
        ends = [part["ts"] + part["dur"] for part in parts]
        assert np.allclose(ends[:2], [part["ts"] for part in parts[1:]], atol=0.01)
        assert parts[1]["dur"] > 0, "the network took its time"
        # The clock's own start is read late, never early, so a span may seem to end late.
        assert parts[0]["ts"] >= whole[place]["ts"] - 10


def test_the_spans_of_a_slot_are_its_last_batchs(device: CudaDevice, session: Session) -> None:
    slot = CudaSlot(device, 1, OnnxKernel(session), timed=True)
    ends = []
    for index in range(3):
        slot.reserve(1, SIZE)[:] = pictures(np.random.default_rng(index), 1, SIZE)
        slot.submit(1, SIZE)
        assert slot.spans() == [], "it is in flight: there is nothing to tell yet"
        slot.masks()
        ends.append([end for _, _, end in slot.spans()])
    assert ends == sorted(ends)
    assert len({end for times in ends for end in times}) == 9
    assert drive([slot], session, 40, seed=5) == 0, "shapes that change"
    slot.close()


def test_a_slot_that_is_not_timed_has_no_spans_and_its_graph(
    device: CudaDevice, session: Session
) -> None:
    slot = CudaSlot(device, 1, OnnxKernel(session))
    launches = driver.lazy_graph_launches()
    for _ in range(3):
        slot.reserve(1, SIZE)[:] = pictures(np.random.default_rng(0), 1, SIZE)
        slot.submit(1, SIZE)
        slot.masks()
    assert slot.spans() == []
    assert driver.lazy_graph_launches() == launches + 2
    slot.close()
