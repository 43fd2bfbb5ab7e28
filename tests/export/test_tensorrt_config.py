"""Builder options on the real bindings: taken and read back, or an error that names them."""

from __future__ import annotations

import argparse
import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from unetrt.cli.build import _plan_options, add_arguments
from unetrt.contract.errors import UserError
from unetrt.contract.files import sha256_from_file
from unetrt.engine.onnxfile import metadata_from_onnx
from unetrt.engine.tensorrt_flavour import import_flavour, shared_logger
from unetrt.export import build as build_module
from unetrt.export import tensorrt_config
from unetrt.export.build import BuildOptions, build_engine
from unetrt.export.profiles import range_of_sizes
from unetrt.export.tensorrt_build import Plan, PlanOptions, plan_from_onnx
from unetrt.export.tensorrt_config import (
    BuildProgress,
    TimingCache,
    set_hardware_compatibility,
    set_opt_level,
    set_refittable,
    set_version_compatible,
    set_workspace,
)

pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: no plan can be built")

Export = Callable[..., Path]
RTX = "tensorrt-rtx"


@pytest.fixture
def builder() -> Any:
    trt = import_flavour(RTX)
    return trt, trt.Builder(shared_logger(trt))


def build(path: Path, **changes: Any) -> Plan:
    options = PlanOptions(**{"sizes": ((64, 64),), "targets": ("sm89",), **changes})
    return plan_from_onnx(RTX, path, metadata_from_onnx(path)[0], options, 0)


def test_what_is_taken(builder: Any) -> None:
    trt, maker = builder
    config = maker.create_builder_config()
    set_workspace(trt, config, 64)
    set_opt_level(trt, config, 2)
    set_version_compatible(trt, config)
    set_refittable(trt, config)
    assert config.get_flag(trt.BuilderFlag.REFIT)
    assert config.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE) == 64 << 20
    assert config.builder_optimization_level == 2
    assert config.get_flag(trt.BuilderFlag.VERSION_COMPATIBLE)


@pytest.mark.parametrize("name", ["same-cc", "ampere+"])
def test_what_rtx_drops_in_silence_is_an_error(builder: Any, name: str) -> None:
    trt, maker = builder
    with pytest.raises(UserError, match="has no --hardware-compatibility") as caught:
        set_hardware_compatibility(trt, maker.create_builder_config(), name)
    assert "read back" in str(caught.value.seen)


def test_what_the_bindings_have_no_name_for_is_an_error(builder: Any) -> None:
    trt, _ = builder
    with pytest.raises(UserError, match="has no --workspace"):
        set_workspace(trt, object(), 64)


def test_a_workspace_beyond_all_memory_is_not_taken(builder: Any) -> None:
    trt, maker = builder
    with pytest.raises(UserError, match="does not take this --workspace") as caught:
        set_workspace(trt, maker.create_builder_config(), 99999999999999999)
    assert caught.value.seen == 99999999999999999
    assert "another --workspace" in str(caught.value.hint)


class Cache:
    """ITimingCache of one GPU: entries behind the GPU's name."""

    def __init__(self, gpu: bytes, entries: set[bytes]) -> None:
        self.gpu, self.entries = gpu, entries

    def serialize(self) -> bytes:
        return self.gpu + b":" + b",".join(sorted(self.entries))

    def combine(self, other: Cache, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        if other.gpu != self.gpu:
            return False
        self.entries |= other.entries
        return True


class Config:
    """What TensorRT's IBuilderConfig does with timing caches, on the GPU "ada"."""

    def create_timing_cache(self, data: bytes) -> Cache | None:
        gpu, colon, entries = data.partition(b":")
        if not data:
            return Cache(b"ada", set())
        return Cache(gpu, set(filter(None, entries.split(b",")))) if colon else None

    def set_timing_cache(self, cache: Cache, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        return cache.gpu == b"ada"


class TestTimingCache:
    TRT = SimpleNamespace(__name__="tensorrt", __version__="11.0")

    def measured(self, path: Path, *entries: bytes) -> TimingCache:
        cache = TimingCache(self.TRT, Config(), path)
        cache._cache.entries |= set(entries)
        return cache

    def test_builds_share_it(self, tmp_path: Path) -> None:
        path = tmp_path / "cache"
        first, second = self.measured(path, b"a"), self.measured(path, b"b")
        first.save()
        assert second.save() == sha256_from_file(path)
        assert path.read_bytes() == b"ada:a,b"

    def test_one_of_another_gpu_is_refused_before_the_build(self, tmp_path: Path) -> None:
        (tmp_path / "cache").write_bytes(b"hopper:x")
        with pytest.raises(UserError, match="of another GPU") as caught:
            self.measured(tmp_path / "cache")
        assert "--timing-cache FILE" in str(caught.value.hint)
        (tmp_path / "cache").write_bytes(b"garbage")
        with pytest.raises(UserError, match="not a timing cache"):
            self.measured(tmp_path / "cache")

    @pytest.mark.parametrize("written", [b"hopper:x", b"garbage"])
    def test_what_is_written_there_meanwhile_stays(
        self, tmp_path: Path, written: bytes, caplog: pytest.LogCaptureFixture
    ) -> None:
        path = tmp_path / "cache"
        cache = self.measured(path, b"a")
        path.write_bytes(written)
        with caplog.at_level(logging.WARNING, "unetrt"):
            assert cache.save() is None
        assert path.read_bytes() == written
        assert "stays as it is" in caplog.text

    @pytest.mark.parametrize("found", [b"", b"ada:", None])
    def test_one_that_records_nothing_costs_no_plan(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture, found: bytes | None
    ) -> None:
        cache = self.measured(tmp_path / "cache")
        cache._cache.serialize = lambda: found
        with caplog.at_level(logging.WARNING, "unetrt"):
            assert cache.save() is None
        assert "nothing was measured" in caplog.text
        assert not (tmp_path / "cache").exists()

    def test_a_place_that_cannot_be_written_costs_no_plan(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        (tmp_path / "file").touch()
        cache = self.measured(tmp_path / "file" / "cache", b"a")
        with caplog.at_level(logging.WARNING, "unetrt"):
            assert cache.save() is None
        assert "stays as it is" in caplog.text


def test_options_reach_the_build(exported: Export) -> None:
    with pytest.raises(UserError, match="has no --hardware-compatibility"):
        build(exported("fp16"), hardware="ampere+")
    plan = build(exported("fp16"), workspace=64, opt_level=1)
    assert plan.timing_cache is None


def test_a_timing_cache_that_records_nothing(exported: Export, tmp_path: Path) -> None:
    """TensorRT-RTX measures on the user's GPU, not in the build."""
    with pytest.raises(UserError, match="has no --timing-cache") as caught:
        build(exported("fp16"), timing_cache=tmp_path / "cache")
    assert "no-op" in str(caught.value.seen)
    assert not any(tmp_path.iterdir())


def test_a_profile_each(exported: Export) -> None:
    ranges = (range_of_sizes([(64, 64)]), range_of_sizes([(32, 48), (96, 96)]))
    plan = build(exported("fp16"), ranges=ranges, batch=(2, 2, 2))
    assert [profile["size_like"] for profile in plan.profiles] == [
        [[64, 64]] * 3,
        [[32, 48], [32, 48], [96, 96]],
    ]
    assert plan.profiles[0]["image"] == [[2, 64, 64, 1]] * 3


def test_a_refittable_plan_is_one_or_an_error_that_helps(exported: Export) -> None:
    """TensorRT-RTX 1.7 calls CUDA for such a plan: without a GPU it says so."""
    try:
        assert build(exported("fp16"), refittable=True).data
    except UserError as error:
        assert "TensorRT failed to build the plan" in error.message  # noqa: PT017
        assert "without --refittable" in str(error.hint)  # noqa: PT017


def test_a_plan_for_later_versions_is_one_or_an_error_that_helps(exported: Export) -> None:
    """TensorRT-RTX 1.7 takes the flag and then misses a library that its wheel has not."""
    try:
        assert build(exported("fp16"), version_compatible=True).data
    except UserError as error:
        assert "without --version-compatible" in str(error.hint)  # noqa: PT017


def test_an_int8_plan_takes_no_other_weights(exported: Export, tmp_path: Path) -> None:
    options = BuildOptions(backend=RTX, precision="int8", plan=PlanOptions(refittable=True))
    with pytest.raises(UserError, match="takes no other weights"):
        build_engine(exported(), tmp_path / "engine", options)


def test_the_whole_log_on_demand(exported: Export, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "unetrt")
    build(exported("fp16"))
    assert not [r for r in caplog.records if "tensorrt_rtx" in r.getMessage()]
    build(exported("fp16"), verbose=True)
    levels = {r.levelno for r in caplog.records if r.getMessage().startswith("tensorrt_rtx: ")}
    assert {logging.DEBUG, logging.WARNING} <= levels
    build(exported("fp16"))
    assert not shared_logger(import_flavour(RTX)).verbose


def test_plan_flags_are_an_error_elsewhere(exported: Export, tmp_path: Path) -> None:
    plan = PlanOptions(workspace=64, opt_level=1)
    options = BuildOptions(backend="openvino", precision="fp32", plan=plan)
    with pytest.raises(UserError, match="no --workspace, --opt-level"):
        build_engine(exported(), tmp_path / "engine", options)


def test_progress_is_shown(exported: Export, monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[int] = []

    @contextmanager
    def record(*_: Any) -> Iterator[Any]:
        yield counted.append

    monkeypatch.setattr(tensorrt_config, "show_progress", record)
    build(exported("fp16"))
    assert sum(counted) == 100
    assert len(counted) > 5
    assert min(counted) > 0


def test_interrupting_stops_the_build(exported: Export, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []

    @contextmanager
    def interrupt(*_: Any) -> Iterator[Any]:
        def advance(count: int) -> None:
            if not steps:
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            steps.append(count)

        yield advance

    monkeypatch.setattr(tensorrt_config, "show_progress", interrupt)
    with pytest.raises(KeyboardInterrupt):
        build(exported("fp16"))
    monkeypatch.undo()
    assert sum(steps) < 100
    assert build(exported("fp16")).data  # the next build is none the worse


class TestBuildProgress:
    def test_nested_phases(self) -> None:
        shown: list[int] = []
        progress = BuildProgress(shown.append)
        progress.start("all", None, 2)
        progress.start("first", "all", 4)
        progress.step("first", 1)
        assert sum(shown) == 25
        progress.finish("first")
        progress.step("all", 0)
        assert sum(shown) == 50
        progress.step("unknown", 3)
        progress.step("all", 1)
        progress.finish("all")
        assert sum(shown) == 100

    def test_it_never_goes_back(self) -> None:
        shown: list[int] = []
        progress = BuildProgress(shown.append)
        progress.start("all", None, 2)
        progress.step("all", 0)
        progress.start("second", "all", 0)
        progress.step("second", 7)
        progress.finish("second")
        assert min(shown) > 0
        assert sum(shown) == 100
        progress.finish("all")
        assert sum(shown) == 100


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ranges": (range_of_sizes([(20000, 20000)]),), "batch": (1, 64, 64)}, "as many or as"),
        ({"targets": ("sm10",)}, "no such target"),
        ({"hardware": "ampere+"}, "has no --hardware-compatibility"),
        ({"timing_cache": Path("cache")}, "has no --timing-cache"),
    ],
)
def test_what_no_plan_is_built_with_is_refused_before_any_work(
    exported: Export,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
    message: str,
) -> None:
    """Golden masks of such a size would fill the memory first."""
    monkeypatch.setattr(build_module, "publish_engine", lambda *_: pytest.fail("work was begun"))
    plan = BuildOptions(backend=RTX, plan=PlanOptions(**options))
    with pytest.raises(UserError, match=message):
        build_engine(exported("fp16"), tmp_path / "engine", plan)
    assert not any(tmp_path.iterdir())


def test_sizes_and_targets_given_twice_are_one() -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    twice = ["--size", "200x200", "--size", "200x200", "--target", "sm89,SM89"]
    options = _plan_options(parser.parse_args(["m.pth", "-o", "e", *twice]))
    assert len(options.ranges) == 1
    assert options.targets == ("sm89",)
