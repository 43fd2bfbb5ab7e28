"""The exported graph against PyTorch, at sizes that reach every path of the padding."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F

from unetrt.contract.resize import resize_image
from unetrt.contract.spec import ModelSpec
from unetrt.contract.types import NO_CLASS, U8, Size
from unetrt.engine.open import open_engine
from unetrt.export.onnx_export import folded_masknet, onnx_from_checkpoint, rounded_masknet
from unetrt.training.checkpoint import Checkpoint, read_checkpoint, unet_from_checkpoint
from unetrt.training.masknet import MaskNet
from unetrt.training.synthetic import draw_pair

SIZES: list[Size] = [(200, 200), (192, 208), (333, 217), (37, 1999), (1, 1)]
SCALES = [1.0, 0.5]
FAST = [(1, 4, False), (3, 2, True)]
"""(channels, classes, bilinear): an export takes seconds, the other kinds are slow tests."""
KINDS = [
    pytest.param(*kind, marks=() if kind in FAST else pytest.mark.slow)
    for kind in itertools.product([1, 3], [1, 2, 4], [False, True])
]


def picture(size: Size, channels: int, scale: float) -> U8:
    """The network's input for a drawn image of `size`; grey levels differ between channels."""
    # A drawing needs room for its shapes.
    grey, _ = draw_pair(3, (max(48, size[0]), max(48, size[1])), seed=9)
    grey = grey[: size[0], : size[1]]
    image = np.stack([grey, 255 - grey, grey // 2 + 60][:channels], axis=2)
    return resize_image(image, ModelSpec(scale=scale).input_size(size), "area")


def logits_session(path: Path) -> Any:
    """The graph with one more output: what its last convolution gives."""
    model = onnx.load(str(path))
    last = next(n for n in model.graph.node if "net.outc.conv.weight" in n.input)
    kind = onnx.TensorProto.FLOAT
    model.graph.output.append(onnx.helper.make_tensor_value_info(last.output[0], kind, None))
    return onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )


class Reference:
    """Plain PyTorch: the unfolded network, float logits resized, then the decision."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.net = MaskNet(unet_from_checkpoint(checkpoint), checkpoint.spec).eval()
        self.folded = folded_masknet(checkpoint)

    @torch.inference_mode()
    def logits(self, image: U8) -> Any:
        return self.net.logits(torch.from_numpy(image[None]))

    @torch.inference_mode()
    def folded_logits(self, image: U8) -> Any:
        return self.folded.logits(torch.from_numpy(image[None]))

    def mask_and_margin(self, image: U8, size: Size) -> tuple[U8, Any]:
        """The mask (H, W) and the difference of the two best resized logits."""
        logits = F.interpolate(self.logits(image), size=size, mode="bilinear", align_corners=False)[
            0
        ]
        if len(logits) == 1:  # sigmoid(l) > 0.5 decides between 0 and l
            logits = torch.cat([torch.zeros_like(logits), logits])
        best = logits.topk(2, dim=0).values
        return logits.argmax(0).numpy().astype(np.uint8), (best[0] - best[1]).numpy()


def check_masks(reference: Reference, mask: U8, image: U8, size: Size) -> None:
    expected, margin = reference.mask_and_margin(image, size)
    assert mask.shape == size
    sure = margin > 1e-3
    assert np.array_equal(mask[sure], expected[sure])
    assert np.mean(mask == expected) >= (0.9999 if mask.size > 1 else 0)


def check_logits(reference: Reference, session: Any, image: U8) -> None:
    height, width = image.shape[:2]
    feed = {"image": image[None], "size_like": np.zeros((height, width), np.uint8)}
    found = session.run(None, feed)[1][:, :, :height, :width]
    expected = reference.logits(image).numpy()
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() < 1e-4
    assert np.abs(reference.folded_logits(image).numpy() - expected).max() < 1e-4


@pytest.mark.parametrize(("channels", "classes", "bilinear"), KINDS)
class TestParity:
    @pytest.fixture
    def arguments(self, channels: int, classes: int, bilinear: bool) -> dict[str, Any]:
        kind = {"channels": channels, "classes": classes, "bilinear": bilinear}
        default = {"channels": 1, "classes": 4, "bilinear": False}
        return {} if kind == default else kind

    @pytest.fixture
    def reference(
        self, checkpoint_file: Callable[..., Path], arguments: dict[str, Any]
    ) -> Reference:
        return Reference(read_checkpoint(checkpoint_file(**arguments)))

    @pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
    def test_masks(
        self,
        exported: Callable[..., Path],
        reference: Reference,
        arguments: dict[str, Any],
        backend: str,
    ) -> None:
        with open_engine(exported(**arguments), backend) as engine:
            for scale, size in itertools.product(SCALES, SIZES):
                image = picture(size, reference.checkpoint.spec.channels, scale)
                check_masks(reference, engine.run(image, size), image, size)

    def test_logits(
        self, exported: Callable[..., Path], reference: Reference, arguments: dict[str, Any]
    ) -> None:
        session = logits_session(exported(**arguments))
        for scale, size in itertools.product(SCALES, SIZES):
            check_logits(
                reference, session, picture(size, reference.checkpoint.spec.channels, scale)
            )


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_batch_of_three_equals_three_batches_of_one(
    exported: Callable[..., Path], steel: Callable[..., U8], precision: str
) -> None:
    session = onnxruntime.InferenceSession(
        str(exported(precision)), providers=["CPUExecutionProvider"]
    )
    images = np.stack([steel(i, 45, 70) for i in range(3)])
    like = np.zeros((90, 140), np.uint8)
    together = session.run(None, {"image": images, "size_like": like})[0]
    assert together.shape == (3, 90, 140)
    for image, mask in zip(images, together, strict=True):
        alone = session.run(None, {"image": image[None], "size_like": like})[0]
        assert np.array_equal(alone[0], mask)


def test_fp16_keeps_the_masks_of_a_balanced_net(
    exported: Callable[..., Path], checkpoint_file: Callable[..., Path]
) -> None:
    """Its margins are thin: a trained net keeps more."""
    reference = Reference(read_checkpoint(checkpoint_file()))
    with open_engine(exported("fp16")) as engine:
        for size in SIZES[:4]:
            image = picture(size, 1, 1.0)
            expected, _ = reference.mask_and_margin(image, size)
            assert np.mean(engine.run(image, size) == expected) >= 0.99


class TestRounded:
    """fp16 storage in fp32 arithmetic, where the processor has no fast fp16 of its own."""

    @staticmethod
    @torch.inference_mode()
    def masks(net: MaskNet, images: U8) -> U8:
        like = torch.empty(images.shape[1:3], dtype=torch.uint8)
        return np.asarray(net(torch.from_numpy(images), like).numpy())

    def test_it_stands_for_real_fp16(
        self, checkpoint_file: Callable[..., Path], steel: Callable[..., U8]
    ) -> None:
        checkpoint = read_checkpoint(checkpoint_file())
        images = np.stack([steel(i, 64, 64) for i in range(4)])
        real = self.masks(folded_masknet(checkpoint, "fp16"), images)
        assert np.mean(self.masks(rounded_masknet(checkpoint), images) == real) > 0.995

    @pytest.mark.parametrize("layer", ["inc.double_conv.0", "up4.conv.double_conv.3"])
    def test_an_activation_that_overflows_gives_no_class(
        self, checkpoint_file: Callable[..., Path], steel: Callable[..., U8], layer: str
    ) -> None:
        checkpoint = read_checkpoint(checkpoint_file())
        images = np.stack([steel(i, 64, 64) for i in range(2)])
        # Scaled so that the folded weights themselves just fit into fp16.
        weight = folded_masknet(checkpoint).state_dict()[f"net.{layer}.weight"].abs().max()
        name = f"{layer}.weight"
        checkpoint.state[name] = checkpoint.state[name] * (60000 / float(weight))
        mean = f"{layer[:-1]}{int(layer[-1]) + 1}.running_mean"
        checkpoint.state[mean] = checkpoint.state[mean] * 0
        assert (self.masks(folded_masknet(checkpoint, "fp16"), images) == NO_CLASS).all()
        assert (self.masks(rounded_masknet(checkpoint), images) == NO_CLASS).all()
        assert (self.masks(folded_masknet(checkpoint), images) != NO_CLASS).all()


@pytest.fixture(scope="module")
def learned(trained: Path) -> Reference:
    return Reference(read_checkpoint(trained))


@pytest.fixture(scope="module")
def graphs(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("trained-onnx")
    paths = {name: folder / f"{name}.onnx" for name in ("fp32", "fp16")}
    onnx_from_checkpoint(read_checkpoint(trained), paths["fp32"], "fp32")
    onnx_from_checkpoint(read_checkpoint(trained), paths["fp16"], "fp16")
    return paths


@pytest.mark.slow
class TestTrained:
    @pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
    def test_masks(self, learned: Reference, graphs: dict[str, Path], backend: str) -> None:
        with open_engine(graphs["fp32"], backend) as engine:
            for scale, size in itertools.product(SCALES, SIZES):
                image = picture(size, 1, scale)
                check_masks(learned, engine.run(image, size), image, size)

    def test_logits(self, learned: Reference, graphs: dict[str, Path]) -> None:
        session = logits_session(graphs["fp32"])
        for scale, size in itertools.product(SCALES, SIZES):
            check_logits(learned, session, picture(size, 1, scale))

    def test_fp16(self, learned: Reference, graphs: dict[str, Path]) -> None:
        equal = total = 0
        with open_engine(graphs["fp16"]) as engine:
            for index in range(12):
                image, _ = draw_pair(index, (96, 96), seed=77)
                expected, _ = learned.mask_and_margin(image[..., None], (96, 96))
                assert len(np.unique(expected)) > 1
                equal += int((engine.run(image[..., None], (96, 96)) == expected).sum())
                total += expected.size
        assert equal / total >= 0.999
