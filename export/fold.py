"""Batch normalisation folded into the convolutions before it, in fp32."""

from __future__ import annotations

import copy
from typing import cast

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ..training.unet import DoubleConv, UNet


def fold_batchnorm(net: UNet) -> UNet:
    """A copy of an fp32 network in evaluation mode without BatchNorm: logits within 1e-4.

    It comes before any cast: folding in fp16 rounds the running variance first.
    """
    folded = copy.deepcopy(net).eval()
    for module in folded.modules():
        if isinstance(module, DoubleConv):
            layers = module.double_conv
            for conv in (0, 3):
                fused = fuse_conv_bn_eval(
                    cast(nn.Conv2d, layers[conv]), cast(nn.BatchNorm2d, layers[conv + 1])
                )
                layers[conv], layers[conv + 1] = fused, nn.Identity()
    return folded
