"""Runs inside Triton, as model.py of the model that clients call; imports nothing of unetrt.

An engine takes the masks' size as the shape of an input without a batch dimension, which Triton's
own batcher cannot merge. Here each image brings its (height, width) as two numbers: requests that
Triton has batched are put together by that size, and each group is one run of the engine.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

Group = tuple[int, ...]
"""(h, w, C, H, W): image shape and mask size."""


class TritonPythonModel:
    """image: uint8 (N, h, w, C); size: int32 (N, 2), the masks' (H, W); mask: uint8 (N, H, W)."""

    def initialize(self, args: dict[str, str]) -> None:
        parameters = json.loads(args["model_config"])["parameters"]
        values = {name: entry["string_value"] for name, entry in parameters.items()}
        self.engine = values["engine"]
        self.min_batch = int(values["min_batch"])
        self.max_pixels = int(values["max_pixels"])

    def execute(self, requests: list[Any]) -> list[Any]:
        responses: list[Any] = [None] * len(requests)
        groups: dict[Group, list[int]] = {}
        images = []
        for index, request in enumerate(requests):
            image, size = (
                pb_utils.get_input_tensor_by_name(request, name).as_numpy()
                for name in ("image", "size")
            )
            images.append(image)
            fault = self._fault(size)
            if fault:
                responses[index] = _error(fault, pb_utils.TritonError.INVALID_ARG)
            else:
                groups.setdefault((*image.shape[1:], *map(int, size[0])), []).append(index)
        for group, members in groups.items():
            for index, response in self._run(group[3:], members, images):
                responses[index] = response
        return responses

    def _fault(self, size: Any) -> str:
        """What is wrong with the sizes of one request, or ''."""
        if (size != size[0]).any():
            return f"one request has one mask size, not {size.tolist()}"
        height, width = map(int, size[0])
        if min(height, width) < 1 or height * width > self.max_pixels:
            return f"a mask of {height}x{width} pixels: expected 1 to {self.max_pixels} in all"
        return ""

    def _run(self, size: Group, members: list[int], images: list[Any]) -> list[tuple[int, Any]]:
        """One run of the engine over the images of `members`: (index, response) of each."""
        batch = np.concatenate([images[index] for index in members])
        found = self._masks(batch, size)
        if isinstance(found, str):
            code = pb_utils.TritonError.INTERNAL
            return [(index, _error(found, code)) for index in members]
        answered, start = [], 0
        for index in members:
            stop = start + len(images[index])
            mask = pb_utils.Tensor("mask", np.ascontiguousarray(found[start:stop]))
            answered.append((index, pb_utils.InferenceResponse([mask])))
            start = stop
        return answered

    def _masks(self, batch: Any, size: Group) -> Any:
        """uint8 (N, H, W), or the engine's error as text."""
        n = len(batch)
        if n < self.min_batch:
            missing = np.zeros((self.min_batch - n, *batch.shape[1:]), np.uint8)
            batch = np.concatenate([batch, missing])
        request = pb_utils.InferenceRequest(
            model_name=self.engine,
            requested_output_names=["mask"],
            inputs=[
                pb_utils.Tensor("image", batch),
                pb_utils.Tensor("size_like", np.zeros(size, np.uint8)),
            ],
            preferred_memory=pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU, 0),
        )
        response = request.exec()
        if response.has_error():
            return f"{self.engine}: {response.error().message()}"
        return pb_utils.get_output_tensor_by_name(response, "mask").as_numpy()[:n]


def _error(message: str, code: int) -> Any:
    return pb_utils.InferenceResponse([], pb_utils.TritonError(message, code))
