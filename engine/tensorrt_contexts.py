"""Execution contexts of one plan, made with one configuration. It has not run on a GPU yet."""

from __future__ import annotations

from typing import Any

from ..contract.log import log
from .tensorrt_flavour import check

LAZY = "TensorRT compiles faster kernels as it runs, which a graph of the first ones would not take"


class Contexts:
    """Makes the contexts of a plan. Use with the device current.

    TensorRT-RTX compiles a plan's kernels where it runs. Unasked, every context does so anew, and
    runs slower ones meanwhile: a graph would keep those for ever. Here all contexts share what is
    compiled, and wait for it. eager: why their work is not to be captured, or empty.
    """

    def __init__(self, trt: Any, plan: Any, logger: Any) -> None:
        self.plan, self.logger = plan, logger
        self._config: Any = None
        self.eager = ""
        if hasattr(plan, "create_runtime_config"):
            self._configure(trt, plan.create_runtime_config())

    def _configure(self, trt: Any, config: Any) -> None:
        """TensorRT itself has such an object too, and nothing in it that we would set."""
        if hasattr(config, "dynamic_shapes_kernel_specialization_strategy"):
            wanted = trt.DynamicShapesKernelSpecializationStrategy.EAGER
            config.dynamic_shapes_kernel_specialization_strategy = wanted
            self._config = config
            if config.dynamic_shapes_kernel_specialization_strategy != wanted:
                self.eager = LAZY
        if hasattr(config, "create_runtime_cache"):
            compiled = config.create_runtime_cache()
            if compiled is None or not config.set_runtime_cache(compiled):
                log.warning("TensorRT takes no runtime cache: every slot compiles its kernels")
            self._config = config

    def make(self) -> Any:
        """A new context. Raises UserError with TensorRT's words."""
        given = () if self._config is None else (self._config,)
        made = self.plan.create_execution_context(*given)
        return check(made, "make an execution context", self.logger)
