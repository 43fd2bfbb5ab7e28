"""New weights into a TensorRT plan, on the GPU that runs it. This has not run on a GPU yet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..contract.errors import UserError
from ..engine.cuda_device import CudaDevice
from ..engine.manifest import Manifest
from ..engine.tensorrt_backend import check_target, cuda_devices, load_plan
from ..engine.tensorrt_flavour import check, import_flavour, shared_logger

REFITTABLE = "refittable"
"""In a manifest's target: whether the plan was built to take other weights."""


def require_refittable(directory: Path, manifest: Manifest, rebuild: str) -> None:
    """Raise UserError for a plan that takes no other weights, or none on this machine."""
    if not manifest.target.get(REFITTABLE):
        raise UserError(
            f"the plan of {directory} was not built to take other weights",
            seen="no --refittable in its build",
            hint=f"{rebuild} --refittable",
        )
    if not cuda_devices():
        raise UserError(
            f"a {manifest.backend} plan takes new weights on an NVIDIA GPU",
            seen="0 CUDA devices",
            expected="the GPU that the plan was built for",
            hint="the same command on a machine with that GPU",
        )
    check_target(directory, manifest, "auto")


def write_refitted_plan(old: Path, manifest: Manifest, graph: Path) -> None:
    """Write the plan of `old` with the weights of `graph` beside `graph`."""
    trt = import_flavour(manifest.backend)
    logger = shared_logger(trt)
    cuda = CudaDevice(0)
    try:
        with cuda.current():
            engine = load_plan(old, manifest)
            _refit(trt, logger, engine, graph)
            (graph.parent / manifest.model).write_bytes(_serialize(trt, logger, engine))
            del engine  # while there is a context to free it in
    finally:
        cuda.close()


def _refit(trt: Any, logger: Any, engine: Any, graph: Path) -> None:
    check(bool(engine.refittable), "refit the plan: it takes no other weights", logger)
    refitter = trt.Refitter(engine, logger)
    parser = trt.OnnxParserRefitter(refitter, logger)
    if not parser.refit_from_file(str(graph)):
        errors = [parser.get_error(i).desc() for i in range(parser.num_errors)]
        raise UserError("TensorRT cannot take the weights", seen="; ".join(errors))
    check(refitter.refit_cuda_engine(), "refit the plan", logger)


def _serialize(trt: Any, logger: Any, engine: Any) -> bytes:
    """With its weights, and open to others: neither is the default everywhere."""
    serialization = engine.create_serialization_config()
    flags = trt.SerializationFlag
    serialization.set_flag(flags.INCLUDE_REFIT)
    serialization.clear_flag(flags.EXCLUDE_WEIGHTS)
    kept = (
        serialization.get_flag(flags.INCLUDE_REFIT),
        serialization.get_flag(flags.EXCLUDE_WEIGHTS),
    )
    check(kept == (True, False), f"keep weights and refit in the plan {kept}", logger)
    data = engine.serialize_with_config(serialization)
    return bytes(check(data, "serialize the refitted plan", logger))
