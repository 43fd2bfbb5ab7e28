"""Damaged image files through the whole pipeline: each costs itself alone, and nothing hangs."""

from __future__ import annotations

import io
import random
import struct
import threading
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from tests.runtime.conftest import ThresholdEngine
from tests.runtime.encodings import ENCODINGS, encoded
from unetrt.contract.types import U8
from unetrt.runtime.journal import JournalOptions
from unetrt.runtime.pipeline import PipelineOptions
from unetrt.runtime.plan import Task
from unetrt.runtime.predict import PredictOptions, Summary, predict_masks

GOOD_EVERY = 4
WALL_SECONDS = 240.0


class BrightEngine(ThresholdEngine):
    """Every pixel by its own brightness: a mask tells whose image it was made of."""

    def infer(self, images: U8, masks: U8) -> None:
        masks[:] = images[..., 0] >> 7


Mutation = Callable[[bytes, random.Random], bytes]


def cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def flip_bits(data: bytes, rng: random.Random) -> bytes:
    flipped = bytearray(data)
    for _ in range(rng.choice((1, 2, 8, 40))):
        flipped[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(flipped)


def edit_header(data: bytes, rng: random.Random) -> bytes:
    """Numbers that a size, a count or an offset may be, among the first bytes."""
    edited = bytearray(data)
    for _ in range(rng.choice((1, 2, 4))):
        at = rng.randrange(min(len(data), 120))
        value = rng.choice((0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, len(data)))
        width = rng.choice((1, 2, 4))
        order = rng.choice(("little", "big"))
        edited[at : at + width] = (value % (1 << 8 * width)).to_bytes(width, order)  # type: ignore[arg-type]
    return bytes(edited[: len(data)])


def swap_blocks(data: bytes, rng: random.Random) -> bytes:
    a, b, c, d = sorted(rng.randrange(len(data) + 1) for _ in range(4))
    return data[:a] + data[c:d] + data[b:c] + data[a:b] + data[d:]


def repeat_block(data: bytes, rng: random.Random) -> bytes:
    a, b = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    return data[:b] + data[a:b] * rng.choice((1, 2, 50)) + data[b:]


def drop_block(data: bytes, rng: random.Random) -> bytes:
    a, b = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    return data[:a] + data[b:]


def edit_chunks(data: bytes, rng: random.Random) -> bytes:
    """PNG: bits of a chunk, its checksum made to fit; of other kinds, the bits alone."""
    if not data.startswith(b"\x89PNG"):
        return flip_bits(data, rng)
    chunks, at = [], 8
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        chunks.append(data[at + 4 : at + 8 + length])
        at += 12 + length
    place = rng.randrange(len(chunks))
    chunks[place] = chunks[place][:4] + flip_bits(chunks[place][4:] or b"\0", rng)
    if rng.random() < 0.3:
        rng.shuffle(chunks)
    packed = (struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks)
    return data[:8] + b"".join(packed)


MUTATIONS: tuple[Mutation, ...] = (
    cut,
    flip_bits,
    edit_header,
    swap_blocks,
    repeat_block,
    drop_block,
    edit_chunks,
)


def write_files(folder: Path, count: int) -> tuple[list[Path], list[Path]]:
    """Damaged pictures of every encoding and every mutation, and whole ones among them."""
    rng, damaged, whole = random.Random(5), [], []
    folder.mkdir()
    originals = [encoded(index) for index in range(6 * len(ENCODINGS))]
    for index in range(count):
        suffix, data = originals[index % len(originals)]
        mutation = MUTATIONS[index % len(MUTATIONS)]
        path = folder / f"{index:05}-{mutation.__name__}{suffix}"
        path.write_bytes(mutation(data, rng))
        damaged.append(path)
        if index % GOOD_EVERY == 0:
            suffix, data = originals[(7 * index) % len(originals)]
            path = folder / f"{index:05}-whole{suffix}"
            path.write_bytes(data)
            whole.append(path)
    return damaged, whole


def grey_of(path: Path) -> U8:
    """Pixels as Pillow alone has them, (H, W); it raises for what it cannot read whole."""
    with warnings.catch_warnings(), Image.open(io.BytesIO(path.read_bytes())) as picture:
        warnings.simplefilter("ignore")
        picture.load()
        if picture.mode.startswith("I"):
            high = (np.asarray(picture) >> 8).astype(np.uint8)
            return np.asarray(ImageOps.exif_transpose(Image.fromarray(high)))
        return np.asarray(ImageOps.exif_transpose(picture).convert("RGB").convert("L"))


def check_mask(source: Path, out: Path) -> None:
    """A file that is read in spite of its damage: its mask is that of what Pillow reads in it."""
    mask = np.asarray(Image.open(out / f"{source.stem}.png").convert("L")) > 0
    grey = grey_of(source)
    assert mask.shape == grey.shape, source
    sure = np.abs(grey.astype(int) - 128) > 2  # decoders round colours to grey in two ways
    assert np.array_equal(mask[sure], grey[sure] >= 128), source


def predict(sources: list[Path], out: Path) -> Summary:
    """The summary; fails when the job raises or takes too long."""
    tasks = [
        Task(path, out / f"{path.stem}.png", out / "look" / f"{path.stem}.jpg") for path in sources
    ]
    options = PredictOptions(
        journal=JournalOptions(output_dir=out, model="m"),
        pipeline=PipelineOptions(batch=4, load_threads=2),
    )
    found: list[Summary | BaseException] = []

    def work() -> None:
        try:
            with BrightEngine() as engine:
                found.append(predict_masks(engine, tasks, options))
        except BaseException as error:  # noqa: BLE001  handed to the test
            found.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(WALL_SECONDS)
    assert not thread.is_alive(), "the job hangs"
    if isinstance(found[0], BaseException):
        raise found[0]
    return found[0]


def check_fuzz(tmp_path: Path, count: int) -> Summary:
    damaged, whole = write_files(tmp_path / "in", count)
    among = predict(sorted(damaged + whole), tmp_path / "among")
    alone = predict(whole, tmp_path / "alone")
    assert (alone.done, alone.failed) == (len(whole), 0)
    assert among.planned == among.done + among.failed == len(damaged) + len(whole)
    failed = {failure["input"] for failure in among.failures}
    assert not failed & set(map(str, whole))
    assert all(failure["reason"] for failure in among.failures)
    for path in whole:
        name = f"{path.stem}.png"
        assert (tmp_path / "among" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()
    for path in damaged:
        assert (tmp_path / "among" / f"{path.stem}.png").exists() == (str(path) not in failed)
        if str(path) not in failed:
            check_mask(path, tmp_path / "among")
    return among


def test_two_hundred_damaged_files(tmp_path: Path) -> None:
    summary = check_fuzz(tmp_path, 200)
    assert summary.failed > 80


@pytest.mark.slow
def test_two_thousand_damaged_files(tmp_path: Path) -> None:
    summary = check_fuzz(tmp_path, 2000)
    assert summary.failed > 800
