"""When PyTorch's networks are captured and replayed; CUDA graphs themselves under -m gpu."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch

from unetrt.engine.torch_graph import GraphPools, NetGraph


class Device:
    """Stands in for torch.cuda's graphs: what a capture records runs when it is replayed."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.recording: list[str] | None = None
        self.reset: list[Graph] = []
        self.pools = 0
        self.fails = False

    def queue(self, name: str) -> None:
        (self.ran if self.recording is None else self.recording).append(name)


class Graph:
    device: Device

    def capture_begin(self, pool: int, capture_error_mode: str) -> None:
        assert capture_error_mode == "thread_local"
        if self.device.fails:
            raise RuntimeError("CUDA error: operation not permitted\nsecond line")
        self.pool, self.device.recording = pool, []

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

    class Pool:
        def __init__(self) -> None:
            found.pools += 1
            self.id = found.pools

    monkeypatch.setattr(Graph, "device", found, raising=False)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "MemPool", Pool)
    return found


def run(graph: NetGraph, device: Device, key: str) -> str:
    """What ran."""
    before = len(device.ran)
    graph.run(key, lambda: device.queue(key))
    (found,) = device.ran[before:]
    return found


def test_the_second_time_is_captured_and_the_third_replayed(device: Device) -> None:
    graph = NetGraph(GraphPools())
    assert run(graph, device, "a") == "a"
    assert [run(graph, device, "a") for _ in range(3)] == ["replayed a"] * 3
    assert device.pools == 1


def test_another_shape_forgets_the_graph(device: Device) -> None:
    graph = NetGraph(GraphPools())
    found = [run(graph, device, key) for key in "aabbba"]
    assert found == ["a", "replayed a", "b", "replayed b", "replayed b", "a"]
    assert len(device.reset) == 2
    assert device.pools == 1, "the memory of the one before serves the next"


def test_shapes_in_turn_are_never_captured(device: Device) -> None:
    graph = NetGraph(GraphPools())
    assert [run(graph, device, key) for key in "ababab"] == list("ababab")
    assert device.pools == 0


def test_a_capture_that_fails_is_said_once(
    device: Device, caplog: pytest.LogCaptureFixture
) -> None:
    device.fails = True
    graph = NetGraph(GraphPools())
    with caplog.at_level(logging.WARNING, "unetrt"):
        assert [run(graph, device, "a") for _ in range(4)] == ["a"] * 4
    (record,) = caplog.records
    assert "no CUDA graph" in record.getMessage()
    assert "operation not permitted" in record.getMessage()
    assert "second line" not in record.getMessage()
    assert graph.refused


def test_work_that_fails_in_a_capture_ends_it(device: Device) -> None:
    graph, times = NetGraph(GraphPools()), []

    def work() -> None:
        times.append(1)
        if len(times) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        device.queue("a")

    for _ in range(3):
        graph.run("a", work)
    assert device.ran == ["a", "a", "a"]
    assert device.recording is None, "a stream that is left capturing takes no work"
    assert graph.refused == "CUDA out of memory"


def test_memory_is_kept_for_the_next_slot(device: Device) -> None:
    pools = GraphPools()
    for _ in range(3):
        graph = NetGraph(pools)
        for _ in range(3):
            run(graph, device, "a")
        graph.close()
        graph.close()
    assert device.pools == 1
    assert len(device.reset) == 3
    first, second = NetGraph(pools), NetGraph(pools)
    for graph in (first, second):
        run(graph, device, "a")
        run(graph, device, "a")
    used: Any = (first._graph.pool, second._graph.pool)
    assert used[0] != used[1], "two graphs that run at once never share memory"
    pools.clear()
