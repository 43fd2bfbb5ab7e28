"""TensorRT and TensorRT-RTX plans on CUDA slots: one execution context a slot."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

from ..contract.errors import ImageError, UserError
from ..contract.log import log
from ..contract.types import Size
from .base import Engine, Memory, Slot
from .cuda import BatchShape, CudaSlot, Kernel
from .cuda_buffers import PinnedMemory
from .cuda_device import CudaDevice, capability_of, cuda_index, pycuda_lacks
from .tensorrt_contexts import Contexts
from .tensorrt_flavour import check, import_flavour, shared_logger

if TYPE_CHECKING:
    from pathlib import Path

    from .manifest import Manifest

AMPERE = 80
REBUILD_HERE = "unetrt build CHECKPOINT -o {} --backend {} --rebuild   builds it for this machine"


def cuda_devices() -> int:
    """CUDA devices that the driver shows; 0 without a driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value


def gpu_of_machine(index: int = 0) -> dict[str, str]:
    """What a plan that was built for this GPU has to say of it; {} where pycuda cannot tell."""
    if why := pycuda_lacks():
        log.warning("%s: the plan will not say which GPU it is for", why)
        return {}
    cuda = CudaDevice(index)
    try:
        return {**_gpu_of(cuda), "capability": cuda.capability}
    finally:
        cuda.close()


def _gpu_of(cuda: CudaDevice) -> dict[str, str]:
    """driver: the CUDA version that it brings, as "13.0"."""
    with cuda.current() as driver:
        version = driver.get_driver_version()
    return {"name": cuda.device.name(), "driver": f"{version // 1000}.{version % 1000 // 10}"}


def plan_runs_here(manifest: Manifest) -> bool:
    """Whether the first GPU of this machine is one that the plan was built for."""
    if not cuda_devices() or pycuda_lacks():
        return False
    return _is_target(manifest, capability_of(0))


def _is_target(manifest: Manifest, capability: str) -> bool:
    targets = manifest.target.get("compute_capabilities") or []
    compatible = manifest.target.get("hardware") == "ampere+" and int(capability[2:]) >= AMPERE
    return not targets or capability in targets or compatible


def load_plan(directory: Path, manifest: Manifest, hint: str | None = None) -> Any:
    """TensorRT's engine of a plan; use with the device current. UserError, with `hint`: refused."""
    trt = import_flavour(manifest.backend)
    logger = shared_logger(trt)
    runtime = trt.Runtime(logger)
    # Such a plan brings the code of its own version along.
    if manifest.target.get("version_compatible"):
        runtime.engine_host_code_allowed = True
    plan = (directory / manifest.model).read_bytes()
    return check(runtime.deserialize_cuda_engine(plan), "load the plan", logger, hint)


class TensorRtEngine(Engine):
    """A plan, deserialized on a GPU. Raises UserError when it does not belong to it."""

    slots = 3
    """One copies in, one computes, one copies out."""
    graphs = True

    def __init__(self, directory: Path, manifest: Manifest, device: str) -> None:
        super().__init__(manifest.spec)
        self.backend, self.precision = manifest.backend, manifest.precision
        self._path = directory / manifest.model
        check_target(directory, manifest, device)
        trt = import_flavour(manifest.backend)
        self._logger = shared_logger(trt)
        self._plan: Any = None
        self._cuda = CudaDevice(cuda_index(device))
        self.device = self._cuda.name
        hint = REBUILD_HERE.format(directory, manifest.backend)
        try:
            check_gpu(directory, manifest, self._cuda)
            with self._cuda.current():
                self._plan = load_plan(directory, manifest, hint)
                self._contexts: Contexts | None = Contexts(trt, self._plan, self._logger)
            least, best, _ = self._plan.get_tensor_profile_shape("image", 0)
            self.min_batch, self.batch = int(least[0]), int(best[0])
            self._profiles = profiles_of_plan(self._plan)
            most = [profile["image"][1] for profile in self._profiles]
            self.largest = [(height, width) for _, height, width, _ in most]
        except BaseException:
            self.close()
            raise

    def refusal(self, input_size: Size, size: Size) -> ImageError | None:
        """An image that no profile holds, in a slot of the engine's batch."""
        shape = BatchShape(self.batch, input_size, self.spec.channels, size, self.spec.planes)
        if any(_covers(profile, shape) for profile in self._profiles):
            return None
        height, width = size
        return ImageError(
            f"the plan was not built for an image of {height}×{width} pixels",
            seen=f"images {shape.images}, masks {shape.mask_size}",
            expected=_ranges(self._profiles),
            hint=f"unetrt build … --size {height}x{width}   adds a profile; so does --sizes-from",
        )

    def slot(self) -> Slot:
        with self._cuda.current():
            kernel = self._kernel()
        if not self.graphs:
            kernel.eager = "CUDA graphs are switched off"
        return CudaSlot(self._cuda, self.spec.channels, kernel, self.spec.planes, self.timed)

    def memory(self) -> Memory:
        return PinnedMemory(self._cuda)

    def _kernel(self) -> PlanKernel:
        assert self._contexts is not None
        return PlanKernel(self._contexts, str(self._path), self.spec.result)

    def profiled_slot(self, profiler: Any) -> CudaSlot:
        """A slot that tells an IProfiler every layer's time; each batch waits for its own end."""
        with self._cuda.current():
            kernel = self._kernel()
            kernel.report_to(profiler)
        return CudaSlot(self._cuda, self.spec.channels, kernel, self.spec.planes)

    def layer_information(self) -> str:
        """What the plan says of its layers, JSON; names alone unless it was built verbosely."""
        trt = import_flavour(self.backend)
        inspector = self._plan.create_engine_inspector()
        return str(inspector.get_engine_information(trt.LayerInformationFormat.JSON))

    @property
    def device_bytes(self) -> int:
        """Device memory that one execution context takes for its features."""
        return int(self._plan.device_memory_size_v2)

    def close(self) -> None:
        if self._plan is not None:
            with self._cuda.current():
                self._contexts = self._plan = None
        self._cuda.close()


class PlanKernel(Kernel):
    """An execution context: shapes and addresses are set when they change, not every batch."""

    def __init__(self, contexts: Contexts, name: str, result: str = "mask") -> None:
        """result: the output's name."""
        self._logger, self.name, self._result = contexts.logger, f"plan {name}", result
        self.eager = contexts.eager
        self._contexts: Contexts | None = contexts  # a context needs the plan that it is of
        self._context = contexts.make()
        self._profiles = profiles_of_plan(contexts.plan)
        self._profile = 0
        self._shape: BatchShape | None = None
        self._addresses: tuple[int, int, int] | None = None

    def enqueue(
        self, shape: BatchShape, image: int, size_like: int, mask: int, stream: int
    ) -> None:
        is_new = shape != self._shape
        if is_new:
            # Until all of it is set, the context has no shape: a failure leaves a mixed one.
            self._shape = None
            self._set_profile(shape, stream)
            self._set_shape("image", shape.images)
            self._set_shape("size_like", shape.mask_size)
            self._shape = shape
        if (image, size_like, mask) != self._addresses:
            self._addresses = None
            pairs = (("image", image), ("size_like", size_like), (self._result, mask))
            for name, address in pairs:
                set_here = self._context.set_tensor_address(name, address)
                check(set_here, f"set the address of {name}", self._logger)
            self._addresses = (image, size_like, mask)
        done = self._context.execute_async_v3(stream)
        check(done, f"run {self.name} on {shape.images}, stream {stream:#x}", self._logger)
        if is_new:
            self._ask_for_capture(stream)

    def _ask_for_capture(self, stream: int) -> None:
        """Known once a shape has run, which comes before its capture; TensorRT-RTX alone tells."""
        asked = hasattr(self._context, "is_stream_capturable") and not self.eager
        if asked and not self._context.is_stream_capturable(stream):
            self.eager = f"TensorRT says that {self.name} cannot be captured"

    def report_to(self, profiler: Any) -> None:
        """Tell an IProfiler the time of every layer."""
        self._context.profiler = profiler
        self.eager = "a profiler waits for every layer"

    def _set_profile(self, shape: BatchShape, stream: int) -> None:
        """Several profiles have not run on a GPU yet."""
        index = covering_profile(self._profiles, shape)
        if index != self._profile:
            taken = self._context.set_optimization_profile_async(index, stream)
            check(taken, f"take profile {index}", self._logger)
            self._profile = index

    def _set_shape(self, name: str, shape: tuple[int, ...]) -> None:
        taken = self._context.set_input_shape(name, shape)
        check(taken, f"set the shape of {name}, {shape}", self._logger)

    def close(self) -> None:
        self._context = self._contexts = None


Profile = dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
"""Input name → (least, most) shape."""


def profiles_of_plan(plan: Any) -> list[Profile]:
    return [
        {name: _ends(plan, name, index) for name in ("image", "size_like")}
        for index in range(plan.num_optimization_profiles)
    ]


def _ends(plan: Any, name: str, index: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    least, _, most = plan.get_tensor_profile_shape(name, index)
    return tuple(least), tuple(most)


def covering_profile(profiles: list[Profile], shape: BatchShape) -> int:
    """The first profile that holds a shape. Raises UserError with all of them when none does."""
    for index, profile in enumerate(profiles):
        if _covers(profile, shape):
            return index
    raise UserError(
        "the plan was not built for this shape",
        seen=f"images {shape.images}, masks {shape.mask_size}",
        expected=_ranges(profiles),
        hint="unetrt build … --size HxW..HxW --batch MIN,OPT,MAX   adds a profile",
    )


def _ranges(profiles: list[Profile]) -> str:
    return "; or ".join(
        ", ".join(f"{name} {least} to {most}" for name, (least, most) in profile.items())
        for profile in profiles
    )


def _covers(profile: Profile, shape: BatchShape) -> bool:
    wanted = {"image": shape.images, "size_like": shape.mask_size}
    return all(_within(wanted[name], *profile[name]) for name in wanted)


def _within(shape: tuple[int, ...], least: tuple[int, ...], most: tuple[int, ...]) -> bool:
    return all(low <= side <= high for low, side, high in zip(least, shape, most, strict=True))


def check_target(directory: Path, manifest: Manifest, device: str) -> None:
    """Raise UserError for a missing GPU, another version or a GPU that was not built for."""
    hint = REBUILD_HERE.format(directory, manifest.backend)
    if not cuda_devices() or device == "cpu":
        raise UserError(
            f"{directory} holds a {manifest.backend} plan: it runs on an NVIDIA GPU",
            seen=f"{cuda_devices()} CUDA devices, --device {device}",
            hint="unetrt build CHECKPOINT -o OTHER_DIR --backend openvino   builds for this CPU",
        )
    trt = import_flavour(manifest.backend)
    version = trt.__version__
    if version != manifest.backend_version and not manifest.target.get("version_compatible"):
        raise UserError(
            f"{directory} was built by another {manifest.backend}",
            seen=f"{version} here",
            expected=manifest.backend_version,
            hint=hint,
        )
    here = capability_of(cuda_index(device))
    if not _is_target(manifest, here):
        raise UserError(
            f"{directory} was not built for this GPU",
            seen=here,
            expected=", ".join(manifest.target["compute_capabilities"]),
            hint=f"{hint}; or --target {here}" if hasattr(trt, "ComputeCapability") else hint,
        )


def check_gpu(directory: Path, manifest: Manifest, cuda: CudaDevice) -> None:
    """Raise UserError for a driver of an older CUDA; warn of what is else not as at the build."""
    built, here = manifest.target.get("gpu") or {}, _gpu_of(cuda)
    if not built:
        return
    if _numbers(here["driver"])[0] < _numbers(built["driver"])[0]:
        raise UserError(
            f"{directory} was built under a newer driver",
            seen=f"CUDA {here['driver']} on {here['name']}",
            expected=f"CUDA {built['driver']}, as on {built['name']}",
            hint=REBUILD_HERE.format(directory, manifest.backend),
        )
    older = _numbers(here["driver"]) < _numbers(built["driver"])
    if older or here["name"] != built["name"]:
        log.warning(
            "%s was built on %s under CUDA %s; here is %s under CUDA %s: it may be slower here",
            *(directory, built["name"], built["driver"], here["name"], here["driver"]),
        )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))
