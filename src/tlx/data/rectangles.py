"""Random rectangles, by torchvision's algorithm: RandomResizedCrop's and RandomErasing's."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

TRIES = 10
NUMBERS = 2 * TRIES + 2  # that `draw_rectangle` takes
ERASED_AREA = (0.02, 0.33)  # torchvision's defaults
ERASED_RATIO = (0.3, 3.3)

Box = tuple[int, int, int, int]  # left, top, right, bottom


@dataclass(frozen=True)
class Rectangle:
    """Tried in turn until one fits an image: (fraction of its area, aspect ratio).

    `ratio` is the range the ratios are from; `x` and `y`, from 0 to 1, are where it lies, of the
    places there are.
    """

    tries: tuple[tuple[float, float], ...]
    ratio: tuple[float, float]
    x: float
    y: float

    def placed(self, size: tuple[int, int], width: int, height: int) -> Box:
        left = int(self.x * (width - size[0] + 1))
        top = int(self.y * (height - size[1] + 1))
        return left, top, left + size[0], top + size[1]


def draw_rectangle(
    uniform: Sequence[float], area: Sequence[float] | None, ratio: Sequence[float] = ERASED_RATIO
) -> Rectangle | None:
    """Of NUMBERS numbers from 0 to 1: areas uniform in their range, ratios in its logarithm."""
    if area is None:
        return None
    low, high = math.log(ratio[0]), math.log(ratio[1])
    tries = tuple(
        (area[0] + (area[1] - area[0]) * first, math.exp(low + (high - low) * second))
        for first, second in zip(uniform[:TRIES], uniform[TRIES : 2 * TRIES], strict=True)
    )
    return Rectangle(tries, (ratio[0], ratio[1]), uniform[-2], uniform[-1])


def crop_of(rectangle: Rectangle, width: int, height: int) -> Box:
    """The part of an image to keep; ratios are width : height. Where no try fits, the largest part
    about the centre with a ratio in range."""
    for area, aspect in rectangle.tries:
        size = _sides(area * width * height, aspect)
        if 0 < size[0] <= width and 0 < size[1] <= height:
            return rectangle.placed(size, width, height)
    wide = min(width, round(height * rectangle.ratio[1]))
    high = min(height, round(width / rectangle.ratio[0]))
    left, top = (width - wide) // 2, (height - high) // 2
    return left, top, left + wide, top + high


def erase(image: Tensor, rectangle: Rectangle) -> Tensor:
    """(3, H, W) uint8 with the rectangle in the image's mean colour: after normalising about 0,
    as torchvision's recipes have it. The image itself where no try is smaller than it."""
    height, width = image.shape[1:]
    for area, aspect in rectangle.tries:
        size = _sides(area * width * height, 1 / aspect)  # here the ratio is height : width
        if size[0] < width and size[1] < height:
            left, top, right, bottom = rectangle.placed(size, width, height)
            mean = image.float().mean((1, 2), keepdim=True).round().to(image.dtype)
            image = image.clone()
            image[:, top:bottom, left:right] = mean
            return image
    return image


def _sides(area: float, ratio: float) -> tuple[int, int]:
    return round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
