"""ONNX Runtime on a CUDA slot's addresses: all of it that runs without a GPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from unetrt.contract.errors import DeviceMemoryError, UserError
from unetrt.contract.types import U8
from unetrt.engine.cuda import BatchShape
from unetrt.engine.onnx_bias import graph_with_biases_apart
from unetrt.engine.onnxruntime_cuda import (
    CUDA,
    FusedGraph,
    IdleSessions,
    SessionKernel,
    cuda_providers,
)
from unetrt.engine.open import open_engine
from unetrt.engine.tensorrt_backend import cuda_devices

no_gpu = pytest.mark.skipif(cuda_devices() > 0, reason="what is said where there is no GPU")


def run_kernel(kernel: SessionKernel, images: U8, size: tuple[int, int], stream: int = 0) -> U8:
    """As a slot does, on host addresses."""
    batch, height, width, channels = images.shape
    shape = BatchShape(batch, (height, width), channels, size)
    like, masks = np.empty(size, np.uint8), np.empty(shape.masks, np.uint8)
    addresses = (images.ctypes.data, like.ctypes.data, masks.ctypes.data)
    kernel.enqueue(shape, *addresses, stream)
    return masks


def test_the_network_runs_on_addresses_and_follows_them(
    exported: Callable[..., Path], steel: Callable[..., U8]
) -> None:
    kernel = SessionKernel(exported(), "mask", 0, memory="cpu")
    with open_engine(exported()) as engine:
        for index, size in enumerate([(48, 64), (48, 64), (33, 20), (48, 64)]):
            images = np.stack([steel(index, *size), steel(index + 1, *size)])
            masks = run_kernel(kernel, images, (60, 50))
            expected = [engine.run(image, (60, 50)) for image in images]
            np.testing.assert_array_equal(masks, expected)
    kernel.close()
    kernel.close()


def test_buffers_of_the_same_shape_are_not_bound_again(
    exported: Callable[..., Path], steel: Callable[..., U8]
) -> None:
    kernel = SessionKernel(exported(), "mask", 0, memory="cpu")
    images = steel(0, 32, 32)[None].copy()
    like, mask = np.empty((32, 32), np.uint8), np.empty((1, 32, 32), np.uint8)
    shape = BatchShape(1, (32, 32), 1, (32, 32))
    addresses = (images.ctypes.data, like.ctypes.data, mask.ctypes.data)
    kernel.enqueue(shape, *addresses, 0)
    first, binding = mask.copy(), kernel._binding
    images[:] = steel(3, 32, 32)
    kernel.enqueue(shape, *addresses, 0)
    assert kernel._binding is binding
    assert not np.array_equal(mask, first)


def test_the_stream_and_the_device_are_named_and_fp32_stays_fp32() -> None:
    (name, options), other = cuda_providers(1, 0x7F0012345678)
    assert (name, other) == (CUDA, "CPUExecutionProvider")
    assert isinstance(options, dict)
    assert int(options["user_compute_stream"]) == 0x7F0012345678
    assert (options["device_id"], options["use_tf32"]) == ("1", "0")
    assert options["cudnn_conv_algo_search"] == "HEURISTIC", "no search anew for every shape"
    assert options["fuse_conv_bias"] == "0"
    assert cuda_providers(1, 0, fused=True)[0][1]["fuse_conv_bias"] == "1"  # type: ignore[index]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_biases_apart_change_no_mask(
    precision: str, exported: Callable[..., Path], steel: Callable[..., U8]
) -> None:
    path = exported(precision)
    graph = graph_with_biases_apart(path)
    assert graph is not None
    nodes = {node.name: node for node in onnx.load_from_string(graph).graph.node}
    transposed = [node for node in nodes.values() if node.op_type == "ConvTranspose"]
    assert [len(node.input) for node in transposed] == [2] * 4
    plain = SessionKernel(path, "mask", 0, memory="cpu")
    apart = SessionKernel(path, "mask", 0, memory="cpu", graph=FusedGraph(graph))
    images = np.stack([steel(i, 48, 37) for i in range(3)])
    expected, found = (run_kernel(kernel, images, (60, 50)) for kernel in (plain, apart))
    assert len(np.unique(expected)) > 1
    np.testing.assert_array_equal(found, expected)


def test_a_bias_that_is_computed_stays_where_it_is(
    exported: Callable[..., Path], tmp_path: Path
) -> None:
    model = onnx.load(str(exported()))
    node = next(n for n in model.graph.node if n.op_type == "ConvTranspose")
    node.input[2] = "computed"
    onnx.save(model, str(tmp_path / "model.onnx"))
    assert graph_with_biases_apart(tmp_path / "model.onnx") is None


def test_where_cudnn_fuses_nothing_the_file_runs_as_it_is(
    exported: Callable[..., Path],
    steel: Callable[..., U8],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    images = steel(0, 32, 32)[None].copy()
    expected = run_kernel(SessionKernel(exported(), "mask", 0, memory="cpu"), images, (32, 32))
    graph = FusedGraph(graph_with_biases_apart(exported()))
    kernels = [SessionKernel(exported(), "mask", 0, memory="cpu", graph=graph) for _ in range(2)]

    def fail(*_: object) -> None:
        raise RuntimeError("Failed to initialize CUDNN Frontend: No execution plans")

    for kernel in kernels:
        run_kernel(kernel, images, (32, 32))
        monkeypatch.setattr(kernel._session, "run_with_iobinding", fail)
    for kernel in kernels:
        np.testing.assert_array_equal(run_kernel(kernel, images, (32, 32)), expected)
    assert caplog.text.count("No execution plans") == 1, "said once for all slots"
    assert graph.data is None, "the next slot does not try it"
    monkeypatch.setattr(kernels[0]._session, "run_with_iobinding", fail)
    with pytest.raises(UserError, match="failed to run"):
        run_kernel(kernels[0], images, (32, 32))


def test_the_next_slot_on_a_stream_has_the_session_of_the_one_before(
    exported: Callable[..., Path], steel: Callable[..., U8]
) -> None:
    """To open one took 0.3 s of an H200: a job of 32 photographs ran at a tenth of its speed."""
    sessions = IdleSessions()

    def kernel() -> SessionKernel:
        return SessionKernel(exported(), "mask", 0, memory="cpu", sessions=sessions)

    pictures = [steel(i, 32, 32)[None].copy() for i in range(2)]
    first, second = kernel(), kernel()
    expected = [run_kernel(first, picture, (40, 50)) for picture in pictures]
    run_kernel(second, pictures[0], (32, 32), stream=8)
    used = first._session, second._session
    assert used[0] is not used[1], "two slots at once"
    for closed in (first, second, second):
        closed.close()
    again, other = kernel(), kernel()
    for picture, mask in zip(pictures, expected, strict=True):
        np.testing.assert_array_equal(run_kernel(again, picture, (40, 50)), mask)
    run_kernel(other, pictures[0], (32, 32), stream=16)
    assert again._session is used[0]
    assert other._session not in used, "it was made for another stream"


@pytest.mark.parametrize("text", ["Failed to allocate memory for a buffer", "some other failure"])
def test_no_session_is_kept_that_has_failed(
    exported: Callable[..., Path],
    steel: Callable[..., U8],
    monkeypatch: pytest.MonkeyPatch,
    text: str,
) -> None:
    """Where memory is short none is: what a session has taken it keeps."""
    sessions, picture = IdleSessions(), steel(0, 32, 32)[None].copy()
    kernels = [
        SessionKernel(exported(), "mask", 0, memory="cpu", sessions=sessions) for _ in range(3)
    ]
    for number, kernel in enumerate(kernels):
        run_kernel(kernel, picture, (32, 32), stream=number)
    idle, failing, sound = (kernel._session for kernel in kernels)
    kernels[0].close()

    def fail(*_: object) -> None:
        raise RuntimeError(text)

    monkeypatch.setattr(failing, "run_with_iobinding", fail)
    with pytest.raises(UserError):
        run_kernel(kernels[1], picture, (32, 32), stream=1)
    for kernel in kernels[1:]:
        kernel.close()
    short = "memory" in text
    kept = [sessions.take(number, fused=False) for number in range(3)]
    assert kept == ([None] * 3 if short else [idle, None, sound])


def test_a_fused_session_is_of_no_use_where_cudnn_fuses_nothing(
    exported: Callable[..., Path],
    steel: Callable[..., U8],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    graph, sessions = FusedGraph(graph_with_biases_apart(exported())), IdleSessions()
    kernels = [
        SessionKernel(exported(), "mask", 0, memory="cpu", graph=graph, sessions=sessions)
        for _ in range(2)
    ]
    picture = steel(0, 32, 32)[None].copy()
    for stream, kernel in enumerate(kernels):
        run_kernel(kernel, picture, (32, 32), stream)
    kernels[0].close()

    def fail(*_: object) -> None:
        raise RuntimeError("Failed to initialize CUDNN Frontend: No execution plans")

    monkeypatch.setattr(kernels[1]._session, "run_with_iobinding", fail)
    third = SessionKernel(exported(), "mask", 0, memory="cpu", graph=graph, sessions=sessions)
    run_kernel(third, picture, (32, 32), stream=2)
    run_kernel(kernels[1], picture, (32, 32), stream=1)
    third.close()
    assert [sessions.take(stream, fused=True) for stream in range(3)] == [None] * 3


def test_no_memory_to_open_a_session(
    exported: Callable[..., Path],
    steel: Callable[..., U8],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The idle ones make room for the next try."""
    sessions, picture = IdleSessions(), steel(0, 32, 32)[None].copy()
    kernels = [
        SessionKernel(exported(), "mask", 0, memory="cpu", sessions=sessions) for _ in range(2)
    ]
    run_kernel(kernels[0], picture, (32, 32))
    kernels[0].close()

    def fail(*_: object) -> None:
        raise UserError("ONNX Runtime cannot load it", seen="Failed to allocate memory")

    monkeypatch.setattr("unetrt.engine.onnxruntime_cuda.session_from_onnx", fail)
    with pytest.raises(DeviceMemoryError, match="no memory to open ONNX file"):
        run_kernel(kernels[1], picture, (32, 32), stream=1)
    assert sessions.take(0, fused=False) is None


def test_an_image_that_does_not_fit_costs_no_fused_graph(exported: Callable[..., Path]) -> None:
    graph = FusedGraph(graph_with_biases_apart(exported()))
    kernel = SessionKernel(exported(), "mask", 0, memory="cpu", graph=graph)
    with pytest.raises(UserError, match="failed to run"):
        run_kernel(kernel, np.zeros((1, 32, 32, 2), np.uint8), (32, 32))
    assert graph.data is not None


@no_gpu
def test_onnx_runtime_does_not_go_on_with_the_cpu_unasked(exported: Callable[..., Path]) -> None:
    kernel = SessionKernel(exported(), "mask", 0)
    with pytest.raises(UserError, match="cannot use CUDA here"):
        kernel.enqueue(BatchShape(1, (32, 32), 1, (32, 32)), 0, 0, 0, 0)


@no_gpu
def test_without_a_gpu_it_says_so(exported: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match="does not run on cuda here") as caught:
        open_engine(exported(), device="cuda")
    assert caught.value.hint


def test_its_errors_name_the_model_and_the_shape(
    exported: Callable[..., Path], steel: Callable[..., U8], monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = SessionKernel(exported(), "mask", 0, memory="cpu")
    run_kernel(kernel, steel(0, 32, 32)[None].copy(), (32, 32))

    def fail(text: str) -> None:
        def run(*_: object) -> None:
            raise RuntimeError(text)

        monkeypatch.setattr(kernel._session, "run_with_iobinding", run)

    fail("Failed to allocate memory for requested buffer of size 9")
    with pytest.raises(DeviceMemoryError):
        run_kernel(kernel, steel(0, 32, 32)[None].copy(), (32, 32))
    fail("CUDNN failure 5000")
    with pytest.raises(UserError, match=r"ONNX file .*\(1, 32, 32, 1\)") as caught:
        run_kernel(kernel, steel(0, 32, 32)[None].copy(), (32, 32))
    assert not isinstance(caught.value, DeviceMemoryError)
    assert "CUDNN failure 5000" in str(caught.value)
