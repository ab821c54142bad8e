import math
from statistics import mean

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from tlx.data.augment import Augment, AugmentParams, apply, crop_box
from tlx.data.rectangles import NUMBERS, Rectangle, draw_rectangle, erase

RATIO = (3 / 4, 4 / 3)


def uniform(count: int) -> list[list[float]]:
    return np.random.default_rng(0).random((count, NUMBERS)).tolist()


@pytest.mark.parametrize(("width", "height"), [(300, 200), (64, 64), (500, 40), (30, 300)])
def test_crops_are_distributed_as_torchvisions(width: int, height: int) -> None:
    augment = Augment(crop_scale=(0.2, 1.0))
    drawn = [augment.draw(0, view, 1) for view in range(2000)]
    boxes = np.array([crop_box(params, width, height) for params in drawn])
    torch.manual_seed(0)
    crop, image = v2.RandomResizedCrop(8, scale=(0.2, 1.0)), torch.zeros(3, height, width)
    theirs = [crop.make_params([image]) for _ in range(2000)]
    for own, name, side in [
        (boxes[:, 0], "left", width),
        (boxes[:, 1], "top", height),
        (boxes[:, 2] - boxes[:, 0], "width", width),
        (boxes[:, 3] - boxes[:, 1], "height", height),
    ]:
        other = np.array([params[name] for params in theirs])
        assert abs(own.mean() - other.mean()) < 0.02 * side
        tenths = [np.quantile(values, [0.1, 0.5, 0.9]) for values in (own, other)]
        assert np.abs(tenths[0] - tenths[1]).max() < 0.05 * side


def test_a_crop_by_hand() -> None:
    # 0.25 of 200 × 100 with 2:1 is 100 × 50; the first try would be 200 wide and 125 high
    rectangle = Rectangle(((1.25, 1.6), (0.25, 2.0)), (0.5, 2.0), x=0.5, y=0.99)
    assert crop_box(AugmentParams(crop=rectangle), 200, 100) == (50, 50, 150, 100)


@pytest.mark.parametrize(
    ("width", "height", "box"),
    [(400, 100, (133, 0, 266, 100)), (90, 400, (0, 140, 90, 260)), (100, 100, (0, 0, 100, 100))],
)
def test_where_no_try_fits_it_is_the_centre(width: int, height: int, box: tuple[int, ...]) -> None:
    nothing = Rectangle(((9.0, 1.0),), RATIO, 0.5, 0.5)
    assert crop_box(AugmentParams(crop=nothing), width, height) == box


def test_none_is_cropped_without_the_setting() -> None:
    assert crop_box(Augment(rotation_range=10).draw(0, 1, 2), 30, 20) is None


def test_draws_fill_their_ranges() -> None:
    drawn = [draw_rectangle(numbers, (0.2, 0.8), RATIO) for numbers in uniform(2000)]
    areas, ratios = zip(*(rectangle.tries[0] for rectangle in drawn if rectangle), strict=True)
    assert 0.2 <= min(areas) < 0.21
    assert 0.79 < max(areas) <= 0.8
    assert abs(mean(math.log(ratio) for ratio in ratios)) < 0.02
    assert 0.75 <= min(ratios) < 0.76
    assert 1.32 < max(ratios) <= 4 / 3


def test_erasing_is_torchvisions_in_the_mean_colour() -> None:
    image = torch.randint(0, 256, (3, 20, 40), dtype=torch.uint8)
    # an eighth, twice as high as wide: 14 by 7; left 0.5 × 34, top 0.9 × 7
    erased = erase(image, Rectangle(((0.125, 2.0),), (0.3, 3.3), x=0.5, y=0.9))
    mean_colour = image.float().mean((1, 2))[:, None, None].round().byte()
    expected = v2.functional.erase(image, 6, 17, 14, 7, mean_colour)
    assert torch.equal(erased, expected)
    assert torch.equal(erase(image, Rectangle(((1.0, 1.0),), (0.3, 3.3), 0.0, 0.0)), image)


def test_as_often_and_as_large_as_asked() -> None:
    image = torch.zeros(3, 50, 50, dtype=torch.uint8)
    image[:, ::2] = 255  # the mean is nowhere in it
    shares = []
    for view in range(1000):
        params = Augment(erasing=0.3).draw(0, view, 5)
        shares.append((apply(image[None], [params]) == 128).float().mean().item())
    hit = [share for share in shares if share > 0]
    assert abs(len(hit) / 1000 - 0.3) < 0.05
    assert 0.01 < min(hit) < 0.04
    assert 0.28 < max(hit) < 0.36
