"""Keras's random changes of an image's values, which are float32 from 0 to 255."""

import torch
from torch import Tensor


def shift_channels(values: Tensor, amounts: Tensor) -> Tensor:
    """To all channels of (B, C, H, W) a number (−255 to 255) each, within the image's own range."""
    lowest, highest = (found((1, 2, 3), keepdim=True) for found in (values.amin, values.amax))
    return torch.clamp(values + amounts[:, None, None, None], lowest, highest)


def brighten(values: Tensor, factors: Tensor) -> Tensor:
    """(B, C, H, W); cut off to whole numbers before and after, as by Pillow, which Keras leaves it
    to."""
    return values.floor().mul_(factors[:, None, None, None]).clamp_(max=255).floor_()
