"""A model that computes its images turned: columns as rows, where those are the better columns."""

from __future__ import annotations

from math import gcd
from typing import Any

import numpy as np

from ..contract.modules import import_module
from ..contract.types import Size

ROUND = 16
"""A tile of AMX holds so many columns of a picture."""
CONVOLUTIONS = {"Convolution", "ConvolutionBackpropData"}


def better_turned(size: Size) -> bool:
    """Whether an input of `size` (h, w) is faster with its rows as columns, on AMX.

    oneDNN cuts an image between columns. At 640×959, whose halves are primes, the convolutions of a
    network of width 64 took 1.47 s on two Xeon cores, and 0.74 s turned or at 640×960.
    """
    height, width = size
    return gcd(height, ROUND) > gcd(width, ROUND)


def turn(model: Any, result: str) -> None:
    """Change an OpenVINO model of ours: same inputs, same result but for the order of sums.

    All that it does is alike in both directions, but for the kernels. They are swapped, and so are
    image, mask and the input that carries the mask's size.
    """
    openvino = import_module("openvino")
    for kernel in {_constant_of(node.input_value(1)) for node in _convolutions(model)}:
        turned = np.ascontiguousarray(kernel.data.swapaxes(2, 3))
        _replace(kernel.output(0), openvino.opset13.constant(turned).output(0))
    for name, order in (("image", (0, 2, 1, 3)), ("size_like", (1, 0))):
        given = model.input(name)
        readers = given.get_target_inputs()
        turned = openvino.opset13.transpose(given, np.array(order))
        for reader in readers:
            reader.replace_source_output(turned.output(0))
    _turn_back(model, result)
    model.validate_nodes_and_infer_types()


def _convolutions(model: Any) -> list[Any]:
    return [node for node in model.get_ordered_ops() if node.get_type_name() in CONVOLUTIONS]


def _constant_of(output: Any) -> Any:
    """Where weights come from: in int8 they are scaled on their way, by channel."""
    node = output.get_node()
    while node.get_type_name() != "Constant":
        node = node.input_value(0).get_node()
    return node


def _turn_back(model: Any, result: str) -> None:
    """The last two of the mask's axes, or of the probabilities'."""
    ops = import_module("openvino").opset13
    (reader,) = model.output(result).get_node().inputs()
    found = reader.get_source_output()
    axes = [*range(len(found.get_partial_shape()))]
    axes[-2:] = axes[:-3:-1]
    turned = ops.transpose(found, np.array(axes)).output(0)
    names = found.get_names()
    found.set_names(set())
    turned.set_names(names)
    reader.replace_source_output(turned)


def _replace(old: Any, new: Any) -> None:
    for reader in old.get_target_inputs():
        reader.replace_source_output(new)
