"""The top level: help, version, exit statuses, and streams that are not as they should be."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Command
from unetrt.cli import doctor, inspect, predict
from unetrt.cli.main import VERBS

HEAVY = ("torch", "onnx", "onnxruntime", "openvino", "cv2", "numpy", "PIL", "matplotlib", "rich")

ANSWERS = """
import contextlib, io, json, sys
from unetrt.cli.main import main
answers = {}
for arguments in json.loads(sys.argv[1]):
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        main(arguments)
    answers[" ".join(arguments)] = out.getvalue()
heavy = [name for name in json.loads(sys.argv[2]) if name in sys.modules]
print(json.dumps({"answers": answers, "heavy": heavy}))
"""


def test_help_and_version_answer_without_anything_heavy() -> None:
    asked = [["--help"], ["--version"], [], *([verb, "--help"] for verb in VERBS)]
    done = subprocess.run(
        [sys.executable, "-c", ANSWERS, json.dumps(asked), json.dumps(HEAVY)],
        capture_output=True,
        text=True,
        check=True,
    )
    told = json.loads(done.stdout)
    assert told["heavy"] == []
    assert told["answers"]["--version"].startswith("unetrt ")
    for verb, what in VERBS.items():
        assert f"{verb} " in told["answers"]["--help"]
        assert what in told["answers"]["--help"]
        assert f"usage: unetrt {verb}" in told["answers"][f"{verb} --help"]
        assert "-h, --help" in told["answers"][f"{verb} --help"]
    assert told["answers"][""] == told["answers"]["--help"]


def test_a_limit_of_threads_is_told(monkeypatch: pytest.MonkeyPatch, unetrt: Command) -> None:
    """As in a container with few processes. What is put in its place: root has no such limit."""

    def refuses(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(doctor, "run", lambda args: threading.Thread(target=print).start() or 0)
        patch.setattr(threading.Thread, "start", refuses)
        outcome = unetrt("doctor")
    assert outcome.status == 2
    assert "no more threads" in outcome.err
    assert "--pids-limit" in outcome.err


def test_the_package_runs_as_a_module() -> None:
    command = [sys.executable, "-m", "unetrt.cli"]
    done = subprocess.run([*command, "--version"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("unetrt ")
    wrong = subprocess.run([*command, "fly"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 2
    assert "Hint: unetrt --help" in wrong.stderr


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["fly"], "'fly'"),
        (["--", "predict"], "the verb comes first"),
        (["predict"], "no input images"),
        (["predict", "-i", "a.png", "--format", "tiff"], "'tiff'"),
        (["predict", "-i", "a.png", "--batch", "0"], "a whole number above 0"),
        (["predict", "-i", "a.png", "--batch", "two"], "a whole number above 0"),
        (["predict", "-i", "a.png", "--scale", "0"], "above 0, to 8"),
        (["predict", "-i", "a.png", "--scale", "nan"], "above 0, to 8"),
        (["predict", "-i", "a.png", "--scale", "half"], "above 0, to 8"),
        (["predict", "-i", "a.png", "-t", "1"], "between 0 and 1"),
        (["predict", "-i", "a.png", "--device", "gpu"], "cuda:N"),
        (["predict", "-i", "a.png", "--backend", "tflite"], "'tflite'"),
        (["predict", "-i", "a.png", "--bit-depth", "7"], "7"),
        (["predict", "-i", "a.png", "--json", "no/such/folder/x.json"], "a folder that is there"),
        (["predict", "-i", "a.png", "--classes", "many"], "'many'"),
        (["evaluate", "m.pth", "--images", "x"], "--masks"),
        (["evaluate", "m.pth", "--images", "x", "--masks", "y", "--json", "."], "a file in"),
        (["export", "m.pth"], "--output"),
        (["export", "m.pth", "-o", "x.onnx", "--precision", "int4"], "'int4'"),
        (["build", "m.pth", "-o", "e", "--min-agreement", "99"], "from 0 to 1"),
        (["build", "m.pth", "-o", "e", "--batch", "4,1"], "1,4,8"),
        (["build", "m.pth", "-o", "e", "--batch", "8,4,1"], "1,4,8"),
        (["build", "m.pth", "-o", "e", "--size", "640"], "200x300"),
        (["build", "m.pth", "-o", ""], "the name of a file or folder"),
        (["bench", "--images", "x"], "MODEL"),
        (["bench", "m.pth", "--images", "x", "--seconds", "-1"], "--seconds"),
        (["bench", "m.pth", "--images", "x", "--seconds", "0"], "above 0"),
        (["triton", "e", "-o", "r", "--delay", "9" * 23], "from 0 to 3600000000"),
        (["triton", "e", "-o", "r", "--delay", "-1"], "from 0 to 3600000000"),
        (["triton", "e", "-o", "r", "--instances", "0"], "from 1 to 1024"),
        (["triton", "e", "-o", "r", "--instances", "2147483647"], "from 1 to 1024"),
        (["triton", "e", "-o", "r", "--instances", "99999999999"], "from 1 to 1024"),
        (["triton", "e", "-o", "r", "--max-batch", "99999999999"], "from 1 to 65536"),
        (["inspect"], "MODEL"),
        (["doctor", "--cure"], "--cure"),
    ],
)
def test_a_wrong_flag_is_one_message_with_a_hint(
    arguments: list[str], named: str, unetrt: Command
) -> None:
    outcome = unetrt(*arguments)
    assert named in outcome.error
    verb = f" {arguments[0]}" if arguments[0] in VERBS else ""
    assert outcome.err.endswith(f"Hint: unetrt{verb} --help\n")
    assert outcome.out == ""


def test_an_interrupt_is_130_and_one_line(unetrt: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(args: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(doctor, "run", interrupted)
    outcome = unetrt("doctor")
    assert outcome.status == 130
    assert outcome.err == "unetrt doctor: interrupted; what is written is whole\n"


def test_what_the_system_refuses_is_a_message_too(
    unetrt: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(args: object) -> int:
        raise PermissionError(13, "Permission denied", "/root/x.json")

    monkeypatch.setattr(doctor, "run", refused)
    assert "Permission denied: '/root/x.json'" in unetrt("doctor").whole_error


def test_where_no_temporary_file_fits_the_hint_names_their_folder(
    unetrt: Command,
    checkpoint_file: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """As in a container that is read-only: PyTorch's exporter ended in pages of its own."""
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: [str(tmp_path / "none")])
    found = unetrt("export", checkpoint_file(), "-o", tmp_path / "model.onnx")
    assert "No usable temporary directory" in found.whole_error
    assert "TMPDIR=DIR unetrt export …" in found.err
    assert not list(tmp_path.glob("*.onnx"))


@pytest.mark.parametrize("name", [signal.SIGTERM, signal.SIGHUP])
def test_a_build_that_is_ended_leaves_nothing_half_written(
    name: signal.Signals, checkpoint_file: Callable[..., Path], tmp_path: Path
) -> None:
    """`timeout 60 unetrt build …`, `docker stop`, scancel: a hidden folder stayed, each time."""
    command = [sys.executable, "-m", "unetrt.cli", "build", str(checkpoint_file()), "-o"]
    with subprocess.Popen(
        [*command, tmp_path / "engine"], stderr=subprocess.PIPE, text=True
    ) as build:
        while build.poll() is None and not any(tmp_path.glob(".*.tmp")):
            time.sleep(0.02)
        build.send_signal(name)
        told = build.communicate(timeout=60)[1]
    assert build.returncode == 130
    assert told.endswith("unetrt build: interrupted; what is written is whole\n")
    assert "Traceback" not in told
    assert not list(tmp_path.iterdir())


def test_an_error_of_ours_is_not_hidden(unetrt: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(args: object) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr(doctor, "run", broken)
    with pytest.raises(ZeroDivisionError):
        unetrt("doctor")


def test_a_reader_that_leaves_early_or_never_was_is_no_error(
    checkpoint_file: Callable[..., Path],
) -> None:
    """`unetrt inspect MODEL | true`, and with standard output closed."""
    command = f"{sys.executable} -m unetrt.cli inspect {checkpoint_file()}"
    script = f"set -o pipefail; {command} | true; echo $?; {command} >&-; echo $?"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("0\n0\n", "")


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_streams_are_as_buffered_as_they_were(unbuffered: str) -> None:
    """PYTHONUNBUFFERED: a kill loses no line."""
    code = "from unetrt.cli import main; main._open_streams(); import os, sys;"
    code += "print('out'); print('told', file=sys.stderr); os._exit(0)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("out\n" if unbuffered else "", "told\n")


def test_a_name_that_is_no_unicode_is_shown_escaped(
    checkpoint_file: Callable[..., Path], tmp_path: Path
) -> None:
    folder = os.fsencode(tmp_path) + b"/caf\xe9"
    Path(os.fsdecode(folder)).mkdir()
    command = [sys.executable, "-m", "unetrt.cli", "convert", str(checkpoint_file()), "-o"]
    done = subprocess.run(
        [*command, folder + b"/x.pth"], capture_output=True, check=False, text=False
    )
    assert done.returncode == 0, done.stderr
    assert b"caf\\udce9/x.pth" in done.stdout


PATIENCE = """
import os, sys
def told():
    print(os.environ.get("OMP_WAIT_POLICY"), os.environ.get("GOMP_SPINCOUNT"))
class Seen:
    def find_spec(name, path=None, target=None):
        if name == "torch":
            told()
sys.meta_path.insert(0, Seen)
from unetrt.cli.main import main
main(sys.argv[1:])
told()
"""


@pytest.mark.parametrize(
    ("arguments", "given"),
    [
        (["train", "--images", "x"], {}),
        (["train", "--images", "x"], {"OMP_WAIT_POLICY": "ACTIVE"}),
        (["train", "--images", "x"], {"GOMP_SPINCOUNT": "5"}),
        (["demo", "--out", "x"], {}),
    ],
)
def test_what_trains_lets_others_compute(
    given: dict[str, str], arguments: list[str], tmp_path: Path
) -> None:
    """PyTorch's library of threads reads it as it is loaded; bench's rows are not to inherit it."""
    (tmp_path / "x").touch()
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    environment = {key: value for key, value in os.environ.items() if key not in names}
    done = subprocess.run(
        [sys.executable, "-c", PATIENCE, *arguments],
        env=environment | given,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    meanwhile = given or {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "10000"}
    assert done.stdout.splitlines() == [
        " ".join(str(told.get(name)) for name in names) for told in (meanwhile, given)
    ]


def test_every_verb_has_one_module_with_the_two_functions() -> None:
    for module in (doctor, inspect, predict):
        assert callable(module.add_arguments)
        assert callable(module.run)
    folder = Path(predict.__file__).parent
    assert {path.stem for path in folder.glob("*.py")} == {
        *VERBS,
        "__init__",
        "__main__",
        "main",
        "predict_many",
        "shared",
    }
