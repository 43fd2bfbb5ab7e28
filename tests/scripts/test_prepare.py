"""The preparation scripts, as a user runs them, on small folders made here."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SCRIPTS = Path(__file__).resolve().parent.parent.parent / "scripts"


def run(
    script: str, *arguments: object, path: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """path: the only folder in which programs are found."""
    command = [sys.executable, str(SCRIPTS / script), *map(str, arguments)]
    environment = {**os.environ, **({"PATH": str(path)} if path else {})}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def archives(tmp_path: Path) -> Path:
    """Carvana's two archives, as they are laid out, with two cars."""
    folder = tmp_path / "zips"
    folder.mkdir()
    with zipfile.ZipFile(folder / "train_hq.zip", "w") as images:
        for car in ("aa_01", "aa_02"):
            images.writestr(f"train_hq/{car}.jpg", car)
        images.writestr("__MACOSX/train_hq/._aa_01.jpg", "")
    with zipfile.ZipFile(folder / "train_masks.zip", "w") as masks:
        for car in ("aa_01", "aa_02"):
            masks.writestr(f"train_masks/{car}_mask.gif", car)
        masks.writestr("../../outside_mask.gif", "")
    return folder


def test_carvana_is_unpacked_and_checked(tmp_path: Path, archives: Path) -> None:
    """An entry that points outside lands inside, and has no image: the check tells."""
    data = tmp_path / "data"
    done = run("prepare_carvana.py", "--data", data, "--archives", archives)
    assert done.returncode == 1
    assert "['outside']" in done.stderr
    assert not (tmp_path / "outside_mask.gif").exists()
    (data / "masks" / "outside_mask.gif").unlink()
    expected = {f"imgs/aa_0{i}.jpg" for i in (1, 2)} | {f"masks/aa_0{i}_mask.gif" for i in (1, 2)}
    assert names(data) == expected
    (data / "masks" / "mine_mask.png").write_text("mine")
    again = run("prepare_carvana.py", "--data", data, "--archives", archives)
    assert again.returncode == 2
    assert "holds files already" in again.stderr


def test_carvana_goes_on_where_it_was_cut(tmp_path: Path, archives: Path) -> None:
    """Images are whole, masks are cut within a file; hidden files are no data, and stay."""
    with zipfile.ZipFile(archives / "train_masks.zip", "w") as masks:
        for car in ("aa_01", "aa_02"):
            masks.writestr(f"train_masks/{car}_mask.gif", car)
    data = tmp_path / "data"
    for name, text in (
        ("imgs/.keep", ""),
        ("imgs/aa_01.jpg", "aa_01"),
        ("imgs/aa_02.jpg", "aa_02"),
        ("masks/.DS_Store", ""),
        ("masks/aa_01_mask.gif", "aa_"),
    ):
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        (data / name).write_text(text)
    before = (data / "imgs").stat().st_ino
    planned = run("prepare_carvana.py", "--data", data, "--archives", archives, "--dry-run")
    assert planned.stdout == f"unpack {archives / 'train_masks.zip'} to {data / 'masks'}\n"
    for _ in range(2):
        done = run("prepare_carvana.py", "--data", data, "--archives", archives)
        assert done.returncode == 0, done.stderr
        assert "2 images with masks" in done.stdout
    assert (data / "masks" / "aa_01_mask.gif").read_text() == "aa_01"
    assert (data / "masks" / ".DS_Store").exists()
    assert (data / "imgs").stat().st_ino == before
    assert sorted(path.name for path in data.iterdir()) == ["imgs", "masks"]


@pytest.mark.parametrize("damage", ["cut", "changed"])
def test_a_damaged_archive_leaves_nothing(tmp_path: Path, archives: Path, damage: str) -> None:
    """The second one: the first is not unpacked either."""
    path, data = archives / "train_masks.zip", tmp_path / "data"
    content = path.read_bytes()
    path.write_bytes(content[:60] if damage == "cut" else content.replace(b"aa_01", b"bb_01", 2))
    failed = run("prepare_carvana.py", "--data", data, "--archives", archives)
    assert failed.returncode == 2
    assert f"damaged: {path}" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert not names(tmp_path / "data") if data.exists() else True
    path.write_bytes(content)
    (data / "imgs").mkdir(parents=True)
    assert run("prepare_carvana.py", "--data", data, "--archives", archives).returncode == 1
    assert {p.name for p in data.iterdir()} == {"imgs", "masks"}


def test_an_archive_that_is_cut_later_is_told_as_such(tmp_path: Path, archives: Path) -> None:
    """Its folder, filled from it when it was whole, is not another's."""
    data = tmp_path / "data"
    run("prepare_carvana.py", "--data", data, "--archives", archives)
    assert names(data / "imgs")
    path = archives / "train_hq.zip"
    path.write_bytes(path.read_bytes()[:60])
    failed = run("prepare_carvana.py", "--data", data, "--archives", archives)
    assert failed.returncode == 2
    assert f"damaged: {path}" in failed.stderr


def test_carvana_s_plan_is_told_without_doing_it(tmp_path: Path) -> None:
    done = run("prepare_carvana.py", "--data", tmp_path / "data", "--dry-run")
    assert done.returncode == 0
    first, second, *unpack = done.stdout.splitlines()
    wanted = "kaggle competitions download -c carvana-image-masking-challenge -f train_hq.zip"
    assert first.startswith(wanted)
    assert "-f train_masks.zip" in second
    assert len(unpack) == 2
    assert not list(tmp_path.iterdir())


def test_carvana_is_fetched_by_kaggle_s_client(tmp_path: Path, archives: Path) -> None:
    """A client of the same command line stands for Kaggle's, which needs an account."""
    programs = tmp_path / "bin"
    programs.mkdir()
    missing = run("prepare_carvana.py", "--data", tmp_path / "data", path=programs)
    assert missing.returncode == 2
    assert "pip install kaggle" in missing.stderr
    client = programs / "kaggle"
    copy = "import shutil, sys\na = sys.argv\nf, p = a[a.index('-f') + 1], a[a.index('-p') + 1]\n"
    client.write_text(f"#!{sys.executable}\n{copy}shutil.copy({str(archives)!r} + '/' + f, p)\n")
    client.chmod(0o755)
    done = run("prepare_carvana.py", "--data", tmp_path / "data", path=programs)
    assert "outside" in done.stderr
    assert names(tmp_path / "data" / "archives") == {"train_hq.zip", "train_masks.zip"}
    client.write_text(f"#!{sys.executable}\nraise SystemExit(1)\n")
    failed = run("prepare_carvana.py", "--data", tmp_path / "other", path=programs)
    assert failed.returncode == 2
    assert "rules accepted" in failed.stderr


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """NEU_Seg's two folders; the same numbers stand for different pictures."""
    source = tmp_path / "NEU_Seg"
    for folder, count in (("training", 30), ("test", 4)):
        for kind, suffix in (("images", "jpg"), ("annotations", "png")):
            (source / kind / folder).mkdir(parents=True)
            for number in range(count):
                path = source / kind / folder / f"{number:06}.{suffix}"
                value = number % 4 if kind == "annotations" else number
                Image.fromarray(np.full((6, 8), value, np.uint8)).save(path)
    return source


def test_neu_seg_keeps_its_folders_apart(tmp_path: Path, repository: Path) -> None:
    out = tmp_path / "out"
    planned = run("prepare_neu_seg.py", repository, "--out", out, "--dry-run")
    assert "train: 30 pairs" in planned.stdout
    assert not out.exists()
    done = run("prepare_neu_seg.py", repository, "--out", out)
    assert done.returncode == 0
    assert "shares scenes with train" in done.stdout
    found = names(out)
    assert len(found) == 2 * 34
    assert {"train/imgs/tr000001.jpg", "val/masks/te000001.png"} <= found
    source = repository / "images" / "test" / "000001.jpg"
    assert (out / "val" / "imgs" / "te000001.jpg").read_bytes() == source.read_bytes()


def test_neu_seg_goes_on_where_it_was_cut(tmp_path: Path, repository: Path) -> None:
    """A part is there whole or not at all, so that one that is there is not made again."""
    out = tmp_path / "out"
    assert run("prepare_neu_seg.py", repository, "--out", out).returncode == 0
    shutil.rmtree(out / "val")
    (out / "val").mkdir()
    (out / "val" / ".DS_Store").touch()
    before = (out / "train").stat().st_ino
    assert run("prepare_neu_seg.py", repository, "--out", out).returncode == 0
    assert (out / "train").stat().st_ino == before
    assert len(list((out / "val" / "imgs").iterdir())) == 4


def test_neu_seg_s_endings_may_be_in_capitals(tmp_path: Path, repository: Path) -> None:
    for path in [*repository.glob("images/test/*"), *repository.glob("annotations/training/*")]:
        path.rename(path.with_suffix(path.suffix.upper()))
    done = run("prepare_neu_seg.py", repository, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    found = names(tmp_path / "out")
    assert len(found) == 2 * 34
    assert {"val/imgs/te000001.jpg", "train/masks/tr000001.png"} <= found


def zipped(repository: Path) -> Path:
    """As GitHub gives it, with what a Mac adds, and an entry that points outside."""
    archive = repository.with_name("NEU_Seg-main.zip")
    with zipfile.ZipFile(archive, "w") as content:
        for path in sorted(repository.rglob("*.*")):
            content.write(path, f"NEU_Seg-main/{path.relative_to(repository).as_posix()}")
        content.writestr("__MACOSX/NEU_Seg-main/images/test/._000001.jpg", "")
        content.writestr("NEU_Seg-main/README.md", "# NEU_Seg")
        content.writestr("../../outside/README.md", "")
    return archive


def test_neu_seg_is_taken_as_it_was_downloaded(tmp_path: Path, repository: Path) -> None:
    archive, out = zipped(repository), tmp_path / "out"
    planned = run("prepare_neu_seg.py", archive, "--out", out, "--dry-run")
    assert "train: 30 pairs" in planned.stdout
    assert not out.exists()
    assert run("prepare_neu_seg.py", archive, "--out", out).returncode == 0
    assert run("prepare_neu_seg.py", repository, "--out", tmp_path / "same").returncode == 0
    assert names(out) == names(tmp_path / "same")
    for name in names(out):
        assert (out / name).read_bytes() == (tmp_path / "same" / name).read_bytes()
    assert not list(tmp_path.parent.glob("outside"))


@pytest.mark.parametrize("damage", ["cut", "changed"])
def test_a_damaged_archive_of_neu_seg_leaves_nothing(
    tmp_path: Path, repository: Path, damage: str
) -> None:
    archive, out = zipped(repository), tmp_path / "out"
    content = archive.read_bytes()
    archive.write_bytes(content[:-60] if damage == "cut" else content.replace(b"JFIF", b"JFIG", 1))
    failed = run("prepare_neu_seg.py", archive, "--out", out)
    assert failed.returncode == 2
    assert f"damaged: {archive}" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert not out.exists()


@pytest.mark.parametrize(
    ("pixels", "says"),
    [
        (np.zeros((6, 9), np.uint8), "training/000003: the image has 6×8 pixels, the mask 6×9"),
        (np.full((6, 8), 4, np.uint8), "training/000003: the mask holds the value 4, expected 0"),
        (np.zeros((6, 8, 3), np.uint8) + np.uint8([0, 9, 0]), "the mask 6×8 in colours"),
        (None, "training/000003: "),
    ],
)
def test_neu_seg_s_pairs_are_looked_at(
    tmp_path: Path, repository: Path, pixels: np.ndarray | None, says: str
) -> None:
    mask = repository / "annotations" / "training" / "000003.png"
    if pixels is None:
        mask.write_bytes(mask.read_bytes()[:40])
    else:
        Image.fromarray(pixels).save(mask)
    done = run("prepare_neu_seg.py", repository, "--out", tmp_path / "out")
    assert done.returncode == 1
    assert "1 of 34 pairs cannot be used" in done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_neu_seg_never_parts_a_scene(tmp_path: Path, repository: Path) -> None:
    table = tmp_path / "scenes.csv"
    scene = {f"tr{i:06}": f"scene{i // 2}" for i in range(30)}
    scene |= {f"te{i:06}": f"scene{i}" for i in range(4)}
    table.write_text("stem,scene\n" + "".join(f"{s},{c}\n" for s, c in scene.items()))
    done = run("prepare_neu_seg.py", repository, "--out", tmp_path / "out", "--scenes", table)
    assert done.returncode == 0
    parts = [
        {scene[path.stem] for path in (tmp_path / "out" / part / "imgs").iterdir()}
        for part in ("train", "val")
    ]
    assert parts[0]
    assert parts[1]
    assert not parts[0] & parts[1]


def test_neu_seg_tells_what_has_no_partner(tmp_path: Path, repository: Path) -> None:
    (repository / "annotations" / "training" / "000003.png").unlink()
    done = run("prepare_neu_seg.py", repository, "--out", tmp_path / "out")
    assert done.returncode == 1
    assert "training/000003" in done.stderr
    assert run("prepare_neu_seg.py", tmp_path, "--out", tmp_path / "out").returncode == 2


def test_neu_seg_is_not_laid_out_over_another_layout(tmp_path: Path, repository: Path) -> None:
    """Pictures of both layouts would be in train and in val."""
    out, table = tmp_path / "out", tmp_path / "scenes.csv"
    stems = [f"tr{i:06}" for i in range(30)] + [f"te{i:06}" for i in range(4)]
    table.write_text("stem,scene\n" + "".join(f"{s},scene{i // 2}\n" for i, s in enumerate(stems)))
    assert run("prepare_neu_seg.py", repository, "--out", out).returncode == 0
    before = names(out)
    for more in ((), ("--scenes", table)):
        again = run("prepare_neu_seg.py", repository, "--out", out, *more)
        assert again.returncode == 2
        assert "holds files already: name another --out" in again.stderr
    assert names(out) == before


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "cannot be read"),
        (b"\xff\xfe\x00", "cannot be read"),
        (b"", "no column scene and stem"),
        (b"stem,group\ntr000000,a\n", "no column scene; columns: stem, group"),
        (b"stem,scene\n", "34 of 34 pictures have no scene: tr000000"),
        (b"stem,scene\ntr000000,a\ntr000001\n", "33 of 34 pictures have no scene: tr000001"),
        (b"stem,scene\ntr000000,a\ntr000000,b\n", "tr000000 is of two scenes"),
        ("all", "val would have no pairs: 34 pairs, one scene of 10"),
    ],
)
def test_a_table_that_does_not_say_every_scene_is_refused(
    tmp_path: Path, repository: Path, content: bytes | str | None, says: str
) -> None:
    table, out = tmp_path / "scenes.csv", tmp_path / "out"
    if content == "all":
        stems = [f"tr{i:06}" for i in range(30)] + [f"te{i:06}" for i in range(4)]
        table.write_text("stem,scene\n" + "".join(f"{stem},one\n" for stem in stems))
    elif isinstance(content, bytes):
        table.write_bytes(content)
    failed = run("prepare_neu_seg.py", repository, "--out", out, "--scenes", table)
    assert failed.returncode == 2
    assert says in failed.stderr
    assert "Traceback" not in failed.stderr
    assert not out.exists()
