"""What TensorRT says of memory is told apart from its other failures."""

from __future__ import annotations

import pytest

from unetrt.contract.errors import DeviceMemoryError, UserError
from unetrt.engine.tensorrt_flavour import check


class Logger:
    def __init__(self, *messages: str) -> None:
        self.messages = list(messages)
        self.errors: list[str] = []


@pytest.mark.parametrize(
    "message",
    [
        "[defaultAllocator.cpp::allocate::31] Error Code 1: Cuda Runtime (out of memory)",
        "OutOfMemory (Requested size was 9 bytes.)",
        "Requested amount of GPU memory (9 bytes) could not be allocated. There may not be enough "
        "free memory for allocation to succeed.",
        "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    ],
)
def test_a_failure_of_memory_is_told_apart_once(message: str) -> None:
    logger = Logger("a warning", message)
    with pytest.raises(DeviceMemoryError, match="run the plan") as caught:
        check(False, "run the plan", logger)
    assert message in str(caught.value.seen)
    with pytest.raises(UserError) as caught:
        check(None, "run the plan", logger)
    assert not isinstance(caught.value, DeviceMemoryError)


def test_another_failure_is_not_one_of_memory() -> None:
    with pytest.raises(UserError) as caught:
        check(False, "run the plan", Logger("Error Code 2: Internal Error"))
    assert not isinstance(caught.value, DeviceMemoryError)


def test_what_was_said_of_work_that_went_well_is_forgotten() -> None:
    logger = Logger("a tactic was skipped: out of memory")
    assert check(True, "set a shape", logger)
    with pytest.raises(UserError) as caught:
        check(False, "run the plan", logger)
    assert not isinstance(caught.value, DeviceMemoryError)
    assert "tactic" not in str(caught.value)


def test_an_error_is_told_without_the_warnings_before_it() -> None:
    logger = Logger("a layer was removed", "no kernel for it")
    logger.errors = ["no kernel for it"]
    with pytest.raises(UserError) as caught:
        check(None, "build the plan", logger)
    assert caught.value.seen == "no kernel for it"
