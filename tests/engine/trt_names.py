"""Every name that our code uses on TensorRT's module and objects, and whether bindings have it.

As a program: `python trt_names.py FOLDER < names.json` imports TensorRT's own bindings over
stand-ins of its libraries, made in FOLDER, and prints the names that they lack.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted(ROOT.glob("[!t]*/tensorrt_*.py"))

OURS = ""
OBJECTS = {
    "trt": "trt",
    "_trt": "trt",
    "builder": "Builder",
    "config": "IBuilderConfig",
    "_config": "IBuilderConfig",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "profile": "IOptimizationProfile",
    "layer": "IConvolutionLayer",
    "tensor": "ITensor",
    "features": "ITensor",
    "producer": "ILayer",
    "runtime": "Runtime",
    "plan": "ICudaEngine",
    "_plan": "ICudaEngine",
    "_context": "IExecutionContext",
    "inspector": "EngineInspector",
    "_cache": "ITimingCache",
    "cache": "ITimingCache",
    "profiler": "IProfiler",
    "refitter": "Refitter",
    "serialization": "ISerializationConfig",
    "logger": OURS,
    "_logger": OURS,
    "result": OURS,
    "index": OURS,
    "taken": OURS,
    "severity": OURS,
    "serialized": "IHostMemory",
    "data": "IHostMemory",
}
"""Variables of those files → the TensorRT class of what they hold."""

ELSEWHERE = {
    ("tensorrt_backend", "profile"): OURS,
    ("tensorrt_backend", "set_here"): OURS,
    ("tensorrt_backend", "least"): OURS,
    ("tensorrt_backend", "done"): OURS,
    ("tensorrt_contexts", "config"): "IRuntimeConfig",
    ("tensorrt_contexts", "_config"): "IRuntimeConfig",
    ("tensorrt_contexts", "compiled"): "IRuntimeCache",
    ("tensorrt_contexts", "made"): "IExecutionContext",
    ("tensorrt_build", "plan"): "IHostMemory",
    ("tensorrt_build", "capability"): "ComputeCapability",
    ("tensorrt_build", "cache"): OURS,
    ("tensorrt_build", "errors"): OURS,
    ("tensorrt_build", "seen"): OURS,
    ("tensorrt_build", "layers"): OURS,
    ("tensorrt_config", "found"): OURS,
    ("tensorrt_profile", "layer"): OURS,
    ("tensorrt_refit", "engine"): "ICudaEngine",
    ("tensorrt_refit", "parser"): "OnnxParserRefitter",
    ("tensorrt_refit", "flags"): "SerializationFlag",
    ("tensorrt_refit", "errors"): OURS,
    ("tensorrt_refit", "kept"): OURS,
}
"""(file, variable) where it holds something else."""

RETURNS = {
    "get_error": "ParserError",
    "create_timing_cache": "ITimingCache",
    "get_output": "ITensor",
    "get_input": "ITensor",
}
"""Methods whose result is used without a variable."""


def names_of_ours() -> set[str]:
    """Dotted names below the module: "BuilderFlag.REFIT", "ICudaEngine.serialize"."""
    return {name for path in SOURCES for name in names_in(path.read_text("utf-8"), path.stem)}


def names_in(source: str, stem: str) -> set[str]:
    return {name for node in ast.walk(ast.parse(source)) for name in _names(node, stem)}


def _names(node: ast.AST, stem: str) -> Iterator[str]:
    if isinstance(node, ast.Attribute):
        dotted = _dotted(node, stem)
        if dotted and not dotted.rpartition(".")[2].startswith("__"):
            yield dotted.removeprefix("trt.")
    if isinstance(node, ast.ClassDef):
        for base in node.bases:
            owner = _dotted(base, stem).removeprefix("trt.")
            methods = [m.name for m in node.body if isinstance(m, ast.FunctionDef)]
            yield from (f"{owner}.{m}" for m in methods if owner and not m.startswith("__"))


def _dotted(node: ast.AST, stem: str) -> str:
    """Class and attribute, "" for what is no object of TensorRT."""
    if not isinstance(node, ast.Attribute):
        return ""
    owner = _class_of(node.value, stem)
    return f"{owner}.{node.attr}" if owner else ""


def _class_of(node: ast.AST, stem: str) -> str:
    if isinstance(node, ast.Name | ast.Attribute):
        name = node.id if isinstance(node, ast.Name) else node.attr
        found = ELSEWHERE.get((stem, name), OBJECTS.get(name, OURS))
        if found or isinstance(node, ast.Name):
            return found
        dotted = _dotted(node, stem)
        return dotted if dotted.startswith("trt.") else OURS
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        return RETURNS.get(node.func.attr, OURS)
    return OURS


def unlisted_variables(source: str, stem: str) -> set[str]:
    """Variables that hold TensorRT's objects, or might, and stand in no table."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.arg) and isinstance(node.annotation, ast.Name):
            found |= {node.arg} if node.annotation.id == "Any" else set()
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
            made_by = _dotted(node.value.func, stem)
            targets = [t.id for t in node.targets if isinstance(t, ast.Name)]
            found |= set(targets) if made_by else set()
    return {name for name in found if name not in OBJECTS and (stem, name) not in ELSEWHERE}


def missing_names(module: Any, names: set[str]) -> list[str]:
    return sorted(name for name in names if not _has(module, name))


def _has(module: Any, dotted: str) -> bool:
    found = module
    for part in dotted.split("."):
        if not hasattr(found, part):
            return False
        found = getattr(found, part)
    return True


def write_stand_ins(bindings: Path, folder: Path) -> None:
    """Libraries of the names that the bindings link against, their functions empty."""
    listed = subprocess.run(
        ["nm", "-D", "--undefined-only", bindings], check=True, capture_output=True, text=True
    )
    symbols = [line.split()[-1] for line in listed.stdout.splitlines()]
    functions = [name for name in symbols if name.startswith(("create", "get", "initLib"))]
    code = {
        "nvinfer": "".join(f"void {name}(void) {{}}\n" for name in functions if "@" not in name)
    }
    for name in ("nvinfer", "nvinfer_plugin", "nvonnxparser"):
        soname = f"lib{name}.so.11"
        subprocess.run(
            [
                "gcc",
                "-x",
                "c",
                "-shared",
                "-fPIC",
                f"-Wl,-soname,{soname}",
                "-o",
                folder / soname,
                "-",
            ],
            input=code.get(name, f"int stand_in_{name};\n"),
            text=True,
            check=True,
        )


def _main(folder: Path) -> None:
    import ctypes
    import importlib.util

    spec = importlib.util.find_spec("tensorrt_bindings")
    assert spec is not None
    assert spec.origin is not None
    write_stand_ins(Path(spec.origin).with_name("tensorrt.so"), folder)
    for path in folder.glob("lib*.so.11"):
        ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL)
    sys.setdlopenflags(os.RTLD_LAZY)  # what is never called need not be there
    trt = importlib.import_module("tensorrt_bindings")
    names = set(json.load(sys.stdin))
    print(json.dumps({"version": trt.__version__, "missing": missing_names(trt, names)}))  # noqa: T201


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
