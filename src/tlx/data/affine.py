"""Keras's random affine transform of images, with its parameters, order and fill modes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

FILL_MODES = ("nearest", "constant", "reflect", "wrap")
_EDGE = 1e-5  # of half a side: what rounding may move a point that lies on the rim


@dataclass(frozen=True)
class Affine:
    """Where each pixel of the result is taken from, about the centre of the image.

    A place in the result is zoomed, sheared, shifted and turned, in that order; the image is read
    there. So a zoom above 1 makes things smaller, and a shift above 0 moves them left or up. The
    whole shift is `shift_x` × width + `pixels_x`. Beyond the image it is as scipy.ndimage has it:
    reflect repeats the pixel at the rim, wrap lays the first pixel over the last.
    """

    angle: float = 0.0  # degrees
    shift_x: float = 0.0  # fraction of the width
    shift_y: float = 0.0
    pixels_x: float = 0.0
    pixels_y: float = 0.0
    shear: float = 0.0  # degrees
    zoom_x: float = 1.0
    zoom_y: float = 1.0
    fill_mode: str = "nearest"
    cval: float = 0.0  # of fill_mode constant, 0 to 255


def warp(
    images: Tensor, affines: Sequence[Affine], mirrors: Sequence[tuple[bool, bool]] | None = None
) -> Tensor:
    """(B, C, H, W) uint8 → float32 from 0 to 255, not rounded: each image by its own transform.

    Bilinear, then mirrored in x, in y. All have the first one's fill mode and cval.
    """
    height, width = images.shape[2:]
    first = affines[0]
    places = _places(affines, mirrors or [(False, False)] * len(affines), width, height)
    rim = 1 - torch.tensor([1 / width, 1 / height])[:, None, None]
    beyond = places.abs() > rim + _EDGE if first.fill_mode in ("constant", "wrap") else None
    if beyond is not None and first.fill_mode == "wrap":
        places = torch.where(beyond, torch.remainder(places + rim, 2 * rim) - rim, places)
    moved = F.grid_sample(
        images.float(),
        places.permute(0, 2, 3, 1),
        mode="bilinear",
        padding_mode="reflection" if first.fill_mode == "reflect" else "border",
        align_corners=False,
    )
    if beyond is not None and first.fill_mode == "constant":
        moved.masked_fill_(beyond.any(1, keepdim=True), first.cval)
    return moved


def _places(
    affines: Sequence[Affine], mirrors: Sequence[tuple[bool, bool]], width: int, height: int
) -> Tensor:
    """(B, 2, H, W): x and y as grid_sample counts, 0 the centre, 1 half a pixel beyond the rim."""
    units = torch.tensor([2 / width, 2 / height])
    xx, xy, x0, yx, yy, y0 = torch.tensor([_matrix(a, width, height) for a in affines]).T
    sign_x, sign_y = (1 - 2 * torch.tensor(mirrors).float()).T[..., None]
    across = (units * torch.stack([xx, yx], 1) * sign_x)[..., None]
    down = (units * torch.stack([xy, yy], 1) * sign_y)[..., None]
    across = (torch.arange(width) - (width - 1) / 2) * across
    down = (torch.arange(height) - (height - 1) / 2) * down
    down += (units * torch.stack([x0, y0], 1))[..., None]
    places: Tensor = across[:, :, None] + down[..., None]
    return places


def _matrix(affine: Affine, width: int, height: int) -> tuple[float, ...]:
    """Rotation × shift × shear × zoom, in pixels from the centre: the row for x, then for y."""
    cos, sin = math.cos(math.radians(affine.angle)), math.sin(math.radians(affine.angle))
    lean, stand = math.sin(math.radians(affine.shear)), math.cos(math.radians(affine.shear))
    x = affine.shift_x * width + affine.pixels_x
    y = affine.shift_y * height + affine.pixels_y
    return (
        *(cos * affine.zoom_x, -(cos * lean + sin * stand) * affine.zoom_y, cos * x - sin * y),
        *(sin * affine.zoom_x, (cos * stand - sin * lean) * affine.zoom_y, sin * x + cos * y),
    )
