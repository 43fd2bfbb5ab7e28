"""A repository as it is written, in a real Triton server; requests by the client of docs/.

The server is that of PyTriton's wheel (scripts/install_tritonserver.sh), which has no ONNX Runtime
backend: the one here gives model.onnx to ONNX Runtime as it is asked. Everything else is Triton's:
it reads config.pbtxt, warms up, batches requests and runs the batcher.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tritonclient.grpc as triton

from unetrt.contract.types import U8, Size
from unetrt.engine.open import open_engine
from unetrt.export.build import BuildOptions, build_engine
from unetrt.export.triton import write_repository
from unetrt.export.triton_config import TritonOptions

ROOT = Path(__file__).resolve().parent.parent.parent
WHEEL = Path(os.environ.get("UNETRT_TRITONSERVER", ROOT / ".venv" / "tritonserver"))
LIBRARY = Path(str(sysconfig.get_config_var("LIBDIR")))
SECONDS = 120
"""Starting takes two; a busy machine gets more."""

BACKEND = """
import json, os, sys
import numpy as np
import triton_python_backend_utils as pb_utils
sys.path.append({packages!r})
import onnxruntime

class TritonPythonModel:
    def initialize(self, args):
        name = json.loads(args["model_config"])["default_model_filename"]
        file = os.path.join(args["model_repository"], args["model_version"], name)
        self.session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])

    def execute(self, requests):
        return [self.run(request) for request in requests]

    def run(self, request):
        inputs = {{
            name: pb_utils.get_input_tensor_by_name(request, name).as_numpy()
            for name in ("image", "size_like")
        }}
        print("engine run", inputs["image"].shape, inputs["size_like"].shape, flush=True)
        (mask,) = self.session.run(["mask"], inputs)
        return pb_utils.InferenceResponse([pb_utils.Tensor("mask", mask)])
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (WHEEL / "pytriton" / "tritonserver" / "bin" / "tritonserver").is_file(),
        reason=f"no Triton server in {WHEEL}: scripts/install_tritonserver.sh PYTHON",
    ),
    pytest.mark.skipif(
        not list(LIBRARY.glob("libpython3.*.so.1.0")),
        reason="this Python has no shared library, which Triton's Python backend needs",
    ),
]


@dataclass(frozen=True)
class Server:
    url: str
    engine: Path
    log: Path

    def runs(self) -> list[tuple[int, ...]]:
        """Image shapes of the engines' runs up to now."""
        found = re.findall(r"engine run \(([^)]*)\)", self.log.read_text(encoding="utf-8"))
        return [tuple(int(n) for n in shape.split(",")) for shape in found]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, checkpoint_file: Callable[..., Path]
) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    engine = folder / "steel"
    checkpoint = checkpoint_file(channels=3, classes=3, scale=0.5)
    build_engine(checkpoint, engine, BuildOptions(backend="onnxruntime"))
    # Half a second: requests that are sent together meet, on a busy machine too.
    options = TritonOptions(max_batch=6, delay=500_000)
    shutil.copytree(engine, folder / "three")
    write_repository([engine, folder / "three"], folder / "repository", options)
    # As for a plan that was built for no fewer than three images.
    config = folder / "repository" / "three" / "config.pbtxt"
    text = config.read_text(encoding="utf-8")
    least = re.compile(r'(key: "min_batch"\s+value \{\s+string_value: )"1"')
    config.write_text(least.sub(r'\1"3"', text), encoding="utf-8")
    backends = folder / "backends"
    (backends / "onnxruntime").mkdir(parents=True)
    packages = str(Path(cv2.__file__).parent.parent)
    code = BACKEND.format(packages=packages)
    (backends / "onnxruntime" / "model.py").write_text(code, encoding="utf-8")
    (backends / "python").symlink_to(WHEEL / "pytriton" / "tritonserver" / "backends" / "python")
    port = free_port()
    command = [
        str(WHEEL / "pytriton" / "tritonserver" / "bin" / "tritonserver"),
        f"--model-repository={folder / 'repository'}",
        f"--backend-directory={backends}",
        "--disable-auto-complete-config",
        "--allow-http=false",
        "--allow-metrics=false",
        "--grpc-address=127.0.0.1",
        f"--grpc-port={port}",
    ]
    log = folder / "log"
    with log.open("wb") as file:
        # Triton's Python looks for packages in its working folder.
        process = subprocess.Popen(
            command,
            stdout=file,
            stderr=subprocess.STDOUT,
            cwd=WHEEL / "python",
            env={**os.environ, "LD_LIBRARY_PATH": str(LIBRARY)},
        )
        try:
            wait_until_ready(f"127.0.0.1:{port}", process, log)
            yield Server(f"127.0.0.1:{port}", engine, log)
        finally:
            process.terminate()
            try:
                process.wait(SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def wait_until_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    client = triton.InferenceServerClient(url)
    last = time.monotonic() + SECONDS
    try:
        while time.monotonic() < last and process.poll() is None:
            try:
                if client.is_server_ready():
                    return
            except triton.InferenceServerException:
                pass  # it does not listen yet
            time.sleep(0.1)
    finally:
        client.close()
    pytest.fail(f"the server is not ready\n{log.read_text(encoding='utf-8')}")


@pytest.fixture
def client(server: Server) -> Iterator[Any]:
    found = triton.InferenceServerClient(server.url)
    yield found
    found.close()


def tensors(images: U8, sizes: list[Size]) -> list[Any]:
    values = [("image", images, "UINT8"), ("size", np.array(sizes, np.int32), "INT32")]
    found = []
    for name, array, kind in values:
        tensor = triton.InferInput(name, list(array.shape), kind)
        tensor.set_data_from_numpy(array)
        found.append(tensor)
    return found


def send(client: Any, inputs: list[Any]) -> Future[Any]:
    """One request to the batcher; its result comes later."""
    future: Future[Any] = Future()

    def answer(result: Any, error: Exception | None) -> None:
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)

    client.async_infer("steel", inputs, answer)
    return future


def pictures(steel: Callable[..., U8], count: int) -> U8:
    return np.stack([steel(i, 32, 40, 3) for i in range(count)])


def test_the_client_writes_the_masks_that_predict_writes(
    server: Server, steel: Callable[..., U8], tmp_path: Path
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for i, (height, width) in enumerate([(64, 80), (65, 81), (64, 80), (40, 50), (64, 80)]):
        cv2.imwrite(str(images / f"{i}.png"), steel(i, height, width, 3))
    (images / "torn.png").write_bytes((images / "0.png").read_bytes()[:100])
    command = [
        sys.executable,
        str(ROOT / "docs" / "triton_client.py"),
        "steel",
        *("-i", str(images), "--output-dir", str(tmp_path / "served")),
        *("--url", server.url, "--check", str(server.engine)),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr  # one image is torn
    assert "5 masks written, 1 failed" in done.stdout
    assert "100.0000% of the pixels" in done.stdout
    assert "torn.png" in done.stderr
    predict = [sys.executable, "-m", "unetrt.cli", "predict", "-m", str(server.engine)]
    predict += ["-i", str(images), "--output-dir", str(tmp_path / "predicted")]
    subprocess.run(predict, capture_output=True, check=False)
    for i in range(5):
        served, predicted = (tmp_path / d / f"{i}.png" for d in ("served", "predicted"))
        assert served.read_bytes() == predicted.read_bytes()


def test_requests_that_come_together_are_one_run(
    server: Server, client: Any, steel: Callable[..., U8]
) -> None:
    """Of two mask sizes: each size is a run of its own, and every mask its own image's."""
    images, before = pictures(steel, 12), len(server.runs())
    sizes: list[Size] = [(64, 80) if i % 3 else (65, 81) for i in range(12)]
    answers = [
        send(client, tensors(image[None], [size]))
        for image, size in zip(images, sizes, strict=True)
    ]
    with open_engine(server.engine) as engine:
        for answer, image, size in zip(answers, images, sizes, strict=True):
            mask = answer.result(SECONDS).as_numpy("mask")[0]
            np.testing.assert_array_equal(mask, engine.run(image, size))
    runs = server.runs()[before:]
    assert sum(shape[0] for shape in runs) == 12
    assert len(runs) < 12


def test_a_client_s_own_batch_is_one_request(
    server: Server, client: Any, steel: Callable[..., U8]
) -> None:
    images = pictures(steel, 4)
    masks = client.infer("steel", tensors(images, [(64, 80)] * 4)).as_numpy("mask")
    engine = triton.InferInput("image", list(images.shape), "UINT8")
    engine.set_data_from_numpy(images)
    like = triton.InferInput("size_like", [64, 80], "UINT8")
    like.set_data_from_numpy(np.zeros((64, 80), np.uint8))
    direct = client.infer("steel_engine", [engine, like]).as_numpy("mask")
    np.testing.assert_array_equal(masks, direct)
    assert masks.shape == (4, 64, 80)


def test_a_batch_below_the_engine_s_least_is_filled_up(
    server: Server, client: Any, steel: Callable[..., U8]
) -> None:
    images = pictures(steel, 2)
    filled = client.infer("three", tensors(images, [(64, 80)] * 2)).as_numpy("mask")
    assert server.runs()[-1] == (3, 32, 40, 3)
    plain = client.infer("steel", tensors(images, [(64, 80)] * 2)).as_numpy("mask")
    np.testing.assert_array_equal(filled, plain)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ([(0, 80)], "a mask of 0x80 pixels"),
        ([(64, -1)], "a mask of 64x-1 pixels"),
        ([(2**31 - 1, 2**31 - 1)], "pixels"),
        ([(64, 80), (65, 81)], "one request has one mask size"),
    ],
    ids=["zero", "negative", "huge", "two"],
)
def test_a_wrong_size_costs_that_request_alone(
    server: Server, client: Any, steel: Callable[..., U8], sizes: list[Size], message: str
) -> None:
    with pytest.raises(triton.InferenceServerException, match=message):
        client.infer("steel", tensors(pictures(steel, len(sizes)), sizes))
    mask = client.infer("steel", tensors(pictures(steel, 1), [(64, 80)])).as_numpy("mask")
    with open_engine(server.engine) as engine:
        np.testing.assert_array_equal(mask[0], engine.run(pictures(steel, 1)[0], (64, 80)))


def test_wrong_images_are_refused_by_the_config(server: Server, client: Any) -> None:
    grey, many = np.zeros((1, 32, 40, 1), np.uint8), np.zeros((7, 32, 40, 3), np.uint8)
    with pytest.raises(triton.InferenceServerException, match="unexpected shape"):
        client.infer("steel", tensors(grey, [(64, 80)]))
    with pytest.raises(triton.InferenceServerException, match="batch-size must be <= 6"):
        client.infer("steel", tensors(many, [(64, 80)] * 7))


def test_the_engine_was_warm_before_the_first_request(server: Server) -> None:
    log = server.log.read_text(encoding="utf-8")
    assert log.index("engine run") < log.index("successfully loaded 'steel_engine'")
