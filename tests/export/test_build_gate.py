"""An engine directory is published past its gate, whole, or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.export.test_build import FILES, Export, options, snapshot
from unetrt.contract.errors import GateError, UserError
from unetrt.contract.files import image_paths
from unetrt.contract.resize import network_input
from unetrt.engine.manifest import GOLDEN, read_golden, read_manifest
from unetrt.engine.open import open_engine
from unetrt.export import publish
from unetrt.export.build import build_engine
from unetrt.export.gate import GateOptions
from unetrt.export.source import read_source


@pytest.fixture(scope="module")
def built(exported: Export, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("built") / "engine"
    build_engine(exported(), path, options())
    return path


@pytest.fixture
def engine(built: Path, tmp_path: Path) -> Path:
    """A copy of an engine, alone in its folder."""
    return shutil.copytree(built, tmp_path / "engine")


class TestAtomicity:
    def test_a_failed_gate_writes_nothing(
        self, exported: Export, tmp_path: Path, sabotage: Callable[..., None]
    ) -> None:
        sabotage()
        with pytest.raises(GateError) as caught:
            build_engine(exported(), tmp_path / "engine", options())
        assert caught.value.status == 1
        assert "--force" in str(caught.value.hint)
        assert not list(tmp_path.iterdir())

    def test_an_engine_is_replaced_whole(
        self, exported: Export, engine: Path, tmp_path: Path
    ) -> None:
        (engine / GOLDEN).write_bytes(b"damaged")
        (engine / "model.plan").write_bytes(b"of an older backend")
        build_engine(exported(), engine, options())
        assert {p.name for p in engine.iterdir()} == FILES
        open_engine(engine).close()
        assert [p.name for p in tmp_path.iterdir()] == ["engine"]

    @pytest.mark.parametrize("fault", ["gate", "crash", "interrupt"])
    def test_an_older_engine_stays_when_the_new_one_fails(
        self,
        exported: Export,
        engine: Path,
        tmp_path: Path,
        sabotage: Callable[..., None],
        monkeypatch: pytest.MonkeyPatch,
        fault: str,
    ) -> None:
        def fail(*_: Any) -> None:
            raise KeyboardInterrupt if fault == "interrupt" else OSError("disk full")

        before = snapshot(tmp_path)
        if fault == "gate":
            sabotage()
        else:
            monkeypatch.setattr(publish, "_publish", fail)
        with pytest.raises((GateError, OSError, KeyboardInterrupt)):
            build_engine(exported(), engine, options(rebuild=True))
        assert snapshot(tmp_path) == before


class TestGate:
    def test_force_publishes_with_the_verdict_inside(
        self, exported: Export, tmp_path: Path, sabotage: Callable[..., None]
    ) -> None:
        sabotage()
        built = build_engine(exported(), tmp_path / "engine", options(GateOptions(force=True)))
        assert built.gate.verdict == "failed"
        assert built.gate.failures
        assert read_manifest(tmp_path / "engine").gate["verdict"] == "failed"
        open_engine(tmp_path / "engine").close()

    def test_force_leaves_a_good_verdict_alone(self, exported: Export, tmp_path: Path) -> None:
        built = build_engine(exported(), tmp_path / "engine", options(GateOptions(force=True)))
        assert built.gate.verdict == "passed"

    def test_min_agreement(
        self, exported: Export, tmp_path: Path, sabotage: Callable[..., None]
    ) -> None:
        sabotage(lambda weights: weights * 1.02)
        with pytest.raises(GateError):
            build_engine(exported(), tmp_path / "engine", options(GateOptions(min_agreement=1.0)))
        gate = GateOptions(min_agreement=0.5)
        built = build_engine(exported(), tmp_path / "engine", options(gate))
        assert 0.5 < built.gate.agreement < 1
        open_engine(tmp_path / "engine").close()

    def test_images(self, exported: Export, tmp_path: Path, pictures: tuple[Path, Path]) -> None:
        built = build_engine(exported(), tmp_path / "e", options(GateOptions(images=pictures[0])))
        assert (built.gate.inputs, built.gate.images) == ("images", 8)
        assert all(c.iou_drop is None for c in built.gate.classes)
        golden = read_golden(tmp_path / "e" / GOLDEN)
        spec = built.manifest.spec
        first = network_input(image_paths(pictures[0])[0], spec)[0]
        assert len(golden) == 4
        assert np.array_equal(golden[0].image, first)

    @pytest.mark.parametrize(("allowed", "passes"), [(0.01, False), (1.0, True)])
    def test_images_and_masks(
        self,
        exported: Export,
        tmp_path: Path,
        pictures: tuple[Path, Path],
        sabotage: Callable[..., None],
        allowed: float,
        passes: bool,
    ) -> None:
        sabotage()
        images, masks = pictures
        gate = GateOptions(images=images, masks=masks, min_agreement=0.0, max_iou_drop=allowed)
        if not passes:
            with pytest.raises(GateError, match="IoU of"):
                build_engine(exported(), tmp_path / "engine", options(gate))
            return
        built = build_engine(exported(), tmp_path / "engine", options(gate))
        assert any(c.iou_drop is not None and c.iou_drop > 0.01 for c in built.gate.classes)

    def test_masks_without_their_images(
        self, exported: Export, tmp_path: Path, pictures: tuple[Path, Path]
    ) -> None:
        masks = shutil.copytree(pictures[1], tmp_path / "masks")
        next(masks.iterdir()).unlink()
        gate = GateOptions(images=pictures[0], masks=masks)
        with pytest.raises(UserError):
            build_engine(exported(), tmp_path / "engine", options(gate))
        assert [p.name for p in tmp_path.iterdir()] == ["masks"]

    def test_output_that_is_not_finite(
        self, exported: Export, tmp_path: Path, sabotage: Callable[..., None]
    ) -> None:
        sabotage(lambda weights: weights * np.float32(np.inf))
        gate = GateOptions(min_agreement=0.0)
        with pytest.raises(GateError, match="4 images whose output is not finite"):
            build_engine(exported(), tmp_path / "engine", options(gate))

    def test_what_the_gate_let_through_opens_again(
        self,
        exported: Export,
        tmp_path: Path,
        pictures: tuple[Path, Path],
        sabotage: Callable[..., None],
    ) -> None:
        """Also where the few golden images agree less than all gate images do."""
        spec = read_source(exported()).spec
        sabotage(lambda weights: weights * 1.05)
        build_engine(exported(), tmp_path / "any", options(GateOptions(min_agreement=0.0)))
        equal = []
        with open_engine(tmp_path / "any") as engine, open_engine(exported()) as reference:
            for path in image_paths(pictures[0]):
                image, size = network_input(path, spec)
                equal.append((np.mean(engine.run(image, size) == reference.run(image, size)), path))
        folder = tmp_path / "sorted"  # the worst images first: they become the golden ones
        folder.mkdir()
        for place, (_, path) in enumerate(sorted(equal)):
            shutil.copy(path, folder / f"{place}.png")
        shares = sorted(float(share) for share, _ in equal)
        bound = (sum(shares[:4]) / 4 + sum(shares) / 8) / 2
        assert sum(shares[:4]) / 4 < bound < sum(shares) / 8
        gate = GateOptions(images=folder, min_agreement=bound)
        built = build_engine(exported(), tmp_path / "engine", options(gate))
        assert built.gate.verdict == "passed"
        open_engine(tmp_path / "engine").close()
