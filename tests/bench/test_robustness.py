"""Jobs over a mixed tree, killed and gone on with; and that what differs would be seen."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from unetrt.bench.mixed_tree import BAD, BAD_EVERY, KINDS, SIZES, write_mixed_tree
from unetrt.bench.robustness import (
    Finished,
    differences,
    done_twice,
    measure_robustness,
    robustness_lines,
)
from unetrt.contract.errors import ImageError, UserError
from unetrt.contract.files import image_paths
from unetrt.contract.images import read_image
from unetrt.runtime.journal import FOLDER
from unetrt.training.synthetic import write_dataset

ALL = BAD_EVERY * len(BAD)


@pytest.fixture
def sources(tmp_path: Path) -> list[Path]:
    return image_paths(write_dataset(tmp_path / "drawn", 3, (32, 48))[0])


def test_a_mixed_tree_is_the_same_again_and_its_bad_files_alone_are_bad(
    sources: list[Path], tmp_path: Path
) -> None:
    kinds = write_mixed_tree(sources, ALL, tmp_path / "tree")
    assert kinds.keys() == KINDS.keys() | BAD.keys()
    paths = image_paths(tmp_path / "tree")
    assert len(paths) == ALL
    sizes, failed = set(), 0
    for path in paths:
        try:
            sizes.add(read_image(path, 1).shape[:2])
        except ImageError:
            failed += 1
    assert failed == len(BAD)
    assert len(sizes) > len(SIZES)
    assert write_mixed_tree(sources, ALL, tmp_path / "again") == kinds
    assert not differences(tmp_path / "tree", tmp_path / "again")


def test_killed_jobs_are_gone_on_with(
    exported: Callable[..., Path], sources: list[Path], tmp_path: Path
) -> None:
    kinds, jobs = measure_robustness(str(exported()), sources, BAD_EVERY, 2, tmp_path / "work")
    assert sum(job.kills for job in jobs) == 2
    for job in jobs:
        assert job.counts["planned"] == BAD_EVERY
        assert job.counts["done"] + job.counts["skipped"] == BAD_EVERY - 1
        assert not job.differences
    told = robustness_lines(kinds, jobs)
    assert told[-1] == (
        "2 kills: every mask was made once, with the same bytes; what failed are the bad files."
    )
    assert sum(line.startswith("| killed ") for line in told) == len(jobs) - 2


def test_a_job_that_fails_is_no_measurement(sources: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a job failed"):
        measure_robustness(str(tmp_path / "none.onnx"), sources, 2, 0, tmp_path / "work")


def test_what_differs_is_named(tmp_path: Path) -> None:
    for name, parts in {"first": ("a", "b", "c"), "second": ("a", "x", "")}.items():
        (tmp_path / name / FOLDER).mkdir(parents=True)
        for place, part in enumerate(parts):
            if part:
                (tmp_path / name / f"{place}.png").write_text(part)
        (tmp_path / name / FOLDER / "journal.jsonl").write_text(name)
    (tmp_path / "second" / ".3.png.1-00ff00ff.tmp").write_text("half")
    found = differences(tmp_path / "first", tmp_path / "second")
    assert found == [".3.png.1-00ff00ff.tmp", "1.png", "2.png"]


def test_a_mask_that_is_made_twice_is_named(tmp_path: Path) -> None:
    entries = [{"journal": 1}, *({"input": name, "status": "done"} for name in "aba")]
    path = tmp_path / "journal.jsonl"
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    assert done_twice(path) == ["a done 2 times"]


def test_the_verdict_names_what_is_wrong() -> None:
    counts = {"planned": 4, "done": 2, "failed": 2, "skipped": 0}
    jobs = [Finished("first", counts, 2.0, 0, []), Finished("killed 1", counts, 3.0, 5, ["a.png"])]
    kinds = Counter({"BMP": 3, next(iter(BAD)): 1})
    told = robustness_lines(kinds, jobs)
    assert told[0].startswith("4 files: 3 BMP, ")
    assert told[-1] == "5 kills: killed 1: a.png; first: 2 failed; killed 1: 2 failed."
    assert [line.split("|")[-2].strip() for line in told if line.startswith("| ")][1:] == [
        "yes",
        "no",
    ]
