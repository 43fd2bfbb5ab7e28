"""Two processes over gloo train as one does on the same batches."""

from __future__ import annotations

import csv
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from unetrt.contract.errors import UserError
from unetrt.contract.spec import ModelSpec
from unetrt.training.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from unetrt.training.mask_files import read_mask_set
from unetrt.training.masknet import MaskNet
from unetrt.training.options import RECIPES, TrainOptions
from unetrt.training.ranks import Ranks, joined_ranks, sync_batchnorms
from unetrt.training.report import Reporter
from unetrt.training.rundir import RunFolder
from unetrt.training.samples import load_training_data
from unetrt.training.train import _data, device_from_name, train
from unetrt.training.trainer import Trainer
from unetrt.training.unet import UNet
from unetrt.training.validate import validate

WORKER = Path(__file__).with_name("ranks_worker.py")
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
TIMEOUT = 120
TORCHRUN_WAITS = 30
"""Seconds between its SIGTERM and its SIGKILL."""


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"}


def test_two_processes_step_as_one_does(steel: tuple[Path, Path], tmp_path: Path) -> None:
    """Batches of 4: in one process, and 2 images in each of two."""
    folders = str(steel[0]), str(steel[1])
    spec = ModelSpec(channels=1, classes=4, width=4, scale=1.0)
    state = UNet(1, 4, 4).state_dict()
    write_checkpoint(steel[0].parent / "teacher.pth", Checkpoint(spec, state))
    runpy.run_path(str(WORKER))["main"](*folders, str(tmp_path / "one.pt"))
    command = [sys.executable, *TORCHRUN, str(WORKER), *folders, str(tmp_path / "two.pt")]
    done = subprocess.run(
        command, env=environment(), capture_output=True, text=True, timeout=TIMEOUT, check=False
    )
    assert done.returncode == 0, done.stderr
    one, two = (torch.load(tmp_path / f"{n}.pt", weights_only=True) for n in ("one", "two"))
    assert two["any"]["yes"]
    for dice in ("all", "foreground", "taught"):
        alone, both = one[dice], two[dice]
        assert both["losses"] == pytest.approx(alone["losses"], abs=1e-9)
        assert torch.equal(both["counts"], alone["counts"])
        assert both["state"].keys() == alone["state"].keys()
        for name, tensor in alone["state"].items():
            assert torch.allclose(both["state"][name], tensor, atol=1e-8), name


def test_norms_that_are_joined_in_one_process_are_pytorch_s() -> None:
    torch.manual_seed(0)
    plain, joined = UNet(1, 2, 2).train(), UNet(1, 2, 2).train()
    joined.load_state_dict(plain.state_dict())
    assert sync_batchnorms(joined, Ranks(), torch.device("cpu")) is joined
    assert {type(m) for m in plain.modules()} == {type(m) for m in joined.modules()}


def test_a_batch_below_the_number_of_processes_is_warned_of(
    quick_options: TrainOptions, caplog: pytest.LogCaptureFixture
) -> None:
    """What the first of eight processes says before its first step."""
    data = load_training_data(quick_options, None)
    net, folder = UNet(1, 4, 4), RunFolder(quick_options.out)
    trainer = Trainer(quick_options, data, net, folder, Reporter(folder, data, None), Ranks())
    for world, told in ((4, 0), (8, 1)):
        trainer._ranks = Ranks(0, world)
        trainer._warn_of_recipe()
        assert sum(f"number of processes, {world}" in r.message for r in caplog.records) == told


def test_processes_meet_that_another_than_torchrun_starts(tmp_path: Path) -> None:
    """As PyTorchJob does, with PyTorch's variables alone."""
    code = "import torch\nfrom unetrt.training.ranks import joined_ranks\n"
    code += "with joined_ranks(cuda=False) as ranks:\n"
    code += "    print(ranks.world, ranks.of_first(ranks.rank + 7), flush=True)\n"
    code += "    print(ranks.any(ranks.rank == 1, torch.device('cpu')), flush=True)\n"
    script = tmp_path / "script.py"
    script.write_text(code)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    words = [sys.executable, str(script)]
    running = [
        subprocess.Popen(
            words, env={**environment(), **meeting, "RANK": rank}, stdout=subprocess.PIPE, text=True
        )
        for rank in "01"
    ]
    lines = [line for one in running for line in one.communicate(timeout=TIMEOUT)[0].splitlines()]
    assert sorted(lines) == ["2 7", "2 7", "True", "True"]


def test_a_process_that_is_told_of_others_and_not_where_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "node0")):
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MASTER_PORT", raising=False)
    with pytest.raises(UserError, match="one of several") as caught, joined_ranks(cuda=False):
        pass
    assert str(caught.value.seen) == "RANK=1 WORLD_SIZE=2 MASTER_ADDR=node0, no MASTER_PORT"
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    with joined_ranks(cuda=False) as ranks:
        assert ranks == Ranks()


def test_a_flag_is_counted_without_a_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    added: list[torch.Tensor] = []
    monkeypatch.setattr("unetrt.training.ranks._Total.apply", None)
    monkeypatch.setattr("torch.distributed.all_reduce", added.append)
    assert Ranks(0, 2).any(True, torch.device("cpu"))
    assert not Ranks(0, 2).any(False, torch.device("cpu"))
    assert len(added) == 2


@pytest.mark.parametrize("name", ["cuda", "auto"])
def test_each_process_takes_the_gpu_of_its_number(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch's own calls are stood in for: there may be no GPU here."""
    taken: list[torch.device] = []
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.set_device", taken.append)
    monkeypatch.setattr("unetrt.training.train.torch.zeros", lambda *_, device: torch.ones(1))
    for rank in ("0", "3"):
        monkeypatch.setenv("LOCAL_RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", "4")
        assert device_from_name(name) == torch.device(f"cuda:{rank}")
    assert [device.index for device in taken] == [0, 3]
    with pytest.raises(UserError, match="one GPU for several processes"):
        device_from_name("cuda:1")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert device_from_name("cuda:1") == torch.device("cuda:1")


def test_only_the_first_process_speaks(
    quick_options: TrainOptions, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of reading masks and of scoring."""
    monkeypatch.setattr("unetrt.contract.progress.LINE_SECONDS", 0.0)
    data = load_training_data(quick_options, None)
    pairs = [sample.pair for sample in data.validation]
    for rank, told in (("0", True), ("1", False)):
        monkeypatch.setenv("RANK", rank)
        capsys.readouterr()
        read_mask_set(pairs, frozenset())
        validate(MaskNet(UNet(1, 4, 2), data.spec), data.validation)
        shown = capsys.readouterr().err
        assert ("read masks: 4/4" in shown, "validate: 4/4" in shown) == (told, told)


def test_problems_of_the_data_are_listed_once_a_machine(
    quick_options: TrainOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of another process end this one too: it would wait for that one in vain."""
    monkeypatch.setattr(Ranks, "any", lambda self, flag, device: True)
    wrong = replace(quick_options, classes=3)
    place = None, Ranks(1, 2), torch.device("cpu")
    for options, rank, says in (
        (wrong, "0", "the masks hold 4 values"),
        (wrong, "1", "another process tells"),
        (quick_options, "0", "another process tells"),
    ):
        monkeypatch.setenv("LOCAL_RANK", rank)
        with pytest.raises(UserError, match=says):
            _data(options, *place)


def command(options: TrainOptions, out: Path) -> list[str]:
    """Two processes of `unetrt train`, with the flags of `options`."""
    recipe = options.recipe
    flags = f"--images {options.images} --masks {options.masks} --channels 1 --classes 4 "
    flags += f"--width 4 --scale 1 --validation 25 --recipe modern --epochs {recipe.epochs} "
    flags += f"--batch-size {recipe.batch_size} --device cpu --out {out}"
    return [sys.executable, *TORCHRUN, "-m", "unetrt.cli", "train", *flags.split()]


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_a_run_of_two_processes_has_one_voice_and_the_scores_of_one(
    quick_options: TrainOptions, tmp_path: Path
) -> None:
    options = replace(quick_options, recipe=replace(RECIPES["modern"], epochs=2, batch_size=4))
    alone, both = train(options).parent, tmp_path / "both"
    done = subprocess.run(
        command(options, both), env=environment(), capture_output=True, text=True,
        timeout=TIMEOUT, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("images to train on") == 1
    assert {p.name for p in both.iterdir()} == {p.name for p in alone.iterdir()}
    for one, two in zip(rows(alone), rows(both), strict=True):
        assert float(two["loss"]) == pytest.approx(float(one["loss"]), abs=1e-3)
        for name in ("foreground_miou", "pixel_accuracy"):
            assert float(two[name]) == pytest.approx(float(one[name]), abs=5e-3)


@pytest.mark.slow
@pytest.mark.parametrize("of", ["torchrun", "all"])
def test_two_processes_stop_together_and_go_on(
    of: str, quick_options: TrainOptions, tmp_path: Path
) -> None:
    """SIGTERM to torchrun, and Ctrl-C in a terminal, which all of them get.

    What goes on from there ends as two processes do that nothing stops, to the bit.
    """
    options = replace(quick_options, recipe=replace(RECIPES["modern"], epochs=20, batch_size=4))
    whole, both = tmp_path / "whole", tmp_path / "both"
    running = started(options, both)
    if of == "all":
        os.killpg(running.pid, signal.SIGINT)
    else:
        running.send_signal(signal.SIGTERM)
    _, stderr = running.communicate(timeout=TIMEOUT)
    assert b"goes on from here" in stderr
    assert b"forcefully" not in stderr
    last = read_checkpoint(both / "last.pth").resume
    assert last["step"] == 3 * last["epoch"] + last["batch"] < 60
    again = [sys.executable, *TORCHRUN, "-m", "unetrt.cli", "train", "--resume", str(both)]
    for words in (again, command(options, whole)):
        done = subprocess.run(
            words, env=environment(), capture_output=True, text=True, timeout=TIMEOUT, check=False
        )
        assert done.returncode == 0, done.stderr
    one, other = (read_checkpoint(folder / "last.pth") for folder in (both, whole))
    assert one.resume["step"] == other.resume["step"] == 60
    for name, tensor in other.state.items():
        assert torch.equal(one.state[name], tensor), name
    for name, tensor in other.resume["trained"].items():
        assert torch.equal(one.resume["trained"][name], tensor), name
    for mine, theirs in zip(rows(both), rows(whole), strict=True):
        assert {**mine, "seconds": ""} == {**theirs, "seconds": ""}


@pytest.mark.slow
def test_a_process_that_is_killed_ends_the_others_with_a_message(
    quick_options: TrainOptions, tmp_path: Path
) -> None:
    options = replace(quick_options, recipe=replace(RECIPES["modern"], epochs=400, batch_size=4))
    both = tmp_path / "both"
    running = started(options, both)
    children = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)
    try:
        _, stderr = running.communicate(timeout=TORCHRUN_WAITS / 2)
    except subprocess.TimeoutExpired:  # seen twice in hundreds: where it hangs is not known
        os.kill(int(children[0]), signal.SIGABRT)
        _, stderr = running.communicate(timeout=TIMEOUT)
        pytest.fail(f"the other process waits: {stderr.decode()}")
    assert b"error: another process of the run has ended" in stderr, stderr.decode()
    assert b"[rank0]" not in stderr, "a traceback"
    last = read_checkpoint(both / "last.pth").resume
    assert last["step"] == 3 * last["epoch"] + last["batch"] > 0


def started(options: TrainOptions, both: Path) -> subprocess.Popen[bytes]:
    """Two processes in a group of their own that have done an epoch."""
    running = subprocess.Popen(
        command(options, both), env=environment(), stderr=subprocess.PIPE, start_new_session=True
    )
    limit = time.monotonic() + TIMEOUT
    while not (both / "best.pth").exists() and time.monotonic() < limit:
        time.sleep(0.1)
    return running
