"""ONNX → a TensorRT or TensorRT-RTX plan, strongly typed: the graph decides the precision."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from ..contract.errors import UserError
from ..contract.spec import ModelSpec
from ..contract.types import Size
from ..engine.cuda_device import capability_of, pycuda_lacks
from ..engine.tensorrt_backend import gpu_of_machine
from ..engine.tensorrt_flavour import (
    RTX_TARGETS,
    WITHOUT_BF16,
    check,
    import_flavour,
    shared_logger,
)
from .layers import Shares, kept_in_fp32, precision_shares
from .profiles import SizeRange, Triple, profile_shapes, range_of_sizes
from .tensorrt_config import (
    TimingCache,
    build_serialized,
    clear_tf32,
    set_hardware_compatibility,
    set_opt_level,
    set_refittable,
    set_version_compatible,
    set_workspace,
)
from .tensorrt_layers import count_types, layers_from_network, require_precision

REFUSED_HINT = "unetrt build … --backend openvino, or another --size and --batch"

VERSION_HINT = "without --version-compatible: such a plan holds a library that may be missing here"
MOST_NUMBERS = 2**31 - 1
"""In one of TensorRT's tensors."""

REFIT_HINT = "without --refittable, or on an NVIDIA GPU: TensorRT-RTX 1.7 needs one for such a plan"


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """batch: (least, best, most) images a run. sizes: image sizes to serve, the first the best.

    ranges: one profile each, in place of the one that spans `sizes`. workspace: MiB that a layer
    may use. opt_level: 0 to 5. hardware: "none", "same-cc" or "ampere+".
    targets: compute capabilities ("sm89") that a TensorRT-RTX plan is built for; none means the
    GPU of this machine, or every one that TensorRT-RTX knows where there is no GPU.
    refittable: to take other weights later. verbose: TensorRT's log goes to ours.
    precision: refuses a convolution in another one, but for those of fp32_blocks.
    """

    batch: tuple[int, int, int] = (1, 4, 8)
    sizes: tuple[Size, ...] = ()
    targets: tuple[str, ...] = ()
    ranges: tuple[SizeRange, ...] = ()
    workspace: int | None = None
    opt_level: int | None = None
    timing_cache: Path | None = None
    hardware: str = "none"
    version_compatible: bool = False
    refittable: bool = False
    verbose: bool = False
    precision: str = ""
    fp32_blocks: tuple[str, ...] = ()

    def flags(self) -> list[str]:
        """Those that were given and that only a plan has a use for."""
        given = {
            "--target": bool(self.targets),
            "--batch": self.batch != PlanOptions.batch,
            "--size": bool(self.ranges),
            "--workspace": self.workspace is not None,
            "--opt-level": self.opt_level is not None,
            "--timing-cache": self.timing_cache is not None,
            "--hardware-compatibility": self.hardware != "none",
            "--version-compatible": self.version_compatible,
            "--refittable": self.refittable,
            "--verbose": self.verbose,
        }
        return [flag for flag, is_given in given.items() if is_given]


@dataclass(frozen=True)
class Plan:
    """A serialized engine with what it was built for.

    layers: counts by output type; shares: of layers and arithmetic in each precision.
    gpu: name, capability and driver of the one that it was built on and for.
    """

    data: bytes
    profiles: list[dict[str, Any]]
    targets: list[str]
    layers: dict[str, int]
    shares: Shares
    version: str
    timing_cache: str | None = None
    gpu: dict[str, str] = field(default_factory=dict)


def check_plan_options(backend: str, spec: ModelSpec, options: PlanOptions, devices: int) -> None:
    """Raise UserError for what no plan is built with, before anything is computed for it."""
    for sizes in options.ranges:
        _require_sides(profile_shapes(spec, options.batch, sizes))
    trt = import_flavour(backend)
    logger = shared_logger(trt, options.verbose)
    builder = trt.Builder(logger)
    try:
        config = builder.create_builder_config()
        _set_options(trt, config, options)
        here = capability_of(0) if devices and not pycuda_lacks() else ""
        _set_targets(trt, config, logger, options, devices, here)
    except UserError as error:
        raise error.with_traceback(None) from None  # as in plan_from_onnx


def plan_from_onnx(
    backend: str, model: Path, spec: ModelSpec, options: PlanOptions, devices: int
) -> Plan:
    """Parse and build; `devices` CUDA devices are there. Raises UserError with TensorRT's words."""
    try:
        return _build_plan(backend, model, spec, options, devices)
    except UserError as error:
        # A traceback would keep the builder alive, to be freed at any time (see shared_logger).
        raise error.with_traceback(None) from None


def _build_plan(
    backend: str, model: Path, spec: ModelSpec, options: PlanOptions, devices: int
) -> Plan:
    trt = import_flavour(backend)
    logger = shared_logger(trt, options.verbose)
    builder = trt.Builder(logger)
    network = _network_from_onnx(trt, builder, logger, model)
    layers = layers_from_network(trt, network)
    kept = kept_in_fp32(model, options.fp32_blocks, options.precision)
    require_precision(layers, options.precision, kept)
    config = builder.create_builder_config()
    profiles = [
        _add_profile(builder, config, logger, profile_shapes(spec, options.batch, sizes))
        for sizes in options.ranges or (range_of_sizes(options.sizes),)
    ]
    cache = _set_options(trt, config, options)
    gpu = gpu_of_machine() if devices and not options.targets else {}
    here = gpu.get("capability", "")
    targets = _set_targets(trt, config, logger, options, devices, here)
    if gpu:
        targets = [gpu["capability"]]
    plan = build_serialized(trt, builder, network, config)
    serialized = check(plan, "build the plan", logger, _hint(options, devices))
    return Plan(
        data=bytes(serialized),
        profiles=profiles,
        targets=targets,
        layers=count_types(network),
        shares=precision_shares(layers),
        version=trt.__version__,
        timing_cache=cache.save() if cache else None,
        gpu=gpu,
    )


def _hint(options: PlanOptions, devices: int) -> str:
    """What a build that failed is most likely for want of."""
    if options.refittable and not devices:
        return REFIT_HINT
    return VERSION_HINT if options.version_compatible else REFUSED_HINT


def _network_from_onnx(trt: Any, builder: Any, logger: Any, model: Path) -> Any:
    # Needed on TensorRT 10, ignored on 11, where every network is strongly typed.
    flag = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(flag)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(model)):
        errors = [parser.get_error(i).desc() for i in range(parser.num_errors)]
        raise UserError("TensorRT cannot parse the network's graph", seen="; ".join(errors))
    return network


def _add_profile(
    builder: Any, config: Any, logger: Any, shapes: dict[str, Triple]
) -> dict[str, Any]:
    _require_sides(shapes)
    profile = builder.create_optimization_profile()
    for name, (least, best, most) in shapes.items():
        profile.set_shape(name, least, best, most)
        seen = [tuple(shape) for shape in profile.get_shape(name)]
        check(seen == [least, best, most], f"set the profile of {name} (it has {seen})", logger)
    index = config.add_optimization_profile(profile)
    check(index >= 0, "add the optimization profile", logger)
    return {name: [list(shape) for shape in triple] for name, triple in shapes.items()}


def _require_sides(shapes: dict[str, Triple]) -> None:
    """Raise UserError for a shape that TensorRT's numbers do not hold."""
    most = [shape[2] for shape in shapes.values()]
    if max(prod(shape) for shape in most) > MOST_NUMBERS:
        raise UserError(
            "TensorRT takes no images as many or as large",
            seen=f"batches of {shapes['image'][2]}, masks of {shapes['size_like'][2]}",
            expected=f"at most {MOST_NUMBERS} numbers in all",
            hint="unetrt build … with a smaller --batch or --size",
        )


def _set_options(trt: Any, config: Any, options: PlanOptions) -> TimingCache | None:
    clear_tf32(trt, config)
    if options.workspace is not None:
        set_workspace(trt, config, options.workspace)
    if options.opt_level is not None:
        set_opt_level(trt, config, options.opt_level)
    if options.hardware != "none":
        set_hardware_compatibility(trt, config, options.hardware)
    if options.version_compatible:
        set_version_compatible(trt, config)
    if options.refittable:
        set_refittable(trt, config)
    return TimingCache(trt, config, options.timing_cache) if options.timing_cache else None


def _set_targets(
    trt: Any, config: Any, logger: Any, options: PlanOptions, devices: int, here: str
) -> list[str]:
    """Only TensorRT-RTX builds for other GPUs than this machine's; each one is read back.

    here: the capability of this machine's GPU, as far as it is known.
    """
    targets = options.targets
    if not hasattr(trt, "ComputeCapability"):
        if targets:
            raise UserError(
                "--target is TensorRT-RTX's", seen=targets, hint="--backend tensorrt-rtx"
            )
        return []
    known = trt.ComputeCapability.__members__
    if not targets and devices and here.upper() not in known:
        return []
    without = WITHOUT_BF16 if options.precision == "bf16" else ()
    able = [t for t in RTX_TARGETS if t not in without]
    chosen = list(targets) or ([here] if here else [t for t in able if t.upper() in known])
    unknown = [t for t in chosen if t.upper() not in known or not t.startswith("sm")]
    if unknown:
        raise UserError(
            "TensorRT-RTX has no such target", seen=unknown, expected=", ".join(RTX_TARGETS)
        )
    unable = [t for t in chosen if t in without]
    if unable:
        raise UserError(
            "these GPUs do not compute in bf16",
            seen=", ".join(unable),
            expected=", ".join(able),
            hint="--precision fp16, or " + ("without these targets" if targets else "--target"),
        )
    config.num_compute_capabilities = len(chosen)
    for index, target in enumerate(chosen):
        capability = known[target.upper()]
        config.set_compute_capability(capability, index)
        check(config.get_compute_capability(index) == capability, f"target {target}", logger)
    return chosen
