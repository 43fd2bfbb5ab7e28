"""When PyTorch's networks are captured and replayed; CUDA graphs themselves under -m gpu."""

from __future__ import annotations

import logging
import threading
import time
from functools import partial
from typing import cast

import pytest
import torch

from unetrt.engine import cuda_graph, torch_graph
from unetrt.engine.cuda_graph import Replay
from unetrt.engine.torch_backend import TorchKernel
from unetrt.engine.torch_graph import MOST_CAPTURES, capture_net, give_back
from unetrt.training.masknet import MaskNet


class Device:
    """Stands in for torch.cuda's graphs: what a capture records runs when it is replayed."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.recording: list[str] | None = None
        self.reset: list[Graph] = []
        self.fails = self.is_lost = False
        self.given_back = 0

    def give_back(self) -> None:
        if self.is_lost:
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
        self.given_back += 1

    def queue(self, name: str) -> None:
        (self.ran if self.recording is None else self.recording).append(name)


class Graph:
    device: Device

    def capture_begin(self, capture_error_mode: str) -> None:
        assert capture_error_mode == "thread_local"
        if self.device.fails:
            raise RuntimeError("CUDA error: operation not permitted\nsecond line")
        self.device.recording = []

    def capture_end(self) -> None:
        assert self.device.recording is not None
        self.recorded, self.device.recording = self.device.recording, None

    def replay(self) -> None:
        self.device.ran += [f"replayed {name}" for name in self.recorded]

    def reset(self) -> None:
        self.device.reset.append(self)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    found = Device()
    monkeypatch.setattr(Graph, "device", found, raising=False)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "empty_cache", found.give_back)
    cuda_graph._say_once.cache_clear()
    return found


def replay() -> Replay:
    return Replay("", capture_net, MOST_CAPTURES)


def run(graph: Replay, device: Device, key: str) -> str:
    """What ran."""
    before = len(device.ran)
    graph.run(key, lambda: device.queue(key), 0, "a batch")
    (found,) = device.ran[before:]
    return found


def test_the_second_time_is_captured_and_the_third_replayed(device: Device) -> None:
    graph = replay()
    assert run(graph, device, "a") == "a"
    assert [run(graph, device, "a") for _ in range(3)] == ["replayed a"] * 3


def test_another_shape_forgets_the_graph(device: Device) -> None:
    graph = replay()
    found = [run(graph, device, key) for key in "aabbba"]
    assert found == ["a", "replayed a", "b", "replayed b", "replayed b", "a"]
    assert len(device.reset) == 2


def test_shapes_in_turn_are_never_captured(device: Device) -> None:
    graph = replay()
    assert [run(graph, device, key) for key in "ababab"] == list("ababab")
    assert not graph.refused
    assert device.reset == []


def test_a_capture_that_fails_is_said_once(
    device: Device, caplog: pytest.LogCaptureFixture
) -> None:
    device.fails = True
    graph = replay()
    with caplog.at_level(logging.WARNING, "unetrt"):
        assert [run(graph, device, "a") for _ in range(4)] == ["a"] * 4
    (record,) = caplog.records
    assert "no CUDA graph" in record.getMessage()
    assert "operation not permitted" in record.getMessage()
    assert "second line" not in record.getMessage()
    assert graph.refused


def test_work_that_fails_in_a_capture_ends_it(device: Device) -> None:
    graph, times = replay(), []

    def work() -> None:
        times.append(1)
        if len(times) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        device.queue("a")

    for _ in range(3):
        graph.run("a", work, 0, "a batch")
    assert device.ran == ["a", "a", "a"]
    assert device.recording is None, "a stream that is left capturing takes no work"
    assert graph.refused == "CUDA out of memory"
    assert (len(device.reset), device.given_back) == (1, 1), "it keeps memory that others need"
    assert device.reset[0] in torch_graph._BROKEN, "PyTorch calls on it"


def test_threads_capture_one_after_the_other(device: Device) -> None:
    captured: list[str] = []

    def work(name: str) -> None:
        captured.append(name)
        time.sleep(0.05)
        captured.append(name)

    threads = [threading.Thread(target=capture_net, args=(partial(work, n), 0)) for n in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert captured[::2] == captured[1::2]
    assert sorted(captured[::2]) == list("abcd")


def test_room_is_made_of_the_graph_and_of_the_pool(device: Device) -> None:
    kernel = TorchKernel(cast(MaskNet, None), graphs=True)
    for _ in range(2):
        run(kernel._replay, device, "a")
    kernel.make_room()
    assert len(device.reset) == 1
    assert device.given_back > 0
    assert run(kernel._replay, device, "a") == "a"


def test_a_device_that_is_lost_is_told_of_by_what_failed_alone(device: Device) -> None:
    """What is closed after it would hide that with an error of its own."""
    graph = replay()
    for _ in range(3):
        run(graph, device, "a")
    device.is_lost = True
    graph.free()
    give_back()


def test_memory_is_given_back_where_a_graph_is_gone(device: Device) -> None:
    """And nowhere else: PyTorch would allocate all of it anew."""
    graph, given_back = replay(), []
    for key in "aabbbaab":
        before = device.given_back
        run(graph, device, key)
        given_back.append(device.given_back > before)
    assert given_back == [False, False, True, False, False, True, False, True]
    graph.free()
    assert device.given_back == 3, "there was no graph"
    run(graph, device, "b")
    run(graph, device, "b")
    graph.free()
    graph.free()
    assert device.given_back == 4


def test_shapes_that_change_too_often_are_captured_no_more(
    device: Device, caplog: pytest.LogCaptureFixture
) -> None:
    graph = replay()
    keys = [str(number) for number in range(MOST_CAPTURES + 2) for _ in range(3)]
    with caplog.at_level(logging.WARNING, "unetrt"):
        found = [run(graph, device, key) for key in keys]
    replayed = [name for name in found if name.startswith("replayed")]
    assert len(replayed) == 2 * MOST_CAPTURES, "the last graph still serves its own shape"
    assert found[-3:] == [keys[-1]] * 3
    assert "change too often" in graph.refused
    assert caplog.records == []
