"""What we call on TensorRT's objects exists in its bindings."""

from __future__ import annotations

import pytest

trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")

USED = {
    "Runtime": ("deserialize_cuda_engine", "engine_host_code_allowed"),
    "ICudaEngine": (
        "create_execution_context",
        "get_tensor_profile_shape",
        "num_optimization_profiles",
    ),
    "IExecutionContext": (
        "set_input_shape",
        "set_tensor_address",
        "execute_async_v3",
        "set_optimization_profile_async",
    ),
    "Builder": ("create_network", "create_builder_config", "build_serialized_network"),
    "IBuilderConfig": (
        "set_memory_pool_limit",
        "get_memory_pool_limit",
        "builder_optimization_level",
        "hardware_compatibility_level",
        "create_timing_cache",
        "set_timing_cache",
        "set_flag",
        "get_flag",
        "progress_monitor",
        "num_compute_capabilities",
    ),
    "ITimingCache": ("combine", "serialize"),
    "IProgressMonitor": ("phase_start", "phase_finish", "step_complete"),
    "IOptimizationProfile": ("set_shape", "get_shape"),
}


@pytest.mark.parametrize(("kind", "names"), USED.items(), ids=list(USED))
def test_the_names_exist(kind: str, names: tuple[str, ...]) -> None:
    assert [name for name in names if not hasattr(getattr(trt, kind), name)] == []
