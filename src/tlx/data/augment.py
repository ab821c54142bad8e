"""Random flips and affine transforms, each a pure function of seed, view and sample."""

import hashlib
import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from tlx.errors import UserError


@dataclass(frozen=True)
class AugmentParams:
    """What one view does to one image. Shifts are fractions of width and height."""

    flip_horizontal: bool = False
    flip_vertical: bool = False
    angle: float = 0.0  # degrees, clockwise
    shift_x: float = 0.0
    shift_y: float = 0.0
    scale: float = 1.0

    @property
    def is_affine(self) -> bool:
        return (self.angle, self.shift_x, self.shift_y, self.scale) != (0.0, 0.0, 0.0, 1.0)


@dataclass(frozen=True)
class Augment:
    """The range views are drawn from, uniformly; as it stands, none.

    `rotation`: degrees to either side. `translate`: fraction of width and height to either side.
    `scale`: smallest and largest factor. A flip happens in half of the views.
    """

    rotation_range: float = 0.0
    width_shift_range: float = 0.0
    height_shift_range: float = 0.0
    shear_range: float = 0.0
    zoom_range: float | tuple[float, ...] = 0.0
    horizontal_flip: bool = False
    vertical_flip: bool = False
    fill_mode: str = "nearest"
    cval: float = 0.0
    brightness_range: tuple[float, ...] | None = None
    channel_shift_range: float = 0.0
    crop_scale: tuple[float, ...] | None = None
    crop_ratio: tuple[float, ...] = (3 / 4, 4 / 3)
    policy: str | None = None
    num_ops: int = 2
    magnitude: int = 9
    erasing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0

    @property
    def is_random(self) -> bool:
        """Whether two views of an image can differ."""
        return replace(self, **_INERT) != Augment()

    @property
    def scale(self) -> tuple[float, float]:
        zoom = self.zoom_range
        return (1 - zoom, 1 + zoom) if isinstance(zoom, float | int) else (zoom[0], zoom[1])

    def __post_init__(self) -> None:
        if not 0 <= self.rotation_range <= 180:
            given = self.rotation_range
            raise UserError(f"augment.rotation_range={given} is not within 0 to 180 degrees.")
        if not 0 < self.scale[0] <= self.scale[1]:
            raise UserError(
                f"augment.scale={list(self.scale)} is not [smallest, largest], both above 0."
            )

    def draw(self, seed: int, view: int, key: int) -> AugmentParams:
        """The same arguments give the same parameters, in any process and any order."""
        random = np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, view, key))))
        # always six numbers: switching one transform off leaves the others' draws as they were
        horizontal, vertical, angle, x, y, scale = random.random(6).tolist()
        low, high = self.scale
        return AugmentParams(
            flip_horizontal=self.horizontal_flip and horizontal < 0.5,
            flip_vertical=self.vertical_flip and vertical < 0.5,
            angle=self.rotation_range * (2 * angle - 1),
            shift_x=self.width_shift_range * (2 * x - 1),
            shift_y=self.height_shift_range * (2 * y - 1),
            scale=low + (high - low) * scale,
        )


# settings that alone change nothing
_INERT: dict[str, Any] = {
    "fill_mode": "nearest", "cval": 0.0, "crop_ratio": (3 / 4, 4 / 3), "num_ops": 2, "magnitude": 9
}  # fmt: skip


def sample_key(path: str) -> int:
    """64 bits from a manifest path: stable where `hash` is not."""
    digest = hashlib.sha256(path.encode(errors="surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big")


def apply(image: Tensor, params: AugmentParams) -> Tensor:
    """(3, H, W) uint8 → the same. The image itself, not a copy, when there is nothing to do.

    Flips first, then one bilinear affine transform about the centre. What comes in from outside
    the frame is the image mirrored at its border, so no black corner tells that it was turned.
    """
    axes = [axis for axis, flip in ((2, params.flip_horizontal), (1, params.flip_vertical)) if flip]
    if axes:
        image = image.flip(axes)
    return _affine(image, params) if params.is_affine else image


def _affine(image: Tensor, params: AugmentParams) -> Tensor:
    height, width = image.shape[1:]
    cos = math.cos(math.radians(params.angle)) / params.scale
    sin = math.sin(math.radians(params.angle)) / params.scale
    # output → input in coordinates from −1 to 1, in which a pixel is 2/width by 2/height
    x, y = 2 * params.shift_x, 2 * params.shift_y
    across, down = sin * height / width, -sin * width / height
    theta = torch.tensor(
        [[cos, across, -cos * x - across * y], [down, cos, -down * x - cos * y]],
        dtype=torch.float32,
    )
    grid = F.affine_grid(theta[None], [1, *image.shape], align_corners=False)
    moved = F.grid_sample(
        image[None].float(), grid, mode="bilinear", padding_mode="reflection", align_corners=False
    )
    return moved[0].round().clamp(0, 255).to(torch.uint8)
