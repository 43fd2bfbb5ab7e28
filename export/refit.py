"""New weights of the same net into an engine directory, judged anew and swapped whole."""

from __future__ import annotations

from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..contract.errors import GateError, UserError, as_word
from ..contract.files import hint_of_run, sha256_from_file
from ..contract.modules import import_module
from ..contract.spec import ModelSpec
from ..engine.manifest import Manifest, read_manifest, verify_files
from ..engine.onnxfile import SOURCE_KEY, is_onnx, read_onnx
from ..engine.open import FLAGS, as_typed
from ..engine.probe import describe_device, package_version
from ..training.checkpoint import Checkpoint, read_checkpoint
from .current import request_of_gate
from .gate import GateOptions, GateResult, judged_hint
from .gate_inputs import read_gate_inputs
from .modelfile import backend_version
from .onnx_export import folded_masknet
from .profiles import ranges_from_profiles
from .publish import Draft, publish_engine
from .source import Source
from .tensorrt_refit import require_refittable, write_refitted_plan


def refit_engine(directory: Path, model: Path, gate: GateOptions) -> tuple[Manifest, GateResult]:
    """Replace the weights of `directory` by those of the checkpoint `model`.

    The directory stays as it was when anything fails. Raises UserError for another net, for
    int8 and for a plan that cannot be refitted here; GateError when the gate does not pass.
    """
    manifest = read_manifest(directory)
    verify_files(directory, manifest)
    checkpoint = None if model.is_dir() or is_onnx(model) else read_checkpoint(model)
    rebuild = _rebuild_command(directory, model, manifest, checkpoint)
    if manifest.precision == "int8":
        raise UserError(
            f"{directory} is in int8: its ranges belong to the weights they were measured with",
            hint=rebuild,
        )
    if checkpoint is None:
        raise UserError(
            f"{model} is not a checkpoint",
            seen="a folder" if model.is_dir() else "an ONNX file",
            expected="a checkpoint (.pth)",
            hint=hint_of_run(model) if model.is_dir() else rebuild,
        )
    source = _same_net(directory, model, checkpoint, manifest.spec, rebuild)
    if manifest.backend.startswith("tensorrt"):
        require_refittable(directory, manifest, rebuild)
    request = {
        **manifest.options,
        "gate": request_of_gate(gate),
        "device": describe_device(manifest.backend),
    }
    blocks = tuple(manifest.precisions.get("fp32_blocks", ()))
    write = partial(_write_refitted, directory, manifest, source)
    inputs = read_gate_inputs(source, gate)
    if manifest.profiles:
        inputs = inputs.within(ranges_from_profiles(manifest.profiles), source.spec)
    try:
        return publish_engine(directory, Draft(source, gate, request, inputs, blocks), write)
    except GateError as error:
        judged = judged_hint(inputs.kind)
        error.hint = f"{judged}{rebuild}   judges a new engine; --force publishes this one"
        raise


def _rebuild_command(
    directory: Path, model: Path, manifest: Manifest, checkpoint: Checkpoint | None
) -> str:
    """What builds the same engine of `model`."""
    words = f"{as_word(model)} -o {as_word(directory)}"
    command = f"unetrt build {words} --backend {manifest.backend}"
    calibration = " --calibration DIR" if manifest.precision == "int8" else ""
    flags = [f"--result {manifest.spec.result}"] if manifest.spec.result != "mask" else []
    blocks = manifest.options.get("fp32_blocks")
    if blocks is not None:
        flags.append(f"--fp32-blocks {','.join(blocks) or 'none'}")
    flags += _plan_flags(manifest)
    flags += _spec_flags(manifest.spec, checkpoint.spec) if checkpoint else []
    return " ".join([f"{command} --precision {manifest.precision}{calibration}", *flags])


def _plan_flags(manifest: Manifest) -> list[str]:
    """Those that make a plan of the same shapes, for the same GPUs."""
    asked = manifest.options.get("plan")
    asked = asked if isinstance(asked, dict) and manifest.profiles else {}
    found = [f"--target {','.join(asked['targets'])}"] if asked.get("targets") else []
    for profile in manifest.profiles:
        least, _, most = ("x".join(map(str, size)) for size in profile["size_like"])
        found.append(f"--size {least if least == most else f'{least}..{most}'}")
    if manifest.profiles:  # the same in each
        counts = (str(shape[0]) for shape in manifest.profiles[0]["image"])
        found.append(f"--batch {','.join(counts)}")
    for name, flag in (("workspace", "--workspace"), ("opt_level", "--opt-level")):
        found += [f"{flag} {asked[name]}"] if asked.get(name) is not None else []
    if asked.get("hardware", "none") != "none":
        found.append(f"--hardware-compatibility {asked['hardware']}")
    return found + (["--version-compatible"] if asked.get("version_compatible") else [])


def _spec_flags(engine: ModelSpec, checkpoint: ModelSpec) -> list[str]:
    """Those that give the engine's values where the checkpoint has others."""
    names = [name for name in FLAGS if name != "threshold" or engine.classes == 1]
    if engine.mask_classes != checkpoint.mask_classes:
        names.remove("mask_values")  # they would not fit its classes
    pairs = [(name, getattr(engine, name), getattr(checkpoint, name)) for name in names]
    return [f"{FLAGS[n]} {as_typed(new)}" for n, new, old in pairs if new not in (None, old)]


def _same_net(
    directory: Path, model: Path, checkpoint: Checkpoint, spec: ModelSpec, rebuild: str
) -> Source:
    """Raise UserError unless the checkpoint is a net of this spec."""
    # None is of the weights: what the graph gives, how truth and, where it is unsaid, images were
    # stored.
    depth = checkpoint.spec.bit_depth or spec.bit_depth
    asked = replace(checkpoint.spec, result=spec.result, palette=spec.palette, bit_depth=depth)
    checkpoint = replace(checkpoint, spec=asked)
    if checkpoint.bare:
        checkpoint = replace(checkpoint, spec=_completed(checkpoint.spec, spec))
    others = [
        (field.name, getattr(checkpoint.spec, field.name), getattr(spec, field.name))
        for field in fields(spec)
        if getattr(checkpoint.spec, field.name) != getattr(spec, field.name)
    ]
    if others:
        raise UserError(
            f"{model} is another net than that of {directory}",
            seen=", ".join(f"{name} {new}" for name, new, _ in others),
            expected=", ".join(f"{name} {old}" for name, _, old in others),
            hint=rebuild,
        )
    return Source(model, spec, sha256_from_file(model), "fp32", checkpoint)


def _completed(bare: ModelSpec, engine: ModelSpec) -> ModelSpec:
    """What a bare checkpoint does not say is as in the engine."""
    names = ["scale", "resize", "threshold", "ignore_index", "palette", "bit_depth"]
    if bare.classes == engine.classes:
        names.append("class_names")
        unsaid = bare.mask_values == tuple(range(bare.mask_classes))
        names += ["mask_values"] if unsaid else []
    said: dict[str, Any] = {name: getattr(engine, name) for name in names}
    return replace(bare, **said)


def _write_refitted(old: Path, manifest: Manifest, source: Source, directory: Path) -> Manifest:
    assert source.checkpoint is not None
    graph = directory / "model.onnx"
    write_reweighted(old / graph.name, graph, source.checkpoint, source.digest)
    version = backend_version(manifest.backend)
    if manifest.backend.startswith("tensorrt"):
        write_refitted_plan(old, manifest, graph)
        version = manifest.backend_version
    return replace(
        manifest,
        source={"name": source.path.name, "sha256": source.digest},
        backend_version=version,
        made_by=f"unetrt {package_version('unetrt')}",
    )


def write_reweighted(source: Path, target: Path, checkpoint: Checkpoint, digest: str) -> None:
    """Write an ONNX file of ours again with the checkpoint's weights, BatchNorm folded.

    Each keeps its name, its shape and the precision that the file has it in; what is not a
    weight of the network stays. Raises UserError where the file lacks one of them.
    """
    onnx = import_module("onnx")
    model = read_onnx(source)
    places = {value.name: value for value in model.graph.initializer}
    for name, tensor in folded_masknet(checkpoint).state_dict().items():
        place = places.get(name)
        if place is None or tuple(place.dims) != tuple(tensor.shape):
            raise UserError(
                f"{source} has no weights in the form of this net",
                seen=f"{name}: {'missing' if place is None else list(place.dims)}",
                expected=list(tensor.shape),
                hint="unetrt build CHECKPOINT -o ENGINE_DIR   makes a new engine",
            )
        kind = onnx.helper.tensor_dtype_to_np_dtype(place.data_type)
        with np.errstate(over="ignore"):  # the gate sees what fp16 does not hold
            weights = tensor.numpy().astype(kind)
        place.CopyFrom(onnx.numpy_helper.from_array(weights, name))
    entries = {entry.key: entry.value for entry in model.metadata_props} | {SOURCE_KEY: digest}
    onnx.helper.set_model_props(model, entries)
    onnx.checker.check_model(model)
    target.write_bytes(model.SerializeToString())
