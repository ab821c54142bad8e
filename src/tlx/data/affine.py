"""Keras's random affine transform of one image, with its parameters, order and fill modes."""

import math
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


def warp(image: Tensor, affine: Affine, mirrors: tuple[bool, bool] = (False, False)) -> Tensor:
    """(C, H, W) uint8 → float32 from 0 to 255, not rounded; bilinear, then mirrored in x, in y."""
    height, width = image.shape[1:]
    places = _places(affine, mirrors, width, height)
    rim = 1 - torch.tensor([1 / width, 1 / height])[:, None, None]
    beyond = places.abs() > rim + _EDGE if affine.fill_mode in ("constant", "wrap") else None
    if beyond is not None and affine.fill_mode == "wrap":
        places = torch.where(beyond, torch.remainder(places + rim, 2 * rim) - rim, places)
    moved = F.grid_sample(
        image[None].float(),
        places.permute(1, 2, 0)[None],
        mode="bilinear",
        padding_mode="reflection" if affine.fill_mode == "reflect" else "border",
        align_corners=False,
    )[0]
    if beyond is not None and affine.fill_mode == "constant":
        moved.masked_fill_(beyond.any(0), affine.cval)
    return moved


def _places(affine: Affine, mirrors: tuple[bool, bool], width: int, height: int) -> Tensor:
    """(2, H, W): x and y as grid_sample counts, 0 the centre, 1 half a pixel beyond the rim."""
    units = torch.tensor([2 / width, 2 / height])[:, None]
    xx, xy, x0, yx, yy, y0 = _matrix(affine, width, height)
    sign_x, sign_y = (-1 if mirror else 1 for mirror in mirrors)
    across = (torch.arange(width) - (width - 1) / 2) * (units * torch.tensor([[xx], [yx]]) * sign_x)
    down = (torch.arange(height) - (height - 1) / 2) * (units * torch.tensor([[xy], [yy]]) * sign_y)
    down += units * torch.tensor([[x0], [y0]])
    return across[:, None] + down[:, :, None]


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
