"""config.pbtxt of a model in a Triton repository, in Triton's own protobuf schema."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..contract.errors import UserError
from ..contract.headers import MAX_PIXELS
from ..contract.modules import import_module
from ..engine.manifest import GoldenCase, Manifest

SCHEMA = "tritonclient.grpc.model_config_pb2"
HEADER = (
    "# Written by unetrt triton: a change here is refused to be overwritten without --replace.\n"
)
ANY = -1
KINDS = {"tensorrt": ("gpu",), "onnxruntime": ("cpu", "gpu"), "openvino": ("cpu",)}
"""Where Triton's backends run our engines, the default first."""

DEFAULT_BATCH = 8


@dataclass(frozen=True, kw_only=True)
class TritonOptions:
    """How an engine is served.

    instances: of each engine, on each device. kind: "cpu", "gpu", or "auto" for the engine's own.
    max_batch: images that requests are merged to; None takes the plan's most. delay: microseconds
    that a request waits for others.
    """

    instances: int = 1
    kind: str = "auto"
    max_batch: int | None = None
    delay: int = 1000


def engine_config(
    name: str, manifest: Manifest, golden: list[GoldenCase], options: TritonOptions
) -> Any:
    """The engine as it is: images of any number and size that it was built for, no batching.

    Its second input has no batch dimension, which Triton's batcher would need.
    """
    schema = _schema()
    config = schema.ModelConfig(
        name=name, max_batch_size=0, default_model_filename=manifest.model, **_runtime(manifest)
    )
    channels = manifest.spec.channels
    _add(config.input, "image", schema.TYPE_UINT8, [ANY, ANY, ANY, channels])
    _add(config.input, "size_like", schema.TYPE_UINT8, [ANY, ANY])
    _add(config.output, "mask", schema.TYPE_UINT8, [ANY, ANY, ANY])
    group = config.instance_group.add(count=options.instances)
    group.kind = getattr(schema.ModelInstanceGroup, f"KIND_{_kind(manifest, options).upper()}")
    group.profile.extend(str(i) for i in range(len(manifest.profiles)))
    for key, value in _parameters(manifest).items():
        config.parameters[key].string_value = value
    for image, size in _warm_shapes(manifest, golden):
        _add_warmup(config, schema, image, size)
    return config


def batcher_config(name: str, engine: str, manifest: Manifest, options: TritonOptions) -> Any:
    """What clients call: one image and its mask's size a row, merged by Triton's batcher."""
    schema = _schema()
    config = schema.ModelConfig(
        name=name, backend="python", max_batch_size=max_batch(manifest, options)
    )
    _add(config.input, "image", schema.TYPE_UINT8, [ANY, ANY, manifest.spec.channels])
    _add(config.input, "size", schema.TYPE_INT32, [2])
    _add(config.output, "mask", schema.TYPE_UINT8, [ANY, ANY])
    config.dynamic_batching.max_queue_delay_microseconds = options.delay
    # One runs the engine while the other puts the next batch together.
    config.instance_group.add(count=options.instances + 1, kind=schema.ModelInstanceGroup.KIND_CPU)
    parameters = {
        "engine": engine,
        "min_batch": str(_batches(manifest)[0]),
        "max_pixels": str(MAX_PIXELS),
        "unetrt.spec": manifest.spec.to_json(),
        "unetrt.precision": manifest.precision,
    }
    for key, value in parameters.items():
        config.parameters[key].string_value = value
    return config


def text_from_config(config: Any) -> str:
    text: str = import_module("google.protobuf.text_format").MessageToString(config)
    return HEADER + text


def max_batch(manifest: Manifest, options: TritonOptions) -> int:
    """Raise UserError for more images than the plan was built for."""
    least, most = _batches(manifest)
    wanted = options.max_batch or most
    if wanted < least or (manifest.profiles and wanted > most):
        raise UserError(
            "the engine was not built for such batches",
            seen=f"--max-batch {wanted}",
            expected=f"{least} to {most}",
            hint=f"unetrt build CHECKPOINT -o ENGINE_DIR --batch 1,{wanted},{wanted}",
        )
    return wanted


def _schema() -> Any:
    # Without grpc, tritonclient raises what is no ImportError.
    import_module("grpc")
    return import_module(SCHEMA)


def _add(tensors: Any, name: str, data_type: int, dims: list[int]) -> None:
    tensors.add(name=name, data_type=data_type, dims=dims)


def _runtime(manifest: Manifest) -> dict[str, str]:
    if manifest.backend == "tensorrt":
        return {"platform": "tensorrt_plan", "backend": "tensorrt"}
    return {"backend": manifest.backend}


def _kind(manifest: Manifest, options: TritonOptions) -> str:
    kinds = KINDS[manifest.backend]
    if options.kind not in ("auto", *kinds):
        raise UserError(
            f"Triton does not run {manifest.backend} engines on a {options.kind}",
            seen=f"--kind {options.kind}",
            expected=" or ".join(kinds),
            hint="unetrt build CHECKPOINT -o ENGINE_DIR --backend "
            + ("onnxruntime" if options.kind == "cpu" else "tensorrt"),
        )
    return kinds[0] if options.kind == "auto" else options.kind


def _parameters(manifest: Manifest) -> dict[str, str]:
    """OpenVINO computes in bf16 where the processor has it; its backend has no word for fp32."""
    if manifest.backend != "openvino":
        return {}
    if manifest.precision == "fp32":
        raise UserError(
            "Triton's OpenVINO backend cannot be told to compute in fp32",
            seen="an openvino fp32 engine",
            expected="openvino bf16 or int8, or an onnxruntime engine",
            hint="unetrt build CHECKPOINT -o ENGINE_DIR --backend onnxruntime",
        )
    return {"HINT_BF16": "YES"}


def _batches(manifest: Manifest) -> tuple[int, int]:
    """(fewest, most) images a run that every profile takes."""
    if not manifest.profiles:
        return 1, DEFAULT_BATCH
    triples = [profile["image"] for profile in manifest.profiles]
    return max(least[0] for least, _, _ in triples), min(most[0] for _, _, most in triples)


def _warm_shapes(
    manifest: Manifest, golden: list[GoldenCase]
) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """(image, mask size): what each profile is tuned for, else the golden images' own."""
    if manifest.profiles:
        found = [(tuple(p["image"][1]), tuple(p["size_like"][1])) for p in manifest.profiles]
    else:
        found = [((1, *case.image.shape), case.size) for case in golden]
    return list(dict.fromkeys(found))


def _add_warmup(config: Any, schema: Any, image: tuple[int, ...], size: tuple[int, ...]) -> None:
    name = "x".join(map(str, image[:3]))
    warmup = config.model_warmup.add(name=f"{name} to {size[0]}x{size[1]}", batch_size=1)
    for key, dims in (("image", image), ("size_like", size)):
        entry = warmup.inputs[key]
        entry.data_type = schema.TYPE_UINT8
        entry.dims.extend(dims)
        if key == "image":
            entry.random_data = True
        else:
            entry.zero_data = True
