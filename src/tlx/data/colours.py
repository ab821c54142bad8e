"""Keras's random changes of an image's values, which are float32 from 0 to 255."""

from torch import Tensor


def shift_channels(values: Tensor, amount: float) -> Tensor:
    """`amount` (−255 to 255) added to all channels, within the image's own range."""
    return (values + amount).clamp_(values.min(), values.max())


def brighten(values: Tensor, factor: float) -> Tensor:
    """Cut off to whole numbers before and after, as by Pillow, which Keras leaves it to."""
    return values.floor().mul_(factor).clamp_(max=255).floor_()
