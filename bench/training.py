"""Whether loading starves training: the loop against its own steps without any loading.

python -m unetrt.bench.training --images DIR --masks DIR --classes 4 --channels 1 --width 16
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from ..contract.errors import UserError
from ..contract.files import ARRAY
from ..training.batches import Batch, Batches, batch_options
from ..training.masknet import MaskNet
from ..training.optim import optimizer_from_recipe
from ..training.options import RECIPES, TrainOptions
from ..training.ranks import Ranks
from ..training.samples import Sample, TrainingData, load_training_data
from ..training.step import StepOptions, Stepper, amp_dtype
from ..training.train import device_from_name
from ..training.unet import UNet
from ..training.weights import loss_from_recipe
from .machine import describe_bench_machine
from .text import print_lines

IN_MEMORY = "one batch, held in memory"
LOOP = "the loop of unetrt train"
REFERENCE = "Pytorch-UNet's loading"


@dataclass(frozen=True)
class TrainingRow:
    """images_per_second: median of the repeats; ratio: median of each repeat's to IN_MEMORY."""

    name: str
    images_per_second: float
    ratio: float


class ReferenceSamples(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Files as Pytorch-UNet reads them: each time anew, resized by Pillow, no augmentation.

    What it does beyond that (floats from the workers) is left out, in its favour.
    """

    def __init__(self, samples: Sequence[Sample]) -> None:
        self._samples = samples

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        sample = self._samples[index]
        height, width = sample.input_size
        image = self._image(sample).resize((width, height), Image.Resampling.BICUBIC)
        with Image.open(sample.pair.mask) as file:
            mask = np.asarray(file.resize((width, height), Image.Resampling.NEAREST))
        truth = np.zeros((height, width), np.int64)
        for position, value in enumerate(sample.spec.mask_values):
            truth[mask == value] = position
        pixels = np.array(image).reshape(height, width, sample.spec.channels)
        return torch.from_numpy(pixels), torch.from_numpy(truth)

    @staticmethod
    def _image(sample: Sample) -> Image.Image:
        if sample.pair.image.suffix.lower() == ARRAY:
            return Image.fromarray(np.load(sample.pair.image))
        with Image.open(sample.pair.image) as file:
            return file.convert({1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[sample.spec.channels])


def measure_training(options: TrainOptions, seconds: float, repeats: int) -> list[TrainingRow]:
    """Time the same steps on three sources of batches, in turn, `repeats` times each."""
    if options.channels > 4:
        raise UserError("the reference's loader has no more than 4 channels", seen=options.channels)
    data = load_training_data(options, None)
    stepper = _stepper(options, data)
    sources = _sources(options, data)
    rates: dict[str, list[float]] = {name: [] for name in sources}
    for _ in range(repeats):
        for name, batches in sources.items():
            rates[name].append(_rate(stepper, batches, seconds))
    return [
        TrainingRow(
            name,
            statistics.median(found),
            statistics.median(np.divide(found, rates[IN_MEMORY]).tolist()),
        )
        for name, found in rates.items()
    ]


def _stepper(options: TrainOptions, data: TrainingData) -> Stepper:
    torch.manual_seed(options.seed)
    spec, device = data.spec, device_from_name(options.device)
    net = UNet(spec.channels, spec.classes, spec.width, spec.bilinear).train().to(device)
    net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    step_options = StepOptions(
        loss=loss_from_recipe(options.recipe, spec, data.train),
        amp=amp_dtype(device) if options.amp else None,
    )
    optimizer = optimizer_from_recipe(net.parameters(), options.recipe)
    return Stepper(net, MaskNet(net, spec), optimizer, step_options, Ranks())


def _sources(options: TrainOptions, data: TrainingData) -> dict[str, Callable[[], Iterator[Batch]]]:
    batches = Batches(data.train, batch_options(options, device_from_name(options.device)))
    held = next(batches.epoch(0))
    files = DataLoader(
        ReferenceSamples(data.train),
        batch_size=options.recipe.batch_size,
        shuffle=True,
        num_workers=os.cpu_count() or 1,
    )

    def once_more() -> Iterator[Batch]:
        while True:
            yield held

    return {
        IN_MEMORY: once_more,
        LOOP: partial(_endless, batches.epoch),
        REFERENCE: partial(_endless, lambda _: (Batch(i, t, []) for i, t in files)),
    }


def _endless(epoch: Callable[[int], Iterator[Batch]]) -> Iterator[Batch]:
    number = 0
    while True:
        yield from epoch(number)
        number += 1


def _rate(stepper: Stepper, source: Callable[[], Iterator[Batch]], seconds: float) -> float:
    """Images/s after one step that is not counted: it starts what loads ahead."""
    batches = source()
    stepper.step(next(batches))
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        batch = next(batches)
        stepper.step(batch)  # ends with the loss on the host, so that nothing is left queued
        count += len(batch.images)
    return count / (time.perf_counter() - start)


def _options(args: argparse.Namespace) -> TrainOptions:
    return TrainOptions(
        images=args.images,
        masks=args.masks,
        classes=args.classes,
        channels=args.channels,
        width=args.width,
        scale=args.scale,
        amp=args.amp,
        ignore_index=args.ignore_index,
        recipe=replace(RECIPES[args.recipe], batch_size=args.batch_size),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; exit status 2 where it could not be measured."""
    parser = argparse.ArgumentParser(prog="python -m unetrt.bench.training", description=__doc__)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--masks", type=Path, required=True)
    for name, default in (("classes", 2), ("channels", 3), ("width", 64), ("batch-size", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--ignore-index", type=int)
    parser.add_argument("--scale", type=float, default=0.5)
    parser.add_argument("--recipe", choices=sorted(RECIPES), default="reference")
    parser.add_argument("--amp", action="store_true")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args(arguments)
    if args.repeats < 1:
        parser.error(f"argument --repeats: {args.repeats}, not at least 1")
    if args.seconds <= 0:
        parser.error(f"argument --seconds: {args.seconds:g}, not above 0")

    def measure() -> list[str]:
        rows = measure_training(_options(args), args.seconds, args.repeats)
        machine = describe_bench_machine()
        told = [f"{key}: {machine[key]}" for key in sorted(machine)]
        return told + [
            f"{row.name:28}{row.images_per_second:8.1f} images/s  {row.ratio:.3f}" for row in rows
        ]

    return print_lines(parser.prog, measure)


if __name__ == "__main__":
    sys.exit(main())
