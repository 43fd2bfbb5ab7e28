from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from unetrt.contract.errors import UserError
from unetrt.contract.spec import ModelSpec
from unetrt.training.batches import Batch
from unetrt.training.checkpoint import read_checkpoint, write_checkpoint
from unetrt.training.finite import first_not_finite
from unetrt.training.losses import LossOptions, segmentation_loss
from unetrt.training.masknet import MaskNet
from unetrt.training.options import RecipeOptions, TrainOptions
from unetrt.training.ranks import Ranks
from unetrt.training.resume import options_from_json
from unetrt.training.step import NotFiniteError, StepOptions, Stepper, amp_dtype
from unetrt.training.train import train
from unetrt.training.unet import UNet

LOSS = "unetrt.training.step.segmentation_loss"
HALF = StepOptions(loss=LossOptions(), amp=torch.float16)


def folder_of(options: TrainOptions) -> Path:
    assert options.out is not None
    return options.out


def stepper_of(options: StepOptions, rate: float = 1e-2) -> tuple[Stepper, UNet]:
    torch.manual_seed(0)
    net = UNet(1, 3, 4).train()
    optimizer = torch.optim.SGD(net.parameters(), rate)
    return Stepper(net, MaskNet(net, ModelSpec(channels=1)), optimizer, options, Ranks()), net


def a_batch() -> Batch:
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.integers(0, 256, (2, 32, 32, 1), np.uint8))
    return Batch(images, torch.from_numpy(rng.integers(0, 3, (2, 32, 32))), [])


ON_GPU = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")
LOST = [
    RuntimeError("[/pytorch/third_party/gloo/gloo/tcp/pair.cc:5] Connection closed by peer"),
    torch.distributed.DistBackendError("NCCL communicator was aborted"),
]
ON_CPU = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 GiB")


def failing_at(*steps: int, error: Exception = ON_GPU) -> Callable[..., Tensor]:
    """The loss, short of memory when it is called for these times."""
    calls: list[int] = []

    def loss(logits: Tensor, truth: Tensor, options: LossOptions, ranks: Ranks) -> Tensor:
        calls.append(len(calls))
        if len(calls) in steps:
            raise error
        return segmentation_loss(logits, truth, options, ranks)

    return loss


def test_out_of_memory_goes_on_with_the_same_numbers(
    quick_options: TrainOptions,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    train(replace(quick_options, out=tmp_path / "roomy"))
    monkeypatch.setattr(LOSS, failing_at(2))
    train(quick_options)
    assert sum("out of memory" in record.message for record in caplog.records) == 1
    roomy = read_checkpoint(tmp_path / "roomy" / "last.pth")
    tight = read_checkpoint(folder_of(quick_options) / "last.pth")
    assert roomy.resume["step"] == tight.resume["step"] == 6
    assert all(torch.equal(tight.state[key], value) for key, value in roomy.state.items())


@pytest.mark.parametrize("error", [ON_GPU, ON_CPU, MemoryError()])
def test_a_batch_that_fits_in_no_way_is_told(
    quick_options: TrainOptions, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """The second step and its repetition fail: the state of after the first one is kept."""
    monkeypatch.setattr(LOSS, failing_at(2, 3, error=error))
    with pytest.raises(UserError, match="does not fit into the memory of this machine") as caught:
        train(quick_options)
    assert "at step 2 (epoch 1); the weights after step 1" in str(caught.value)
    assert str(caught.value.seen) == (str(error) or "MemoryError")
    assert "--batch-size" in str(caught.value.hint)
    last = read_checkpoint(folder_of(quick_options) / "last.pth")
    assert last.resume["step"] == last.state["inc.double_conv.1.num_batches_tracked"] == 1


def test_an_optimiser_without_memory_leaves_the_checkpoint_of_before(
    quick_options: TrainOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Part of the weights may have moved: they are of no step."""

    def fails(self: torch.optim.Optimizer) -> None:
        raise ON_CPU

    monkeypatch.setattr("torch.optim.AdamW.step", fails)
    with pytest.raises(UserError, match="the weights after step 0 are in"):
        train(quick_options)
    state = read_checkpoint(folder_of(quick_options) / "last.pth").state
    assert state["inc.double_conv.1.num_batches_tracked"] == 0


def test_another_error_is_not_taken_for_it(
    quick_options: TrainOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LOSS, failing_at(1, error=RuntimeError("shapes differ")))
    with pytest.raises(RuntimeError, match="shapes differ"):
        train(quick_options)


@pytest.mark.parametrize("lost", LOST, ids=("gloo", "nccl"))
def test_the_loss_of_another_process_costs_no_step(
    lost: RuntimeError, quick_options: TrainOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the second step's forward pass did to the running statistics is not kept."""
    monkeypatch.setattr(LOSS, failing_at(2, error=lost))
    with pytest.raises(UserError, match=r"another process .* after step 1 \(epoch 1\); the"):
        train(quick_options)
    last = read_checkpoint(folder_of(quick_options) / "last.pth")
    assert last.resume["step"] == 1
    assert last.resume["trained"]["inc.double_conv.1.num_batches_tracked"] == 1


@pytest.mark.parametrize("bilinear", [False, True])
def test_recomputed_blocks_keep_less_and_give_the_same_gradients(bilinear: bool) -> None:
    def run(recompute: bool) -> tuple[int, list[Tensor]]:
        torch.manual_seed(0)
        net = UNet(1, 3, 4, bilinear).train()
        net.recompute = recompute
        kept = 0

        def keep(tensor: Tensor) -> Tensor:
            nonlocal kept
            kept += tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = net(torch.linspace(0, 1, 2 * 48 * 48).reshape(2, 1, 48, 48)).square().mean()
            forward = kept
        loss.backward()
        gradients = [p.grad for p in net.parameters() if p.grad is not None]
        return forward, [*gradients, *net.buffers()]

    (plain, expected), (less, found) = run(False), run(True)
    assert less < 0.5 * plain
    assert len(found) == len(expected)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_a_recomputing_net_evaluates_as_any_other() -> None:
    net = UNet(1, 2, 2).eval()
    image = torch.rand(1, 1, 16, 16)
    expected = net(image)
    net.recompute = True
    assert torch.equal(net(image), expected)


def test_float16_scales_its_loss_and_moves_the_weights() -> None:
    stepper, net = stepper_of(HALF)
    before = [p.clone() for p in net.parameters()]
    losses = [stepper.step(a_batch()) for _ in range(8)]
    assert stepper.scaler.is_enabled()
    assert losses[-1][0] < losses[0][0]
    assert any(moved for _, moved in losses)
    assert not any(torch.equal(p, b) for p, b in zip(net.parameters(), before, strict=True))


def test_float16_steps_again_where_memory_ends_after_its_gradients_are_unscaled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In the second step, while they are clipped: the same numbers, and the scale of before."""
    whole = torch.nn.utils.clip_grad_norm_
    calls: list[int] = []

    def clips(parameters: Iterable[Tensor], norm: float) -> Tensor:
        calls.append(len(calls))
        if len(calls) == 2:
            raise ON_GPU
        return whole(parameters, norm)

    (roomy, expected), (tight, net) = stepper_of(HALF), stepper_of(HALF)
    for stepper in (roomy, tight):
        stepper.scaler.load_state_dict({**stepper.scaler.state_dict(), "scale": 2.0**7})
    before = [roomy.step(a_batch()) for _ in range(3)]
    monkeypatch.setattr("torch.nn.utils.clip_grad_norm_", clips)
    assert [tight.step(a_batch()) for _ in range(3)] == before
    assert len(calls) == 4
    assert all(moved for _, moved in before)
    assert tight.scaler.state_dict() == roomy.scaler.state_dict()
    assert tight.scaler.get_scale() == 2.0**7
    pairs = zip(net.state_dict().values(), expected.state_dict().values(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_an_overflow_of_float16_skips_the_step_and_lowers_the_scale() -> None:
    stepper, net = stepper_of(HALF)
    stepper.scaler.load_state_dict({**stepper.scaler.state_dict(), "scale": 2.0**60})
    before = [p.clone() for p in net.parameters()]
    _, moved = stepper.step(a_batch())
    assert not moved
    assert stepper.scaler.get_scale() == 2.0**59
    assert all(torch.equal(p, b) for p, b in zip(net.parameters(), before, strict=True))


def test_the_scaler_s_state_is_resumed(
    quick_options: TrainOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unetrt.training.trainer.amp_dtype", lambda device: torch.float16)
    whole = Stepper.step
    scales: list[float] = []

    def step(self: Stepper, batch: Batch) -> tuple[float, bool]:
        scales.append(self.scaler.get_scale())
        return whole(self, batch)

    monkeypatch.setattr(Stepper, "step", step)
    recipe = RecipeOptions(epochs=2, batch_size=4)
    train(replace(quick_options, amp=True, recipe=recipe))
    assert scales[0] == 2.0**16, "what a new one begins with"
    last = read_checkpoint(folder_of(quick_options) / "last.pth")
    assert options_from_json(last.resume["options"]).amp
    last.resume |= {"epoch": 1, "step": 3}
    last.resume["scaler"]["scale"] = 2.0**7
    last.resume["scaler"]["_growth_tracker"] = 5
    write_checkpoint(folder_of(quick_options) / "last.pth", last)
    scales.clear()
    train(TrainOptions(resume=folder_of(quick_options)))
    assert scales == [2.0**7] * 3
    scaler = read_checkpoint(folder_of(quick_options) / "last.pth").resume["scaler"]
    assert (scaler["scale"], scaler["_growth_tracker"]) == (2.0**7, 8)


@pytest.mark.parametrize(("able", "dtype"), [(True, torch.bfloat16), (False, None)])
def test_a_processor_without_bfloat16_stays_in_fp32(
    monkeypatch: pytest.MonkeyPatch, able: bool, dtype: torch.dtype | None
) -> None:
    monkeypatch.setattr("unetrt.training.step.cpu_computes_bf16", lambda: able)
    assert amp_dtype(torch.device("cpu")) == dtype


def test_amp_that_changes_nothing_is_warned_of(
    quick_options: TrainOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setattr("unetrt.training.step.cpu_computes_bf16", lambda: False)
    train(replace(quick_options, amp=True))
    assert sum("--amp changes nothing" in r.message for r in caplog.records) == 1
    train(replace(quick_options, out=tmp_path / "plain"))
    amp = read_checkpoint(folder_of(quick_options) / "last.pth").state
    plain = read_checkpoint(tmp_path / "plain" / "last.pth").state
    assert all(torch.equal(amp[key], value) for key, value in plain.items())


@pytest.mark.parametrize("options", [HALF, StepOptions(loss=LossOptions())])
def test_a_step_that_is_not_finite_leaves_all_as_it_was(options: StepOptions) -> None:
    stepper, net = stepper_of(options)
    with torch.no_grad():
        net.outc.conv.weight[0] = float("nan")
    before = {key: value.clone() for key, value in net.state_dict().items()}
    with pytest.raises(NotFiniteError, match="loss nan"):
        stepper.step(a_batch())
    after = net.state_dict()
    assert all(torch.equal(after[k].nan_to_num(7), v.nan_to_num(7)) for k, v in before.items())


def test_a_running_statistic_that_overflows_stops_before_the_step() -> None:
    """What is divided by an infinite variance is zero: the loss does not tell."""
    stepper, net = stepper_of(StepOptions(loss=LossOptions()))
    with torch.no_grad():
        net.inc.double_conv[0].weight.mul_(1e30)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    with pytest.raises(NotFiniteError, match="running_var"):
        stepper.step(a_batch())
    assert all(torch.equal(net.state_dict()[key], value) for key, value in before.items())


def test_a_norm_that_overflows_is_no_number_that_does() -> None:
    large, wrong = torch.full((4,), 3e38), torch.tensor([1.0, float("nan")])
    counts = torch.tensor([5])
    assert first_not_finite([("large", large), ("counts", counts)]) is None
    assert first_not_finite([("large", large), ("wrong", wrong)]) == "wrong"
    assert first_not_finite([("counts", counts)]) is None
