from statistics import mean

import pytest
import torch
import torchvision.transforms.v2.functional as TF
from torchvision.transforms import InterpolationMode

from tlx.data.augment import Augment, AugmentParams, apply, sample_key
from tlx.errors import UserError

LIGHT = Augment(
    horizontal_flip=True,
    vertical_flip=True,
    rotation_range=10,
    width_shift_range=0.1,
    height_shift_range=0.1,
    zoom_range=(0.8, 1.1),
)


@pytest.fixture
def image() -> torch.Tensor:
    """A smooth (3, 48, 64) picture without a dark pixel."""
    coarse = torch.rand(1, 3, 6, 8, generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.interpolate(coarse, size=(48, 64), mode="bilinear")[0]
    return (60 + 190 * smooth).to(torch.uint8)


def test_none_is_the_image_itself(image: torch.Tensor) -> None:
    params = Augment().draw(0, 1, 2)
    assert params == AugmentParams()
    assert apply(image, params) is image


def test_draws_are_a_function_of_seed_view_and_key() -> None:
    torch.manual_seed(0)
    first = LIGHT.draw(1, 2, sample_key("red/0.png"))
    torch.manual_seed(1)
    assert LIGHT.draw(1, 2, sample_key("red/0.png")) == first
    others = [
        LIGHT.draw(2, 2, sample_key("red/0.png")),
        LIGHT.draw(1, 3, sample_key("red/0.png")),
        LIGHT.draw(1, 2, sample_key("red/1.png")),
        LIGHT.draw(2, 1, sample_key("red/0.png")),
    ]
    assert len({first, *others}) == 5


def test_sample_keys_never_change() -> None:
    # the first 16 digits of `printf red/0.png | sha256sum`
    assert f"{sample_key('red/0.png'):016x}" == "d5150423f08d40a0"


def test_draws_fill_their_ranges() -> None:
    params = [LIGHT.draw(0, view, 7) for view in range(2000)]
    for values, low, high in [
        ([p.angle for p in params], -10, 10),
        ([p.shift_x for p in params], -0.1, 0.1),
        ([p.shift_y for p in params], -0.1, 0.1),
        ([p.scale for p in params], 0.8, 1.1),
    ]:
        width = high - low
        assert low <= min(values) < low + width / 100
        assert high - width / 100 < max(values) <= high
        assert abs(mean(values) - (low + high) / 2) < width / 30
    assert abs(mean(p.flip_horizontal for p in params) - 0.5) < 0.05
    assert abs(mean(p.flip_vertical for p in params) - 0.5) < 0.05


def test_one_transform_less_leaves_the_others() -> None:
    less = Augment(rotation_range=10, width_shift_range=0.1, height_shift_range=0.1)
    for view in range(20):
        params = LIGHT.draw(0, view, 7)
        expected = AugmentParams(angle=params.angle, shift_x=params.shift_x, shift_y=params.shift_y)
        assert less.draw(0, view, 7) == expected


def test_flips_are_exact(image: torch.Tensor) -> None:
    assert torch.equal(apply(image, AugmentParams(flip_horizontal=True)), TF.horizontal_flip(image))
    assert torch.equal(apply(image, AugmentParams(flip_vertical=True)), TF.vertical_flip(image))


@pytest.mark.parametrize(
    "params",
    [
        AugmentParams(angle=15),
        AugmentParams(shift_x=0.125, shift_y=-0.125),
        AugmentParams(scale=0.9),
        AugmentParams(angle=-8, shift_x=-0.0625, shift_y=0.125, scale=1.2),
    ],
)
def test_affine_is_torchvisions_away_from_the_border(
    image: torch.Tensor, params: AugmentParams
) -> None:
    expected = TF.affine(
        image,
        angle=params.angle,
        translate=[params.shift_x * 64, params.shift_y * 48],
        scale=params.scale,
        shear=[0.0, 0.0],
        interpolation=InterpolationMode.BILINEAR,
    )
    difference = apply(image, params).int() - expected.int()
    assert difference[:, 12:36, 16:48].abs().max() <= 1


def test_no_black_corners(image: torch.Tensor) -> None:
    extreme = AugmentParams(angle=45, shift_x=0.4, shift_y=-0.4, scale=0.3)
    moved = apply(image, extreme)
    assert (moved.dtype, moved.shape) == (torch.uint8, image.shape)
    assert moved.min() >= image.min()


def test_what_comes_from_outside_is_mirrored(image: torch.Tensor) -> None:
    moved = apply(image, AugmentParams(shift_x=0.125))  # 8 of 64 pixels to the right
    assert torch.equal(moved[:, :, 8:], image[:, :, :-8])
    assert torch.equal(moved[:, :, :8], image[:, :, :8].flip(2))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rotation": 200}, r"augment\.rotation=200 is not within 0 to 180"),
        ({"translate": 1.5}, r"augment\.translate=1\.5 is not a fraction"),
        ({"scale": (1.2, 0.8)}, r"augment\.scale=\[1\.2, 0\.8\] is not \[smallest, largest\]"),
        ({"scale": (0.0, 1.0)}, r"augment\.scale=\[0\.0, 1\.0\]"),
    ],
)
def test_ranges_are_checked(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Augment(**settings)  # type: ignore[arg-type]
