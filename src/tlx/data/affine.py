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
    rows = [_matrix(a, m, width, height) for a, m in zip(affines, mirrors, strict=True)]
    by_x, by_y, shift = torch.tensor(rows).unsqueeze(-1).unbind(2)  # (B, 2, 1) each
    across = by_x * (torch.arange(width) - (width - 1) / 2)
    down = by_y * (torch.arange(height) - (height - 1) / 2) + shift
    places: Tensor = across[:, :, None] + down[..., None]
    return places


def _matrix(
    affine: Affine, mirror: tuple[bool, bool], width: int, height: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Rotation × shift × shear × zoom × mirror, from pixels off the centre: rows for x and y."""
    cos, sin = math.cos(math.radians(affine.angle)), math.sin(math.radians(affine.angle))
    lean, stand = math.sin(math.radians(affine.shear)), math.cos(math.radians(affine.shear))
    zoom_x, zoom_y = (
        -zoom if mirrored else zoom
        for zoom, mirrored in zip((affine.zoom_x, affine.zoom_y), mirror, strict=True)
    )
    x = affine.shift_x * width + affine.pixels_x
    y = affine.shift_y * height + affine.pixels_y
    return (
        _scaled(2 / width, cos * zoom_x, -(cos * lean + sin * stand) * zoom_y, cos * x - sin * y),
        _scaled(2 / height, sin * zoom_x, (cos * stand - sin * lean) * zoom_y, sin * x + cos * y),
    )


def _scaled(scale: float, *values: float) -> tuple[float, ...]:
    return tuple(scale * value for value in values)
