"""A folder of pictures on several workers, to which something happens on the way."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.runtime.encodings import write_mixed
from tests.runtime.test_journal import MODEL, counts
from tests.runtime.test_predict import files_below
from unetrt.engine.open import open_engine
from unetrt.runtime.devices import Workers, devices_from_text
from unetrt.runtime.journal import FOLDER, NAME, JournalOptions
from unetrt.runtime.plan import Task, plan_tasks
from unetrt.runtime.predict import PredictOptions, Summary, predict_masks, run_job
from unetrt.runtime.work import Outcome
from unetrt.runtime.worker import EngineOptions, Opened

PICTURES = 60
BROKEN = (7, 40)


LATE = """
import contextlib, os, pathlib, time
from unetrt.runtime import worker

opened = worker.open_engine


def late(*arguments, **options):
    with contextlib.suppress(FileExistsError):
        pathlib.Path(os.environ["HELD"]).touch(exist_ok=False)
        return opened(*arguments, **options)
    time.sleep(120)


worker.open_engine = late
"""
"""Of two processes the second one takes two minutes to open the model; $HELD marks the first."""


@dataclass
class Disturbed:
    """Workers to which something happens after some outcomes: place → what."""

    workers: Workers
    events: dict[int, Callable[[], None]]
    victims: list[int] = field(default_factory=list)

    @property
    def opened(self) -> Opened:
        return self.workers.opened

    def write_masks(
        self, tasks: Sequence[Task], options: PredictOptions, stop: Callable[[], bool]
    ) -> Iterator[Outcome]:
        for place, outcome in enumerate(self.workers.write_masks(tasks, options, stop), 1):
            self.events.get(place, lambda: None)()
            yield outcome

    def kill_the_busiest(self) -> None:
        alive = [w for w in self.workers._alive if w.process.pid not in self.victims]
        worker = max(alive, key=lambda worker: len(worker.held))
        assert worker.held
        assert worker.process.pid is not None
        self.victims.append(worker.process.pid)
        os.kill(worker.process.pid, signal.SIGKILL)


@dataclass(frozen=True)
class Undisturbed:
    """A folder of pictures, two of them broken, and what one engine in this process makes of it."""

    images: Path
    out: Path
    summary: Summary


def undisturbed(model: Path, root: Path, count: int, broken: tuple[int, int]) -> Undisturbed:
    """Make the folder below `root`, two of its `count` pictures cut short, and its masks."""
    pictures = write_mixed(root / "in", count)
    for path in (pictures[place] for place in broken):
        path.write_bytes(path.read_bytes()[:30])
    with open_engine(model) as engine:
        tasks = plan_tasks([str(root / "in")], output_dir=root / "out")
        summary = predict_masks(engine, tasks, options_of(root / "out"))
    assert counts(summary) == (count - 2, 2, 0)
    return Undisturbed(root / "in", root / "out", summary)


def options_of(out: Path, strict: bool = False) -> PredictOptions:
    return PredictOptions(strict=strict, journal=JournalOptions(output_dir=out, model=MODEL))


def run_on(
    model: Path, images: Path, out: Path, names: str, disturb: Callable[[Disturbed], None]
) -> Summary:
    tasks = plan_tasks([str(images)], output_dir=out)
    with Workers(EngineOptions(model=model), devices_from_text(names)) as workers:
        crew = Disturbed(workers, {})
        disturb(crew)
        processes = [worker.process for worker in workers._workers]
        try:
            return run_job(crew, tasks, options_of(out), threading.Event())
        finally:
            assert not any(process.is_alive() for process in processes), "none is left running"


def check_same(out: Path, whole: Undisturbed) -> None:
    assert files_below(out) == files_below(whole.out), "none missing, nothing left behind"
    for name in files_below(whole.out):
        if name != f"{FOLDER}/{NAME}":
            assert (out / name).read_bytes() == (whole.out / name).read_bytes(), name


def journaled(out: Path, status: str) -> list[str]:
    lines = (out / FOLDER / NAME).read_text().splitlines()[1:]
    return sorted(e["input"] for e in map(json.loads, lines) if e.get("status") == status)


def in_every_process(monkeypatch: pytest.MonkeyPatch, folder: Path, code: str) -> None:
    (folder / "site").mkdir()
    (folder / "site/sitecustomize.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", f"{folder / 'site'}{os.pathsep}{os.environ['PYTHONPATH']}")
