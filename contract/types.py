"""Array and size types that the stages hand each other."""

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

U8: TypeAlias = npt.NDArray[np.uint8]
"""An image (H, W, C), a batch (N, H, W, C) or a mask (H, W)."""

Size: TypeAlias = tuple[int, int]
"""(height, width) in pixels."""

NO_CLASS = 255
"""In a true mask: a pixel to ignore. In a predicted one: the network's output was not finite."""
