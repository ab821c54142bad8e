import math

import numpy as np
import pytest
import scipy.ndimage
import torch
from numpy.typing import NDArray

from tlx.data.affine import FILL_MODES, Affine, warp

WIDTH, HEIGHT = 40, 28


@pytest.fixture
def image() -> torch.Tensor:
    """(3, HEIGHT, WIDTH), its channels unlike each other."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (3, HEIGHT, WIDTH), generator=generator, dtype=torch.uint8)


def by_scipy(image: torch.Tensor, affine: Affine) -> NDArray[np.float64]:
    """Each matrix written out as in Keras, for (x, y, 1) from the centre of the image."""
    angle, shear = math.radians(affine.angle), math.radians(affine.shear)
    shift = (
        affine.shift_x * WIDTH + affine.pixels_x,
        affine.shift_y * HEIGHT + affine.pixels_y,
    )
    turn = [[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0]]
    whole = (
        np.array([*turn, [0, 0, 1]])
        @ np.array([[1, 0, shift[0]], [0, 1, shift[1]], [0, 0, 1]])
        @ np.array([[1, -math.sin(shear), 0], [0, math.cos(shear), 0], [0, 0, 1]])
        @ np.diag([affine.zoom_x, affine.zoom_y, 1])
    )
    rows_first = whole[:2, :2][::-1, ::-1]
    centre = np.array([(HEIGHT - 1) / 2, (WIDTH - 1) / 2])
    offset = centre + whole[:2, 2][::-1] - rows_first @ centre
    return np.stack(
        [
            scipy.ndimage.affine_transform(
                channel.numpy().astype(np.float64),
                rows_first,
                offset,
                order=1,
                mode=affine.fill_mode,
                cval=affine.cval,
            )
            for channel in image
        ]
    )


@pytest.mark.parametrize("fill_mode", FILL_MODES)
@pytest.mark.parametrize(
    "settings",
    [
        {"angle": 33.0},
        {"angle": 90.0},
        {"shift_x": 0.125},
        {"shift_y": -0.31},
        {"pixels_x": -7.0, "pixels_y": 100.5},
        {"shear": 25.0},
        {"zoom_x": 0.6, "zoom_y": 2.7},
        {"angle": -120.0, "shift_x": 0.2, "shear": -15.0, "zoom_x": 1.3, "zoom_y": 1.9},
    ],
)
def test_pixels_are_scipys(image: torch.Tensor, settings: dict[str, float], fill_mode: str) -> None:
    affine = Affine(**settings, fill_mode=fill_mode, cval=77.0)
    difference = np.abs(warp(image[None], [affine])[0].numpy() - by_scipy(image, affine))
    # a point that lies on the rim or the seam may fall to either side
    assert np.mean(difference > 0.02) < 0.002


def test_a_whole_shift_moves_along_its_own_side(image: torch.Tensor) -> None:
    left = warp(image[None], [Affine(shift_x=0.25)])[0].round().byte()
    assert torch.equal(left[:, :, :-10], image[:, :, 10:])
    assert torch.equal(left[:, :, -10:], image[:, :, -1:].expand(3, HEIGHT, 10))
    affine = Affine(pixels_y=-3.0, fill_mode="constant", cval=9.0)
    down = warp(image[None], [affine])[0].round().byte()
    assert torch.equal(down[:, 3:], image[:, :-3])
    assert (down[:, :3] == 9).all()


@pytest.mark.parametrize("fill_mode", FILL_MODES)
def test_mirroring_comes_last(image: torch.Tensor, fill_mode: str) -> None:
    affine = Affine(angle=20.0, shift_x=0.3, zoom_y=1.4, fill_mode=fill_mode)
    plain = warp(image[None], [affine])[0]
    for mirrors, axes in [((True, False), [2]), ((False, True), [1]), ((True, True), [1, 2])]:
        moved = warp(image[None], [affine], [mirrors])[0]
        assert torch.allclose(moved, plain.flip(axes), atol=0.02)
