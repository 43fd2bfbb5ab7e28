"""Shards of one job over a folder of small pictures, each by a call."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.runtime.conftest import ThresholdEngine, stopping_after
from tests.runtime.test_journal import MODEL
from tests.runtime.test_predict import files_below
from unetrt.runtime.journal import FOLDER, JournalOptions
from unetrt.runtime.pipeline import PipelineOptions
from unetrt.runtime.plan import Task, plan_tasks, tasks_of_shard
from unetrt.runtime.predict import PredictOptions, Summary, predict_masks
from unetrt.runtime.shards import Shard

Job = Callable[..., Summary]
SERIAL = PipelineOptions(batch=1, slots=1, load_threads=1, write_threads=1)


def tasks_of(root: Path, shard: Shard | None = None, out: str = "out") -> list[Task]:
    tasks = plan_tasks([str(root / "in")], output_dir=root / out)
    return tasks if shard is None else tasks_of_shard(tasks, shard, root / out)


def job_of(root: Path) -> Job:
    """Runs one shard of the job of root/in."""

    def run(
        shard: Shard | None,
        out: str = "out",
        model: str = MODEL,
        stop_after: int = 0,
        **options: object,
    ) -> Summary:
        look, stop = stopping_after(stop_after)
        journal = JournalOptions(output_dir=root / out, model=model, shard=shard)
        predict_options = PredictOptions(journal=journal, pipeline=SERIAL, **options)  # type: ignore[arg-type]
        with ThresholdEngine() as engine:
            return predict_masks(engine, tasks_of(root, shard, out), predict_options, look, stop)

    return run


def masks_below(folder: Path) -> dict[str, bytes]:
    names = [name for name in files_below(folder) if not name.startswith(FOLDER)]
    return {name: (folder / name).read_bytes() for name in names}
