"""Optional packages: imported where they are used, with the install line when they are missing."""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType

from .errors import UserError

INSTALL = {
    "torch": "pip install torch",
    "google.protobuf.message": "pip install protobuf",
    "google.protobuf.text_format": "pip install protobuf",
    "grpc": "pip install 'unetrt[triton]'",
    "onnx": "pip install onnx",
    "onnxruntime": "pip install onnxruntime-gpu",
    "openvino": "pip install openvino",
    "pycuda.driver": "pip install 'unetrt[trt]'",
    "upath": "pip install universal-pathlib",
    "tifffile": "pip install 'unetrt[bands]'",
    "tensorrt": "pip install 'unetrt[trt]'",
    "pynvml": "pip install nvidia-ml-py",
    "ray": "pip install 'unetrt[ray]'",
    "ray.data": "pip install 'unetrt[ray]'",
    "tensorrt_rtx": "pip install 'unetrt[rtx]'",
    "tritonclient.grpc.model_config_pb2": "pip install 'unetrt[triton]'",
}


def is_installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def import_module(name: str) -> ModuleType:
    """Import a package of INSTALL. Raises UserError with the line that brings it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(
            f"the package {name} is needed here", seen=error, hint=INSTALL[name]
        ) from error
