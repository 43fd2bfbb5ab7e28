"""scripts/gpu.sh with a made-up GPU and interpreter: what it runs, keeps, and does again."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "gpu.sh"
# A training of width 64 waits until its first epoch is among the results, or 30 s.
PYTHON = """#!/bin/sh
echo "$*" >> calls.txt
case "$*" in
    *bench*512x512*) exit "${STATUS:-0}" ;;
    *" train "*"--width 64"*)
        mkdir -p build/gpu/neu_seg-w64
        echo "1,0.5" > build/gpu/neu_seg-w64/metrics.csv
        tries=0
        until [ -s bench/results/nvidia-x/neu_seg-w64.csv ] || [ $((tries += 1)) -gt 300 ]; do
            sleep 0.1
        done
        [ $tries -gt 300 ] || echo seen
        echo "2,0.25" >> build/gpu/neu_seg-w64/metrics.csv
        ;;
esac
"""
# A bench that waits until its first row is in the archive, or 30 s.
WAITS_FOR_ARCHIVE = """#!/bin/sh
case "$*" in *--report*) ;; *) exit ;; esac
mkdir -p bench/results/nvidia-x/200x200
echo 1 > bench/results/nvidia-x/200x200/unfinished.json
tries=0
until tar tzf {archive} 2> /dev/null | grep -q unfinished.json; do
    [ $((tries += 1)) -le 300 ] || exit 1
    sleep 0.1
done
echo seen
"""
# Cuts the command that CUT names, after it has run.
TIMEOUT = """#!/bin/sh
while case "$1" in --*) true ;; *) false ;; esac; do shift; done
shift
"$@" || exit
case "$*" in *"${CUT:-nothing}"*) exit 124 ;; esac
"""

ITS_VARIABLES = {
    *("WORK", "ARCHIVE", "STAGE_SECONDS", "SECONDS_LEFT", "DATA", "WHEELS", "EPOCHS"),
    *("SIZES", "SKIP", "COMPILE", "PYTHON"),
}

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A clone as the script sees it, with the network that the bench needs."""
    smi = "#!/bin/sh\necho NVIDIA X\n"
    programs = {"bin/nvidia-smi": smi, "bin/python": PYTHON, "bin/timeout": TIMEOUT}
    for name, text in programs.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    (tmp_path / "scripts").mkdir()
    shutil.copy(SCRIPT, tmp_path / "scripts")
    (tmp_path / "build/gpu/drawn").mkdir(parents=True)
    (tmp_path / "build/gpu/drawn/done").touch()
    (tmp_path / "build/gpu/640x959/imgs").mkdir(parents=True)
    return tmp_path


def run_stage(house: Path, stage: str, **variables: str) -> tuple[int, list[str]]:
    """Its exit status, and what the interpreter was told."""
    done = told_stage(house, stage, **variables)
    calls = house / "calls.txt"
    return done.returncode, calls.read_text().splitlines() if calls.exists() else []


def told_stage(house: Path, stage: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Of the same: what it says."""
    (house / "calls.txt").unlink(missing_ok=True)
    path = f"{house / 'bin'}{os.pathsep}{os.environ['PATH']}"
    own = {name: value for name, value in os.environ.items() if name not in ITS_VARIABLES}
    environment = {**own, "PATH": path, "PYTHON": str(house / "bin/python"), **variables}
    command = ["bash", str(house / "scripts/gpu.sh"), stage]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def benches(calls: list[str]) -> list[str]:
    return [
        call.partition("--report ")[2].rpartition("/")[2] for call in calls if "--report" in call
    ]


def test_a_bench_that_was_cut_is_run_again_and_one_that_is_whole_is_not(house: Path) -> None:
    results = house / "bench/results/nvidia-x"
    for size, cut in (("640x959", "false"), ("200x200", "true")):
        (results / size).mkdir(parents=True)
        (results / size / "bench_x.json").write_text(f'{{\n  "interrupted": {cut}\n}}\n')
    status, calls = run_stage(house, "bench")
    assert benches(calls) == ["100x100", "200x200", "512x512"]
    assert status == 0


def test_a_step_that_fails_is_the_scripts_failure_and_the_others_run(house: Path) -> None:
    status, calls = run_stage(house, "bench", STATUS="3")
    assert benches(calls) == ["100x100", "200x200", "512x512", "640x959"]
    assert status == 1
    assert run_stage(house, "bench", SECONDS_LEFT="1")[0] == 1, "what was not done is not there"


def test_what_is_missing_is_no_failure(house: Path) -> None:
    status, calls = run_stage(house, "train", DATA="nowhere")
    assert status == 0
    assert not any("train" in call for call in calls)


def test_the_bench_is_short_enough_for_its_stage(house: Path) -> None:
    """PyTorch's compiler tunes for minutes, and the largest pictures take the baseline long."""

    def options(**variables: str) -> dict[str, list[str]]:
        _, calls = run_stage(house, "bench", SIZES="200x200 640x959", **variables)
        return dict(zip(benches(calls), [c.split() for c in calls if "--report" in c], strict=True))

    def value(options: list[str], name: str) -> str:
        return options[options.index(name) + 1]

    found = options(SKIP="torch-half")
    assert {size: value(told, "--limit") for size, told in found.items()} == {
        "200x200": "256",
        "640x959": "32",
    }
    assert all(value(told, "--skip") == "torch-half,torch-compile" for told in found.values())
    assert all(value(told, "--row-timeout") == "120" for told in found.values())
    compiled = options(COMPILE="1")
    assert not any("--skip" in told for told in compiled.values())
    assert all(value(told, "--row-timeout") == "240" for told in compiled.values())


def test_a_step_that_is_cut_says_what_goes_on_with_it(house: Path) -> None:
    """Of `all` the stage alone; with the variables that it was called with."""
    done = told_stage(house, "bench", CUT="bench/results/nvidia-x/200x200", SKIP="a b")
    assert done.returncode == 1
    python = house / "bin/python"
    command = f"PYTHON={python} SKIP=a\\ b scripts/gpu.sh bench"
    assert f"== bench-200x200: cut; go on with: {command}\n" in done.stdout
    assert done.stdout.count("go on with") == 1
    short = told_stage(house, "all", SECONDS_LEFT="1")
    assert "tests: skipped, no time left; go on with: " in short.stdout
    for stage in ("tests", "bench"):
        assert f"scripts/gpu.sh {stage}\n" in short.stdout
    assert "SECONDS_LEFT" not in short.stdout


def test_an_install_that_is_cut_says_so(house: Path) -> None:
    done = told_stage(house, "install", CUT="unetrt.cli doctor")
    command = f"PYTHON={house / 'bin/python'} scripts/gpu.sh install"
    assert f"doctor; go on with: {command}\n" in done.stderr
    assert done.returncode == 1


def test_a_training_is_among_the_results_while_it_runs_and_when_it_was_cut(house: Path) -> None:
    """And in the archive, which is whole at any moment."""
    (house / "data/neu_seg/train/imgs").mkdir(parents=True)
    results, archive = house / "bench/results/nvidia-x", house / "results.tgz"
    done = told_stage(house, "train", DATA="data", CUT="--width 64", ARCHIVE=str(archive))
    assert done.returncode == 1
    assert (results / "train-neu_seg-w64.txt").read_text() == "seen\nstatus 124\n"
    assert (results / "neu_seg-w64.csv").read_text() == "1,0.5\n2,0.25\n"
    assert not (house / "build/gpu/neu_seg-w64/done").exists()
    with tarfile.open(archive) as packed:
        kept = packed.extractfile("nvidia-x/neu_seg-w64.csv")
        assert kept is not None
        assert kept.read() == b"1,0.5\n2,0.25\n"
    assert not list(house.glob("*.part"))


def test_an_archive_holds_what_a_step_has_written_so_far(house: Path) -> None:
    """A bench writes row by row: one that is ended from outside comes to no line after it."""
    archive = house / "results.tgz"
    (house / "bin/python").write_text(WAITS_FOR_ARCHIVE.format(archive=archive))
    told_stage(house, "bench", SIZES="200x200", ARCHIVE=str(archive))
    assert "seen" in (house / "bench/results/nvidia-x/bench-200x200.txt").read_text()
    assert not list(house.glob("*.part"))


def test_an_archive_that_cannot_be_made_leaves_the_one_of_before(house: Path) -> None:
    archive = house / "results.tgz"
    archive.write_text("of before")
    tar = house / "bin/tar"
    tar.write_text("#!/bin/sh\nexit 2\n")
    tar.chmod(0o755)
    assert run_stage(house, "tests", ARCHIVE=str(archive))[0] == 0
    assert archive.read_text() == "of before"
