"""The demo from end to end, small."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from unetrt.bench.demo import DemoOptions, run_demo
from unetrt.contract.errors import UserError


@pytest.mark.slow
def test_the_demo_runs_whole_and_twice(tmp_path: Path) -> None:
    """Three pictures to look at: fewer than the picture has rows."""
    tiny = DemoOptions(train_pairs=48, test_pairs=3, width=4, epochs=10)
    result = run_demo(tmp_path / "demo", tiny, "unetrt demo")
    folder = tmp_path / "demo"
    for name in ("run/best.pth", "model.onnx", "engine/engine.json", "engine/gate.json"):
        assert (folder / name).is_file()
    for name in ("test/imgs", "test/masks", "masks-pytorch", "masks-engine"):
        assert len(list((folder / name).iterdir())) == 3
    assert result.pytorch.failures == result.engine.failures == []
    assert result.bench is not None
    # So small a network hardly knows scratches: whether bf16 keeps them is up to the processor.
    assert [row.trusted for row in result.bench.rows[:2]] == [True] * 2
    assert (result.bench.rows[2].agreement or 0) > 0.998
    (report,) = (folder / "report").glob("*.json")
    assert json.loads(report.read_text())["command"] == "unetrt demo"
    with Image.open(result.picture) as picture:
        assert picture.width > 800
        assert picture.convert("L").getextrema() == (0, 255)
    again = run_demo(folder, DemoOptions(48, 3, width=4, epochs=1, bench=False), "unetrt demo")
    assert again.bench is None
    assert report.is_file()


@pytest.mark.parametrize("place", ["train/imgs", "test/masks"])
def test_the_demo_draws_nothing_among_pictures_of_ones_own(tmp_path: Path, place: str) -> None:
    """They would be learnt from, and judged on, with the drawn ones, and be hard to tell apart."""
    (tmp_path / place).mkdir(parents=True)
    own = tmp_path / place / "steel-mine.png"
    own.write_bytes(b"mine")
    with pytest.raises(UserError, match="among those of"):
        run_demo(tmp_path, DemoOptions(), "unetrt demo")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [own]
