"""The whole chain on pictures that it draws itself: train, export, build, predict, bench, look."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..contract.errors import UserError
from ..contract.files import BEST
from ..contract.images import read_image
from ..contract.log import log
from ..contract.masks import class_indices, read_mask
from ..contract.spec import ModelSpec, SpecOverrides
from ..contract.types import U8
from ..engine.open import open_engine
from ..export.build import BuildOptions, build_engine
from ..export.gate import GateOptions
from ..export.onnx_export import export_checkpoint
from ..runtime.evaluate import Evaluation, evaluate_engine
from ..runtime.plan import plan_tasks
from ..runtime.predict import PredictOptions, predict_masks
from ..runtime.viz import coloured_mask
from ..training.options import RECIPES, TrainOptions
from ..training.rundir import CURVE, LAST, METRICS
from ..training.synthetic import CLASS_NAMES, write_dataset
from ..training.train import train
from .report_files import report_stem, write_report
from .result import Bench
from .table import BenchOptions, bench_models

SIDE = 128
DRAWN = "steel-[0-9][0-9][0-9][0-9][0-9].png"
"""What write_dataset calls its pictures."""
SHOWN = 4
"""Rows of the picture."""


@dataclass(frozen=True)
class DemoOptions:
    """Sizes that a laptop finishes in minutes, and that learn."""

    train_pairs: int = 320
    test_pairs: int = 60
    width: int = 8
    epochs: int = 14
    batch_size: int = 4
    crop: int = 80
    learning_rate: float = 5e-3
    seed: int = 0
    bench: bool = True


@dataclass(frozen=True)
class DemoResult:
    """Scores on fresh pictures, the bench, and the picture of image, truth and masks."""

    pytorch: Evaluation
    engine: Evaluation
    bench: Bench | None
    picture: Path


def run_demo(folder: Path, options: DemoOptions, command: str) -> DemoResult:
    """Fill `folder` with data, checkpoint, ONNX file, engine, masks, report and picture.

    What an earlier demo left there is written over. Raises UserError where pictures of somebody's
    own would be among those that are drawn.
    """
    _require_own(folder)
    if (folder / "train" / "imgs" / "steel-00000.png").exists():
        for name in (BEST, LAST, METRICS, CURVE):  # training never writes over another run
            (folder / "run" / name).unlink(missing_ok=True)
    with _step("draw pictures of steel with three kinds of defects"):
        train_data = write_dataset(
            folder / "train", options.train_pairs, (SIDE, SIDE), options.seed
        )
        images, masks = write_dataset(
            folder / "test", options.test_pairs, (SIDE, SIDE), options.seed + 1
        )
    with _step("train"):
        checkpoint = train(_train_options(folder, train_data, options))
    with _step("export"):
        export_checkpoint(checkpoint, folder / "model.onnx", "fp32", SpecOverrides())
    engine_folder = folder / "engine"
    with _step("build an engine and judge its masks"):
        gate = GateOptions(images=images, masks=masks)
        built = build_engine(checkpoint, engine_folder, BuildOptions(gate=gate))
        log.info("%s: %.4f%% of the pixels equal", built.why, 100 * built.gate.agreement)
    with _step("predict"):
        _predict(checkpoint, images, folder / "masks-pytorch")
        _predict(engine_folder, images, folder / "masks-engine")
    with _step("evaluate on pictures that the network has not seen"):
        scores = [_evaluate(model, images, masks) for model in (checkpoint, engine_folder)]
    bench = None
    if options.bench:
        with _step("bench"):
            bench_options = BenchOptions(images=images, seconds=0.5, repeats=3)
            bench = bench_models([checkpoint, engine_folder], bench_options)
            write_report(bench, folder / "report", command, report_stem(bench))
    picture = folder / "demo.png"
    folders = [images, masks, folder / "masks-pytorch", folder / "masks-engine"]
    _draw_picture(folders, built.manifest.spec, picture)
    return DemoResult(scores[0], scores[1], bench, picture)


def _require_own(folder: Path) -> None:
    for kind in ("imgs", "masks"):
        for path in (p for part in ("train", "test") for p in folder.glob(f"{part}/{kind}/*")):
            if not path.match(DRAWN) and not path.name.startswith("."):
                raise UserError(
                    f"the demo would draw its pictures among those of {path.parent}",
                    seen=path,
                    expected="a new folder, or one of an earlier demo",
                    hint="unetrt demo --out demo-2",
                )


def _train_options(folder: Path, data: tuple[Path, Path], options: DemoOptions) -> TrainOptions:
    return TrainOptions(
        images=data[0],
        masks=data[1],
        channels=1,
        classes=len(CLASS_NAMES),
        class_names=CLASS_NAMES,
        width=options.width,
        scale=1.0,
        crop=options.crop,
        recipe=replace(
            RECIPES["modern"],
            epochs=options.epochs,
            batch_size=options.batch_size,
            learning_rate=options.learning_rate,
        ),
        seed=options.seed,
        out=folder / "run",
    )


def _predict(model: Path, images: Path, output_dir: Path) -> None:
    with open_engine(model) as engine:
        predict_masks(engine, plan_tasks([str(images)], output_dir=output_dir), PredictOptions())


def _evaluate(model: Path, images: Path, masks: Path) -> Evaluation:
    with open_engine(model) as engine:
        return evaluate_engine(engine, images, masks)


@contextmanager
def _step(what: str) -> Iterator[None]:
    start = time.monotonic()
    log.info("demo: %s", what)
    yield
    log.info("demo: done in %.1f s", time.monotonic() - start)


def _draw_picture(folders: list[Path], spec: ModelSpec, path: Path) -> None:
    """Image, truth, PyTorch's mask, the engine's mask; the pictures with most classes first."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    stems = _most_varied(folders[1], spec)
    titles = ("image", "truth", "PyTorch", "engine")
    height = 2 * len(stems) + 0.3
    figure, axes = pyplot.subplots(
        len(stems), 4, figsize=(8, height), layout="constrained", squeeze=False
    )
    for row, stem in zip(axes, stems, strict=True):
        panels = [read_image(next(folders[0].glob(f"{stem}.*")), 3)]
        panels += [coloured_mask(_indices(folder / f"{stem}.png", spec)) for folder in folders[1:]]
        for axis, panel, title in zip(row, panels, titles, strict=True):
            axis.imshow(panel)
            axis.set_title(title if stem == stems[0] else "")
            axis.axis("off")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _most_varied(masks: Path, spec: ModelSpec) -> list[str]:
    paths = sorted(masks.iterdir())
    counts = {path.stem: -len(np.unique(_indices(path, spec))) for path in paths}
    return sorted(counts, key=lambda stem: counts[stem])[:SHOWN]


def _indices(path: Path, spec: ModelSpec) -> U8:
    return class_indices(read_mask(path), spec, path)
