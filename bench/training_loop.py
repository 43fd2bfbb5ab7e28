"""The loop of training and its own steps without any loading, timed in turn."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from ..contract.errors import UserError
from ..contract.files import ARRAY
from ..training.batches import Batch, Batches, batch_options
from ..training.options import TrainOptions
from ..training.ranks import Ranks
from ..training.report import Reporter
from ..training.rundir import RunFolder
from ..training.samples import Sample, TrainingData, load_training_data
from ..training.threads import limit_threads
from ..training.train import device_from_name
from ..training.trainer import Trainer
from ..training.unet import UNet

ENDLESS = 1_000_000
"""Epochs: a run is never at its rate's end, however long it is timed."""
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
    limit_threads()
    data = load_training_data(options, None)
    sources = _sources(options, data)
    rates: dict[str, list[float]] = {name: [] for name in sources}
    with TemporaryDirectory() as folder:  # written to where numbers are not finite
        trainer = _trainer(options, data, Path(folder))
        for _ in range(repeats):
            for name, batches in sources.items():
                rates[name].append(_rate(trainer, batches, seconds))
    return [
        TrainingRow(
            name,
            statistics.median(found),
            statistics.median(np.divide(found, rates[IN_MEMORY]).tolist()),
        )
        for name, found in rates.items()
    ]


def _trainer(options: TrainOptions, data: TrainingData, out: Path) -> Trainer:
    """Whose step is that of `unetrt train`: with the average of weights, their check, the rate."""
    torch.manual_seed(options.seed)
    spec, device = data.spec, device_from_name(options.device)
    net = UNet(spec.channels, spec.classes, spec.width, spec.bilinear).train().to(device)
    options = replace(options, recipe=replace(options.recipe, epochs=ENDLESS))
    folder = RunFolder(out)
    return Trainer(options, data, net, folder, Reporter(folder, data, None), Ranks())


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


def _rate(trainer: Trainer, source: Callable[[], Iterator[Batch]], seconds: float) -> float:
    """Images/s after one step that is not counted: it starts what loads ahead."""
    batches = source()
    trainer.train_step(next(batches))
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        batch = next(batches)
        trainer.train_step(batch)  # ends with the loss on the host, so that nothing is left queued
        count += len(batch.images)
    return count / (time.perf_counter() - start)
