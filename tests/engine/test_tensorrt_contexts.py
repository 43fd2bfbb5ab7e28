"""One configuration for all contexts of a plan: stand-ins of TensorRT's objects, its own names."""

from __future__ import annotations

import logging
from enum import Enum
from types import SimpleNamespace
from typing import Any

import pytest

from unetrt.contract.errors import UserError
from unetrt.engine.tensorrt_backend import PlanKernel
from unetrt.engine.tensorrt_contexts import LAZY, Contexts

Strategy = Enum("Strategy", "LAZY EAGER NONE")
TRT = SimpleNamespace(DynamicShapesKernelSpecializationStrategy=Strategy)


class Config:
    """IRuntimeConfig of TensorRT-RTX. It keeps no strategy where it is stubborn."""

    stubborn = False
    takes_caches = True

    def __init__(self) -> None:
        self._strategy = Strategy.LAZY
        self.caches: list[object] = []

    @property
    def dynamic_shapes_kernel_specialization_strategy(self) -> Strategy:
        return self._strategy

    @dynamic_shapes_kernel_specialization_strategy.setter
    def dynamic_shapes_kernel_specialization_strategy(self, wanted: Strategy) -> None:
        self._strategy = self._strategy if self.stubborn else wanted

    def create_runtime_cache(self) -> object:
        return object()

    def set_runtime_cache(self, cache: object) -> bool:
        self.caches.append(cache)
        return self.takes_caches


class Plan:
    """ICudaEngine, as far as contexts are made of it."""

    num_optimization_profiles = 0

    def __init__(self) -> None:
        self.given: list[tuple[Any, ...]] = []
        self.fails = False

    def create_execution_context(self, *given: Any) -> object | None:
        self.given.append(given)
        return None if self.fails else SimpleNamespace()


class RtxPlan(Plan):
    config: Any = Config

    def __init__(self) -> None:
        super().__init__()
        self.made: list[Any] = []

    def create_runtime_config(self) -> Any:
        self.made.append(self.config())
        return self.made[-1]


def logger() -> Any:
    return SimpleNamespace(messages=["why not"], errors=[])


def test_contexts_share_what_was_compiled_and_wait_for_it() -> None:
    plan = RtxPlan()
    contexts = Contexts(TRT, plan, logger())
    kernels = [PlanKernel(contexts, "model.plan") for _ in range(3)]
    (config,) = plan.made
    assert plan.given == [(config,)] * 3
    assert config.dynamic_shapes_kernel_specialization_strategy is Strategy.EAGER
    assert len(config.caches) == 1
    assert [kernel.eager for kernel in kernels] == [""] * 3


def test_what_is_replaced_later_is_not_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Config, "stubborn", True)
    assert PlanKernel(Contexts(TRT, RtxPlan(), logger()), "model.plan").eager == LAZY


def test_a_cache_that_is_not_taken_costs_time_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Config, "takes_caches", False)
    with caplog.at_level(logging.WARNING, "unetrt"):
        assert Contexts(TRT, RtxPlan(), logger()).make()
    assert "no runtime cache" in caplog.text


@pytest.mark.parametrize("config", [None, SimpleNamespace])
def test_tensorrt_makes_its_contexts_as_ever(config: Any) -> None:
    """Older ones have no configuration, TensorRT's own has neither strategy nor cache."""
    plan = Plan() if config is None else RtxPlan()
    plan.config = config  # type: ignore[attr-defined]
    contexts = Contexts(SimpleNamespace(), plan, logger())
    assert contexts.make()
    assert (plan.given, contexts.eager) == ([()], "")


def test_a_context_that_is_not_made_is_told_in_its_words() -> None:
    plan = RtxPlan()
    plan.fails = True
    with pytest.raises(UserError, match="make an execution context") as caught:
        Contexts(TRT, plan, logger()).make()
    assert caught.value.seen == "why not"


def test_the_bindings_take_a_configuration_for_a_context() -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    told = trt.ICudaEngine.create_execution_context.__doc__
    assert "runtime_config" in told
    assert isinstance(trt.IRuntimeConfig.dynamic_shapes_kernel_specialization_strategy, property), (
        "it is set and read, not called"
    )
