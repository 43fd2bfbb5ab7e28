"""unetrt predict past one process: --devices, --shard and --merge as a user meets them."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from tests.cli.conftest import Command
from tests.conftest import steel
from tests.runtime.crews import in_every_process
from tests.runtime.encodings import write_mixed
from unetrt.contract.modules import is_installed

JOURNALS = ".unetrt"


def masks_below(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    names = {str(path.relative_to(folder)): path.read_bytes() for path in files}
    return {name: data for name, data in names.items() if not name.startswith(JOURNALS)}


def started(model: Path, images: Path, out: Path, *more: object) -> subprocess.Popen[str]:
    """The command in a process group of its own, as a shell on a terminal starts it."""
    paths = ["-m", model, "-i", images, "--output-dir", out]
    return subprocess.Popen(
        [sys.executable, "-m", "unetrt.cli", "predict", *map(str, [*paths, *more])],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
        # A job that a shell runs in the background ignores the signal, its children too.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def wait_for_masks(job: subprocess.Popen[str], out: Path, count: int = 1) -> None:
    end = time.monotonic() + 120
    while job.poll() is None and len(list(out.rglob("*.png"))) < count:
        assert time.monotonic() < end, "the job hangs"
        time.sleep(0.02)


def test_several_workers_write_what_one_process_writes(
    unetrt: Command, onnx_file: Path, pictures: Path, tmp_path: Path
) -> None:
    asked = ("predict", "-m", onnx_file, "-i", pictures)
    assert unetrt(*asked, "--output-dir", tmp_path / "one").status == 0
    (pictures / "bad.png").write_text("no image")
    report = tmp_path / "j.json"
    several = ("--output-dir", tmp_path / "two", "--devices", "cpu:2", "--json", report)
    outcome = unetrt(*asked, *several)
    assert outcome.status == 1
    assert "a process each on cpu cpu" in outcome.err
    assert f"failed: {pictures / 'bad.png'}: " in outcome.err
    assert outcome.out == "5 planned = 4 done + 1 failed + 0 skipped\n"
    assert json.loads(report.read_text())["done"] == 4
    assert masks_below(tmp_path / "two") == masks_below(tmp_path / "one")
    (pictures / "bad.png").unlink()
    assert unetrt(*asked, *several).out == "4 planned = 0 done + 0 failed + 4 skipped\n"


@pytest.mark.slow
@pytest.mark.skipif(not is_installed("ray"), reason="Ray is not installed here")
def test_a_cluster_writes_what_one_process_writes(
    unetrt: Command, onnx_file: Path, pictures: Path, tmp_path: Path
) -> None:
    asked = ("predict", "-m", onnx_file, "-i", pictures)
    assert unetrt(*asked, "--output-dir", tmp_path / "one").status == 0
    (pictures / "bad.png").write_text("no image")
    cluster = ("--output-dir", tmp_path / "two", "--ray", "local", "--ray-engines", "2")
    outcome = unetrt(*asked, *cluster)
    assert outcome.status == 1, outcome.err
    assert "engine: onnxruntime fp32, engines in Ray: 2 on cpu (" in outcome.err
    assert f"failed: {pictures / 'bad.png'}: " in outcome.err
    assert outcome.out == "5 planned = 4 done + 1 failed + 0 skipped\n"
    assert masks_below(tmp_path / "two") == masks_below(tmp_path / "one")
    (pictures / "bad.png").unlink()
    assert unetrt(*asked, *cluster).out == "4 planned = 0 done + 0 failed + 4 skipped\n"


def test_rle_comes_from_several_workers_as_from_one(
    unetrt: Command, onnx_file: Path, pictures: Path, tmp_path: Path
) -> None:
    asked = ("predict", "-m", onnx_file, "-i", pictures, "--format", "rle", "--overlay")
    for name, more in (("one", ()), ("two", ("--devices", "cpu,cpu"))):
        outcome = unetrt(*asked, tmp_path / f"{name}-o", "--output-dir", tmp_path / name, *more)
        assert outcome.status == 0, outcome.err
    assert masks_below(tmp_path / "two") == masks_below(tmp_path / "one")
    assert list(masks_below(tmp_path / "one")) == ["masks.json"]
    assert masks_below(tmp_path / "two-o") == masks_below(tmp_path / "one-o")


def test_a_signal_to_all_processes_is_one_wish(onnx_file: Path, tmp_path: Path) -> None:
    images, out = tmp_path / "imgs", tmp_path / "out"
    images.mkdir()
    Image.fromarray(steel(0, 256, 256)[..., 0]).save(images / "0.png")
    for index in range(1, 3000):
        (images / f"{index}.png").hardlink_to(images / "0.png")
    job = started(onnx_file, images, out, "--devices", "cpu:2")
    wait_for_masks(job, out)
    os.killpg(job.pid, signal.SIGINT)
    _, told = job.communicate(timeout=120)  # the pipes close when the last worker has ended
    assert job.returncode == 130, told
    assert "Traceback" not in told
    assert "died" not in told
    assert "goes on" in told
    written = masks_below(out)
    lines = (out / JOURNALS / "journal.jsonl").read_text().splitlines()[1:]
    entries = [entry for entry in map(json.loads, lines) if "planned" not in entry]
    assert sorted(entry["output"] for entry in entries) == sorted(written)
    assert 0 < len(written) < 3000


LATE = """
import os, pathlib, time
from unetrt.runtime import worker


def late(*arguments, **options):
    pathlib.Path(os.environ["HELD"]).touch()
    time.sleep(600)


worker.open_engine = late
"""
STUCK = """
import os, pathlib, time
from unetrt.runtime import work


def stuck(*arguments, **options):
    pathlib.Path(os.environ["HELD"]).touch()
    time.sleep(600)


work.read_reduced = stuck
"""


def wait_for(path: Path, job: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 120
    while job.poll() is None and not path.exists():
        assert time.monotonic() < end, f"no {path}"
        time.sleep(0.02)


def held_up(
    by: str, model: Path, pictures: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> subprocess.Popen[str]:
    """A job on two devices that have run into `by`, which writes a file and waits."""
    monkeypatch.setenv("HELD", str(folder / "held"))
    in_every_process(monkeypatch, folder, by)
    job = started(model, pictures, folder / "out", "--devices", "cpu:2")
    wait_for(folder / "held", job)
    return job


def test_a_signal_is_heard_while_the_devices_open_the_model(
    onnx_file: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = held_up(LATE, onnx_file, pictures, tmp_path, monkeypatch)
    os.killpg(job.pid, signal.SIGINT)
    _, told = job.communicate(timeout=60)
    assert job.returncode == 130, told
    assert "Traceback" not in told


def test_a_worker_that_hangs_does_not_outlive_its_parent(
    onnx_file: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = held_up(STUCK, onnx_file, pictures, tmp_path, monkeypatch)
    job.kill()
    job.communicate(timeout=60)  # the pipes close when the last worker has ended


@pytest.mark.slow
def test_when_the_parent_is_killed_its_workers_end_and_the_job_goes_on(
    unetrt: Command, onnx_file: Path, tmp_path: Path
) -> None:
    write_mixed(tmp_path / "in", 400)
    asked = ("predict", "-m", onnx_file, "-i", tmp_path / "in")
    assert unetrt(*asked, "--output-dir", tmp_path / "whole").status == 0
    out = tmp_path / "out"
    for goal in (1, 60, 150):
        job = started(onnx_file, tmp_path / "in", out, "--devices", "cpu:3")
        wait_for_masks(job, out, goal)
        job.kill()
        job.communicate(timeout=120)  # the pipes close when the last worker has ended
        assert job.returncode in (-9, 0)
    assert unetrt(*asked, "--output-dir", out, "--devices", "cpu:2").status == 0
    assert masks_below(out) == masks_below(tmp_path / "whole")
    assert not [name for name in masks_below(out) if name.endswith(".tmp")]


def test_shards_run_at_once_and_are_merged(
    unetrt: Command, onnx_file: Path, tmp_path: Path
) -> None:
    write_mixed(tmp_path / "in", 60)
    asked = ("predict", "-m", onnx_file, "-i", tmp_path / "in")
    assert unetrt(*asked, "--output-dir", tmp_path / "whole").status == 0
    out = tmp_path / "out"
    jobs = [started(onnx_file, tmp_path / "in", out, "--shard", f"{i}/3") for i in (1, 2)]
    for job in jobs:
        _, told = job.communicate(timeout=120)
        assert job.returncode == 0, told
    part = unetrt("predict", "--merge", out)
    assert part.status == 1
    assert "missing: shard 3/3 has not begun\n" in part.err
    assert part.out.endswith("; shards that have not begun: 1\n")
    assert unetrt(*asked, "--output-dir", out, "--shard", "3/3").status == 0
    merged = unetrt("predict", "--merge", out, "--json", "-")
    assert merged.status == 0
    assert json.loads(merged.out) == {
        "planned": 60,
        "done": 60,
        "failed": 0,
        "skipped": 0,
        "failures": [],
        "missing_shards": [],
        "missing_images": [],
        "unplanned": [],
        "lists": [],
        "twice": [],
    }
    assert "60 planned = 60 done + 0 failed + 0 skipped\n" in merged.err
    assert masks_below(out) == masks_below(tmp_path / "whole")


@pytest.mark.slow
def test_shards_that_are_killed_at_once_go_on(
    unetrt: Command, onnx_file: Path, tmp_path: Path
) -> None:
    write_mixed(tmp_path / "in", 400)
    asked = ("predict", "-m", onnx_file, "-i", tmp_path / "in")
    assert unetrt(*asked, "--output-dir", tmp_path / "whole").status == 0
    out = tmp_path / "out"
    for goal in (1, 80, 160, 500):
        jobs = [started(onnx_file, tmp_path / "in", out, "--shard", f"{i}/2") for i in (1, 2)]
        wait_for_masks(jobs[0], out, goal)
        jobs[0].kill()
        if goal < 500:
            jobs[1].kill()
        for job in jobs:
            job.communicate(timeout=120)
    assert unetrt(*asked, "--output-dir", out, "--shard", "1/2", "--devices", "cpu:2").status == 0
    assert unetrt("predict", "--merge", out).status == 0
    assert masks_below(out) == masks_below(tmp_path / "whole")


def test_merge_names_failures_and_missing_images(
    unetrt: Command, onnx_file: Path, pictures: Path, tmp_path: Path
) -> None:
    (pictures / "bad.png").write_text("no image")
    out = tmp_path / "out"
    asked = ("predict", "-m", onnx_file, "-i", pictures, "--output-dir", out, "--shard", "1/1")
    assert unetrt(*asked).status == 1
    (out / "a.png").unlink()
    outcome = unetrt("predict", "--merge", out)
    assert outcome.status == 1
    assert f"failed: {pictures / 'bad.png'}: " in outcome.err
    assert f"missing: {pictures / 'a.png'}\n" in outcome.err
    assert outcome.out == "5 planned = 3 done + 1 failed + 1 skipped\n"


def test_merge_says_that_the_images_of_two_shards_are_not_of_one_list(
    unetrt: Command, onnx_file: Path, pictures: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    asked = ("predict", "-m", onnx_file, "-i", pictures, "--output-dir", out)
    assert unetrt(*asked, "--shard", "1/2").status == 0
    for name in ("later.png", "sub/later.png", "most.png", "sub/most.png"):
        (pictures / name).write_bytes((pictures / "a.png").read_bytes())
    assert unetrt(*asked, "--shard", "2/2").status == 0
    outcome = unetrt("predict", "--merge", out)
    assert outcome.status == 1
    assert "another list: 4 images, of shard 1/2\n" in outcome.err
    assert "another list: 8 images, of shard 2/2\n" in outcome.err
    assert "; the shards are not of one list: run each again on the same images" in outcome.out
    assert unetrt(*asked, "--shard", "1/2").status == 0
    outcome = unetrt("predict", "--merge", out)
    assert (outcome.status, outcome.out) == (0, "8 planned = 8 done + 0 failed + 0 skipped\n")


@pytest.mark.parametrize("older", ["1/2", "1/1"])
def test_journals_of_another_number_of_shards_go_as_told(
    older: str, unetrt: Command, onnx_file: Path, pictures: Path, tmp_path: Path
) -> None:
    out = tmp_path / "an out"
    asked = ("predict", "-m", onnx_file, "-i", pictures, "--output-dir", out, "--shard")
    for shard in (older, "1/3", "2/3", "3/3"):
        assert unetrt(*asked, shard).status == 0
    for path in (out / JOURNALS).glob("*-of-3.jsonl"):
        os.utime(path, (time.time() + 60,) * 2)  # clocks of file systems are coarse
    error = unetrt("predict", "--merge", out).whole_error
    assert "another number of shards" in error
    command = error.rpartition("Hint: ")[2].partition("   ")[0]
    subprocess.run(command, shell=True, check=True)
    assert unetrt("predict", "--merge", out).status == 0


def test_a_folder_of_another_number_of_shards_is_left_out_as_told(
    unetrt: Command, onnx_file: Path, pictures: Path, tmp_path: Path
) -> None:
    asked = ("predict", "-m", onnx_file, "-i", pictures, "--output-dir")
    assert unetrt(*asked, tmp_path / "one", "--shard", "1/1").status == 0
    assert unetrt(*asked, tmp_path / "two", "--shard", "1/2").status == 0
    error = unetrt("predict", "--merge", tmp_path / "one", tmp_path / "two").whole_error
    words = shlex.split(error.rpartition("Hint: unetrt ")[2].partition("   ")[0])
    assert unetrt(*words).status == 0


def test_a_shard_without_images_is_done(
    unetrt: Command, onnx_file: Path, pictures: Path, tmp_path: Path
) -> None:
    asked = ("predict", "-m", onnx_file, "-i", pictures / "a.png", "--output-dir", tmp_path / "o")
    outcomes = [unetrt(*asked, "--shard", f"{index}/2") for index in (1, 2)]
    assert [outcome.status for outcome in outcomes] == [0, 0]
    assert sorted(outcome.out[:9] for outcome in outcomes) == ["0 planned", "1 planned"]
    assert unetrt("predict", "--merge", tmp_path / "o").status == 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--shard", "1/2"], "needs a folder that keeps its journal"),
        (["--shard", "1/2", "--output-dir", "out", "-n"], "needs a folder that keeps its journal"),
        (["--shard", "1/2", "--output-dir", "out", "--format", "rle"], "one file for the whole"),
        (["--devices", "cpu:2", "--device", "cpu"], "--device goes with one process"),
        (["--devices", "cpu:2", "--viz"], "--viz goes with one process"),
        (["--devices", "cpu:2", "--trace", "t.json"], "--trace goes with one process"),
        (["--devices", "gpu"], "no such devices"),
        (["--merge", "out"], "seen:     --model, --input\n"),
        (["--ray-engines", "2"], "--ray-engines is of a cluster"),
        (["--ray", "local", "--devices", "cpu:2"], "--devices and --ray exclude each other"),
        (["--ray", "local", "--device", "cuda:1"], "seen:     --device cuda:1\n"),
        (["--ray", "local", "--viz"], "--viz goes with one process"),
        (["--ray", "local", "--fast-decode"], "--fast-decode goes with one process"),
        (["--output-dir", "nostore://b/out"], "cannot reach nostore://b/out"),
        (["--output-dir", "github://a/b"], "cannot reach github://a/b"),
        (["--output-dir", "zip://a::none.zip"], "cannot reach zip://a::none.zip"),
    ],
)
def test_what_does_not_go_together_is_refused(
    arguments: list[str],
    told: str,
    unetrt: Command,
    onnx_file: Path,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = unetrt("predict", "-m", onnx_file, "-i", pictures, *arguments)
    assert told in outcome.error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "a/b", "1/0", "-1/2"])
def test_a_shard_is_one_of_n(text: str, unetrt: Command, onnx_file: Path) -> None:
    outcome = unetrt("predict", "-m", onnx_file, "-i", "x", f"--shard={text}")
    assert "I/N with I from 1 to N" in outcome.error


@pytest.mark.parametrize(
    "flags",
    [
        ["--restart"],
        ["--output-dir", "out"],
        ["--mask-values", "0,9"],
        ["--format", "npy"],
        ["--trace", "t.json"],
        ["--devices", "all"],
        ["--bit-depth", "12"],
    ],
)
def test_merge_takes_no_flag_of_a_job(
    flags: list[str], unetrt: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    error = unetrt("predict", "--merge", tmp_path, *flags).whole_error
    assert "--merge makes no masks" in error
    assert f"seen:     {flags[0]}\n" in error


def test_merge_of_nothing_is_a_wrong_request(unetrt: Command, tmp_path: Path) -> None:
    assert "no journal below" in unetrt("predict", "--merge", tmp_path).whole_error


def test_without_images_predict_says_so(unetrt: Command, onnx_file: Path) -> None:
    assert "no input images" in unetrt("predict", "-m", onnx_file).error
