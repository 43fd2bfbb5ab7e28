"""unetrt build: a checkpoint or ONNX file to an engine directory, published past its gate."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..contract.log import log
from .shared import (
    WHOLE_COPY,
    add_bit_depth_argument,
    add_override_arguments,
    images,
    local,
    model_path,
    names,
    overrides_from_args,
    positive,
    share,
    size,
    wrong,
)

if TYPE_CHECKING:
    from ..export.borders import BorderGate
    from ..export.build import Built
    from ..export.gate import ClassGate, GateOptions, GateResult
    from ..export.tensorrt_build import PlanOptions


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", type=model_path, metavar="CHECKPOINT|ONNX")
    output = local("an engine is written to a folder", WHOLE_COPY)
    add("-o", "--output", type=output, required=True, metavar="ENGINE_DIR")
    backends = ("auto", "openvino", "onnxruntime", "torch", "tensorrt", "tensorrt-rtx")
    add("--backend", choices=backends, default="auto", help="default: the fastest that runs here")
    precisions = ("auto", "fp16", "bf16", "fp32", "int8")
    help_text = "default: fp16 for TensorRT and PyTorch, bf16 or fp32 for the others, never int8"
    add("--precision", choices=precisions, default="auto", help=help_text)
    add("--calibration", type=images, metavar="DIR", help="pictures to measure int8 ranges on")
    add(
        "--fp32-blocks",
        type=blocks,
        metavar="auto|none|NAME,…",
        help="what stays in fp32 in an fp16 engine (default: auto, what the gate needs)",
    )
    add("--result", choices=("mask", "prob"), default="mask", help="prob: probabilities as uint8")
    add_gate_arguments(parser)
    add("--rebuild", action="store_true", help="also when the engine is up to date")
    add("--batch", type=batches, metavar="MIN,OPT,MAX", help="TensorRT only (default: 1,4,8)")
    add(
        "--size",
        type=size_range,
        action="append",
        default=[],
        metavar="HxW[..HxW]",
        help="TensorRT only: a profile each",
    )
    add("--sizes-from", type=images, metavar="DIR", help="TensorRT only: profiles for its images")
    add("--workspace", type=positive, metavar="MIB", help="TensorRT only: memory of a layer")
    add("--opt-level", type=int, choices=range(6), help="TensorRT only: 5 searches longest")
    cache = local("a timing cache is kept in a file")
    add("--timing-cache", type=cache, metavar="FILE", help="TensorRT only: shared by builds")
    add("--hardware-compatibility", choices=("none", "same-cc", "ampere+"), default="none")
    add("--version-compatible", action="store_true", help="TensorRT only: for later versions too")
    add("--refittable", action="store_true", help="TensorRT only: for unetrt refit")
    add("--verbose", action="store_true", help="TensorRT only: its whole log, on stderr")
    add("--target", type=names, default=(), metavar="sm89,…", help="TensorRT-RTX only")
    add_override_arguments(parser)
    add_bit_depth_argument(parser)


def add_gate_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--gate-images", type=images, metavar="DIR", help="pictures to judge the masks on")
    add("--gate-masks", type=images, metavar="DIR", help="their truth")
    add("--min-agreement", type=share, help="share of pixels equal to PyTorch's")
    add("--min-class-iou", type=share, help="of each class, between its masks and PyTorch's")
    help_text = "of any class against --gate-masks (default: 0.01)"
    add("--max-iou-drop", type=share, help=help_text)
    add("--force", action="store_true", help="publish an engine that fails its gate")


def run(args: argparse.Namespace) -> int:
    from ..export.build import BuildOptions, build_engine

    if args.verbose:
        log.setLevel(logging.DEBUG)
    options = BuildOptions(
        backend=args.backend,
        precision=args.precision,
        overrides=overrides_from_args(args, args.bit_depth),
        calibration=args.calibration,
        rebuild=args.rebuild,
        fp32_blocks=args.fp32_blocks,
        gate=gate_options(args),
        plan=_plan_options(args),
        typed=_typed(args),
    )
    with failed_gate_shown():
        built = build_engine(args.model, args.output, options)
    sys.stdout.write(_summary(args.output, built))
    return 0


def gate_options(args: argparse.Namespace) -> GateOptions:
    """What add_gate_arguments was given. Raises UserError for masks without their images."""
    from ..contract.errors import UserError
    from ..export.gate import GateOptions

    if args.gate_masks and not args.gate_images:
        raise UserError(
            "--gate-masks goes with --gate-images",
            seen="no --gate-images",
            expected="both, or neither",
            hint="--gate-images DIR --gate-masks DIR",
        )
    if args.max_iou_drop is not None and not args.gate_masks:
        raise UserError(
            "--max-iou-drop is measured against the truth",
            seen="no --gate-masks",
            hint="--gate-images DIR --gate-masks DIR, or --min-class-iou",
        )
    return GateOptions(
        images=args.gate_images,
        masks=args.gate_masks,
        min_agreement=args.min_agreement,
        min_class_iou=args.min_class_iou,
        max_iou_drop=GateOptions.max_iou_drop if args.max_iou_drop is None else args.max_iou_drop,
        force=args.force,
    )


def _plan_options(args: argparse.Namespace) -> PlanOptions:
    from ..export.profiles import SizeRange, ranges_from_images
    from ..export.tensorrt_build import PlanOptions

    ranges = [SizeRange(low, high, high) for low, high in args.size]
    if args.sizes_from:
        ranges += ranges_from_images(args.sizes_from)
    ranges = list(dict.fromkeys(ranges))
    return PlanOptions(
        batch=args.batch or PlanOptions.batch,
        ranges=tuple(ranges),
        targets=tuple(dict.fromkeys(target.lower() for target in args.target)),
        workspace=args.workspace,
        opt_level=args.opt_level,
        timing_cache=args.timing_cache,
        hardware=args.hardware_compatibility,
        version_compatible=args.version_compatible,
        refittable=args.refittable,
        verbose=args.verbose,
    )


def _typed(args: argparse.Namespace) -> tuple[str, ...]:
    """Flags that not every build has a use for and whose values do not tell that they came."""
    given = {
        "--fp32-blocks": args.fp32_blocks is not None,
        "--batch": args.batch is not None,
        "--size": bool(args.size),
        "--sizes-from": args.sizes_from is not None,
    }
    return tuple(flag for flag, is_given in given.items() if is_given)


def _summary(directory: Path, built: Built) -> str:
    manifest = built.manifest
    head = f"{directory}: {manifest.backend} {manifest.backend_version} {manifest.precision}"
    if built.reused:
        head += "\nthe engine is up to date (--rebuild builds it again)"
    lines = [head, f"chosen: {built.why}"]
    if manifest.calibration:
        inputs = "{images} images ({inputs})".format(**manifest.calibration)
        lines.append(f"ranges measured on {inputs}")
    if "fp32_blocks" in manifest.precisions:
        kept, cost = manifest.precisions["fp32_blocks"], manifest.precisions["flops"]["fp32"]
        lines.append(f"in fp32: {', '.join(kept)}, {cost:.1%} of the arithmetic")
    lines += [_profile_text(profile) for profile in manifest.profiles]
    return "\n".join([*lines, gate_text(built.gate), ""])


def _profile_text(profile: dict[str, Any]) -> str:
    least, best, most = ("x".join(map(str, size)) for size in profile["size_like"])
    sizes = f"of {least}" if least == most else f"from {least} to {most}, best {best}"
    fewest, usual, largest = (shape[0] for shape in profile["image"])
    batches = f"{fewest}" if fewest == largest else f"{fewest} to {largest}, best {usual}"
    return f"profile: images {sizes}; in batches of {batches}"


@contextmanager
def failed_gate_shown() -> Iterator[None]:
    """What the gate found is shown, also when nothing is published."""
    from ..export.gate import RefusedError

    try:
        yield
    except RefusedError as error:
        sys.stdout.write(gate_text(error.result, published=False) + "\n")
        sys.stdout.flush()
        raise


def gate_text(gate: GateResult, published: bool = True) -> str:
    failed = "published by --force" if published else "nothing is published"
    verdict = {
        "passed": "the gate has passed",
        "failed": f"THE GATE HAS FAILED, {failed}",
        "graph-only": "GRAPH ONLY: the plan cannot run here, its ONNX graph was judged instead; "
        "the plan itself is judged when it is first opened on a GPU",
    }[gate.verdict]
    lines = [
        f"{verdict}",
        f"  judged on {gate.images} images ({gate.inputs}), by {gate.ran_on}",
        f"  pixels equal to those of {gate.reference}: "
        f"{gate.agreement:.4%} (at least {gate.min_agreement:.4%})",
        f"  pixels that differ: {_borders_text(gate.borders)}",
        f"  images with a NaN or an infinity: {gate.not_finite}",
    ]
    lines += [f"  {_class_text(score, gate)}" for score in gate.classes]
    if gate.unseen:
        drawn = "; these were drawn" if gate.inputs == "synthetic" else ""
        lines.append(
            f"  NOT JUDGED: {', '.join(gate.unseen)}: too few pixels{drawn}."
            " --gate-images DIR with images that hold them"
        )
    return "\n".join([*lines, *(f"  {failure}" for failure in gate.failures)])


def _class_text(score: ClassGate, gate: GateResult) -> str:
    iou = "absent" if score.iou is None else f"{score.iou:.4f}"
    if gate.min_class_iou and score.iou is not None:
        few = f"not judged: {score.pixels} pixels"
        iou += f" (at least {gate.min_class_iou})" if score.counts else f" ({few})"
    told = f"{score.name}: IoU to the masks of {gate.reference} {iou}"
    if score.iou_drop is None:
        return told
    change = round(-score.iou_drop, 4)
    shown = f"changed by {change:+.4f}" if change else "unchanged"
    return f"{told}, IoU to the truth {shown}"


def _borders_text(borders: BorderGate) -> str:
    at, inside, all_of = (
        "there are none" if part is None else f"{part:.4%}"
        for part in (borders.at_border, borders.inside, borders.share)
    )
    where = f"at most {borders.reach} px from another class, {all_of} of all"
    return f"of those at class borders ({where}) {at}, of those inside {inside}"


def batches(text: str) -> tuple[int, int, int]:
    parts = [positive(part) for part in text.split(",")]
    parts = parts * 3 if len(parts) == 1 else parts
    if len(parts) != 3 or parts != sorted(parts):
        raise wrong(text, "one number, or three that rise: 1,4,8")
    return parts[0], parts[1], parts[2]


def size_range(text: str) -> tuple[tuple[int, int], tuple[int, int]]:
    """One size is a range of its own."""
    ends = text.split("..")
    if len(ends) > 2:
        raise wrong(text, "one size or two: 200x300..400x600")
    return size(ends[0]), size(ends[-1])


def blocks(text: str) -> tuple[str, ...] | None:
    """In one order, so that the same blocks do not build twice."""
    return None if text == "auto" else () if text == "none" else tuple(sorted(set(names(text))))
