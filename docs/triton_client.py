"""Send images to a Triton server and write their masks; docs/triton.md says how.

python docs/triton_client.py MODEL -i IMAGES --output-dir MASKS [--check ENGINE_DIR]
"""

from __future__ import annotations

import argparse
import sys
from collections import deque
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as triton

from unetrt.contract.errors import ImageError, UserError
from unetrt.contract.files import write_atomically
from unetrt.contract.resize import network_input
from unetrt.contract.spec import ModelSpec
from unetrt.contract.types import NO_CLASS, U8, Size
from unetrt.engine.manifest import read_manifest
from unetrt.engine.open import open_engine
from unetrt.runtime.encode import encode_mask, resolve_format
from unetrt.runtime.plan import Task, plan_tasks

IN_FLIGHT = 32
"""Requests that wait for their masks: the server merges those that come close together."""


class MaskClient:
    """A model's masks. What its images and masks are made like, the server itself says."""

    def __init__(self, url: str, model: str) -> None:
        self._client = triton.InferenceServerClient(url)
        self._model = model
        config = self._client.get_model_config(model).config
        self.spec = ModelSpec.from_json(config.parameters["unetrt.spec"].string_value)

    def submit(self, image: U8, size: Size) -> Future[U8]:
        """Network input (h, w, C) and its mask's (H, W) → the mask, later."""
        inputs = [
            _tensor("image", image[None], "UINT8"),
            _tensor("size", np.array([size], np.int32), "INT32"),
        ]
        future: Future[U8] = Future()

        def answer(result: Any, error: Exception | None) -> None:
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(result.as_numpy("mask")[0])

        self._client.async_infer(self._model, inputs, answer)
        return future

    def close(self) -> None:
        self._client.close()


def _tensor(name: str, array: Any, kind: str) -> Any:
    tensor = triton.InferInput(name, list(array.shape), kind)
    tensor.set_data_from_numpy(np.ascontiguousarray(array))
    return tensor


class Job:
    """Images to mask files; counts what failed and, with an engine, the pixels that differ."""

    def __init__(self, client: MaskClient, engine: Any = None) -> None:
        self._client, self._engine = client, engine
        self._format = resolve_format("auto", client.spec)
        self.done = self.failed = self.pixels = self.equal = 0

    def run(self, tasks: list[Task]) -> None:
        waiting: deque[tuple[Task, U8, Size, Future[U8]]] = deque()
        for task in tasks:
            try:
                image, size = network_input(task.source, self._client.spec)
            except ImageError as error:
                self._fail(task, error.reason)
                continue
            waiting.append((task, image, size, self._client.submit(image, size)))
            if len(waiting) == IN_FLIGHT:
                self._finish(*waiting.popleft())
        while waiting:
            self._finish(*waiting.popleft())

    def _finish(self, task: Task, image: U8, size: Size, future: Future[U8]) -> None:
        assert task.output is not None
        try:
            mask = future.result()
        except triton.InferenceServerException as error:
            return self._fail(task, str(error))
        if (mask == NO_CLASS).any():
            return self._fail(task, "the network's output was not finite")
        task.output.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(task.output, encode_mask(mask, self._client.spec, self._format))
        self.done += 1
        if self._engine is not None:
            self.equal += int(np.count_nonzero(self._engine.run(image, size) == mask))
            self.pixels += mask.size
        return None

    def _fail(self, task: Task, reason: str) -> None:
        self.failed += 1
        sys.stderr.write(f"failed: {task.source}: {reason}\n")


def main() -> int:
    parser = argparse.ArgumentParser(description="Images to masks, by a Triton server.")
    parser.add_argument("model", help="the model's name on the server")
    parser.add_argument("-i", "--images", type=Path, required=True, metavar="DIR")
    parser.add_argument("--output-dir", type=Path, required=True, metavar="DIR")
    parser.add_argument("--url", default="localhost:8001", help="gRPC (default: localhost:8001)")
    parser.add_argument("--check", type=Path, metavar="ENGINE_DIR", help="compare with its masks")
    args = parser.parse_args()
    # As `unetrt predict` names them: the tree is kept, and no two images share a mask.
    tasks = plan_tasks([str(args.images)], output_dir=args.output_dir)
    client = MaskClient(args.url, args.model)
    engine = open_engine(args.check) if args.check else None
    job = Job(client, engine)
    try:
        job.run(tasks)
    finally:
        client.close()
        if engine is not None:
            engine.close()
    sys.stdout.write(f"{job.done} masks written, {job.failed} failed\n")
    if args.check and job.pixels:
        share, least = job.equal / job.pixels, read_manifest(args.check).gate["min_agreement"]
        sys.stdout.write(f"{share:.4%} of the pixels are those of {args.check}\n")
        return int(job.failed > 0 or share < least)
    return int(job.failed > 0)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (UserError, triton.InferenceServerException) as error:
        sys.exit(f"error: {error}")
