"""Files to files with no network between."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from unetrt.bench import feed
from unetrt.bench.feed import Feed, drawn_mask, feed_lines, main, measure_feed
from unetrt.contract.errors import UserError
from unetrt.contract.files import image_paths
from unetrt.contract.masks import read_mask
from unetrt.contract.spec import ModelSpec
from unetrt.runtime import work
from unetrt.training.synthetic import write_dataset


@pytest.fixture
def drawn(tmp_path: Path) -> Path:
    return write_dataset(tmp_path / "drawn", 3, (48, 64))[0]


def test_every_image_is_read_and_its_mask_is_written(
    drawn: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[bool] = []
    write = work.write_atomically

    def looked_at(path: Path, data: bytes) -> None:
        write(path, data)
        written.append(np.array_equal(read_mask(path), drawn_mask((48, 64))))

    monkeypatch.setattr(work, "write_atomically", looked_at)
    found = measure_feed(image_paths(drawn), ModelSpec(channels=3, classes=4), 2, 2, 0.3)
    assert found.rate > 0
    assert found.cpu > 0
    assert len(written) > 6
    assert all(written)


def test_images_that_cannot_be_read_are_no_measurement(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match="none of the images can be read"):
        measure_feed([tmp_path / "a.png"], ModelSpec(channels=1, classes=4), 1, 1, 0.1)


def test_a_row_for_each_number_of_threads(
    drawn: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        feed, "measure_feed", lambda *a: Feed(threads=a[3], rate=200.0, cpu=0.004 * a[3])
    )
    monkeypatch.setattr("sys.argv", ["feed", str(drawn), "--load-threads", "1", "4"])
    assert main() == 0
    assert (
        capsys.readouterr().out.splitlines()[2:]
        == feed_lines(
            [Feed(threads=1, rate=200.0, cpu=0.004), Feed(threads=4, rate=200.0, cpu=0.016)]
        )[2:]
    )
    monkeypatch.setattr("sys.argv", ["feed", str(drawn), "--load-threads", "0"])
    with pytest.raises(SystemExit):
        main()
    monkeypatch.setattr("sys.argv", ["feed", str(drawn / "gone")])
    assert main() == 2
    assert "no folder of images" in capsys.readouterr().err
