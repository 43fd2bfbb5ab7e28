"""What we call on TensorRT's module and objects exists in the bindings of both flavours."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.engine.trt_names import (
    SOURCES,
    missing_names,
    names_in,
    names_of_ours,
    unlisted_variables,
)
from unetrt.engine.tensorrt_flavour import RTX_TARGETS
from unetrt.export import tensorrt_layers
from unetrt.export.tensorrt_config import HARDWARE

ONLY_RTX = {
    "ComputeCapability",
    "IBuilderConfig.num_compute_capabilities",
    "IBuilderConfig.set_compute_capability",
    "IBuilderConfig.get_compute_capability",
    "DynamicShapesKernelSpecializationStrategy",
    "DynamicShapesKernelSpecializationStrategy.EAGER",
    "IRuntimeConfig.dynamic_shapes_kernel_specialization_strategy",
    "IRuntimeConfig.create_runtime_cache",
    "IRuntimeConfig.set_runtime_cache",
    "IExecutionContext.is_stream_capturable",
}
"""Asked for by hasattr before they are used."""


def names_in_tables() -> set[str]:
    """Members of enumerations that the code names in text."""
    return {
        *(f"HardwareCompatibilityLevel.{name}" for name in HARDWARE.values()),
        *(f"DataType.{name}" for name in tensorrt_layers._PRECISIONS),
        *(f"LayerType.{name}" for name in tensorrt_layers._KINDS),
    }


def test_of_every_kind_of_object_names_are_found() -> None:
    found = names_of_ours()
    assert len(found) > 60
    assert {
        "BuilderFlag.REFIT",
        "Builder.build_serialized_network",
        "ICudaEngine.get_tensor_profile_shape",
        "IExecutionContext.execute_async_v3",
        "IProgressMonitor.phase_start",
        "ILogger.log",
        "OnnxParserRefitter.refit_from_file",
        "ParserError.desc",
        "ITimingCache.serialize",
    } <= found


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.stem)
def test_every_variable_of_theirs_is_known(path: Path) -> None:
    assert unlisted_variables(path.read_text("utf-8"), path.stem) == set()


def test_tensorrt_rtx_has_them() -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    assert missing_names(trt, names_of_ours() | names_in_tables()) == []
    assert missing_names(trt, {f"ComputeCapability.{name.upper()}" for name in RTX_TARGETS}) == []


def test_tensorrt_11_has_them(tmp_path: Path) -> None:
    """A process of its own: the libraries of these bindings are stand-ins."""
    if importlib.util.find_spec("tensorrt_bindings") is None:
        pytest.skip("TensorRT's bindings are not installed: `make bindings` brings them")
    if shutil.which("gcc") is None or shutil.which("nm") is None:
        pytest.skip("no C compiler to make stand-ins of TensorRT's libraries with")
    program = Path(__file__).with_name("trt_names.py")
    planted = {"Builder.no_such_name", "NoSuchClass"}
    done = subprocess.run(
        [sys.executable, program, tmp_path],
        input=json.dumps(sorted(names_of_ours() | names_in_tables() | planted)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert int(found["version"].split(".")[0]) >= 11
    assert set(found["missing"]) == ONLY_RTX | planted


class TestTheSearch:
    SOURCE = """
class Logger(trt.ILogger):
    def shout(self): ...

def build(trt: Any, config: Any, gadget: Any):
    config.set_flag(trt.BuilderFlag.MAGIC)
    config.fast = True
    wheel = config.spin()
    return [parser.get_error(i).why() for i in range(parser.count)]
"""

    def test_names(self) -> None:
        assert names_in(self.SOURCE, "tensorrt_x") == {
            "ILogger",
            "ILogger.shout",
            "BuilderFlag",
            "BuilderFlag.MAGIC",
            "IBuilderConfig.set_flag",
            "IBuilderConfig.fast",
            "IBuilderConfig.spin",
            "OnnxParser.get_error",
            "OnnxParser.count",
            "ParserError.why",
        }

    def test_variables(self) -> None:
        assert unlisted_variables(self.SOURCE, "tensorrt_x") == {"gadget", "wheel"}

    def test_what_is_missing(self) -> None:
        trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
        assert "IBuilderConfig.fast" in missing_names(trt, names_in(self.SOURCE, "tensorrt_x"))
