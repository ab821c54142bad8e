from collections.abc import Callable
from dataclasses import fields, replace
from statistics import mean
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as TF
from PIL import Image, ImageEnhance

from tlx.data.affine import Affine
from tlx.data.augment import Augment, AugmentParams, apply, mix, sample_key
from tlx.data.policies import Operation
from tlx.data.rectangles import Rectangle
from tlx.errors import UserError

# every setting that can be on by itself, on
ON: dict[str, Any] = {
    "rotation_range": 10,
    "width_shift_range": 0.1,
    "height_shift_range": 0.2,
    "shear_range": 15,
    "zoom_range": (0.8, 1.1),
    "horizontal_flip": True,
    "vertical_flip": True,
    "brightness_range": (0.5, 1.5),
    "channel_shift_range": 30,
    "crop_scale": (0.2, 1.0),
    "policy": "randaugment",
    "erasing": 0.5,
    "mixup": 0.2,
    "cutmix": 1.0,
}
EVERYTHING = Augment(**ON)


@pytest.fixture
def image() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(20, 230, (3, 48, 64), generator=generator, dtype=torch.uint8)


def test_none_is_the_image_itself(image: torch.Tensor) -> None:
    quiet = Augment(fill_mode="wrap", num_ops=5, magnitude=3, cval=9)
    assert not quiet.is_random
    params = quiet.draw(0, 1, 2)
    assert params == AugmentParams()
    assert torch.equal(apply(image[None], [params])[0], image)
    assert mix(image, image.flip(2), params) is image


@pytest.mark.parametrize("name", ON)
def test_each_setting_alone_is_random(name: str) -> None:
    augment = Augment(**{name: ON[name]})
    assert augment.is_random
    assert len({augment.draw(0, view, 7) for view in range(20)}) > 1


def test_draws_are_a_function_of_seed_view_and_key() -> None:
    np.random.seed(0)
    torch.manual_seed(0)
    first = EVERYTHING.draw(1, 2, sample_key("red/0.png"))
    np.random.seed(1)
    torch.manual_seed(1)
    assert EVERYTHING.draw(1, 2, sample_key("red/0.png")) == first
    others = [
        EVERYTHING.draw(2, 2, sample_key("red/0.png")),
        EVERYTHING.draw(1, 3, sample_key("red/0.png")),
        EVERYTHING.draw(1, 2, sample_key("red/1.png")),
        EVERYTHING.draw(2, 1, sample_key("red/0.png")),
    ]
    assert len({first, *others}) == 5


def test_what_is_drawn_is_applied_alike(image: torch.Tensor) -> None:
    for view in range(10):
        params = EVERYTHING.draw(0, view, 7)
        before = image.clone()
        once = apply(image[None], [params])[0]
        torch.manual_seed(view)
        assert torch.equal(apply(image[None], [params])[0], once)
        assert torch.equal(image, before)
        assert (once.dtype, once.shape) == (torch.uint8, image.shape)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_a_batch_is_its_images_one_by_one(
    image: torch.Tensor, threads: int, set_threads: Callable[[int], None]
) -> None:
    images = torch.stack([image.roll(shift, 2) for shift in range(7)])
    params = [EVERYTHING.draw(0, view, 7) for view in range(4)]
    params[2:2] = [AugmentParams(), AugmentParams(flip_vertical=True)]
    params += [AugmentParams(affine=Affine(angle=9.0, fill_mode="constant", cval=200.0))]
    expected = [apply(one[None], [p])[0] for one, p in zip(images, params, strict=True)]
    set_threads(threads)
    assert torch.equal(apply(images, params), torch.stack(expected))


def test_sample_keys_never_change() -> None:
    # the first 16 digits of `printf red/0.png | sha256sum`
    assert f"{sample_key('red/0.png'):016x}" == "d5150423f08d40a0"


def test_draws_fill_their_ranges() -> None:
    params = [EVERYTHING.draw(0, view, 7) for view in range(2000)]
    affines = [p.affine for p in params if p.affine is not None]
    for values, low, high in [
        ([a.angle for a in affines], -10, 10),
        ([a.shift_x for a in affines], -0.1, 0.1),
        ([a.shift_y for a in affines], -0.2, 0.2),
        ([a.shear for a in affines], -15, 15),
        ([a.zoom_x for a in affines], 0.8, 1.1),
        ([a.zoom_y for a in affines], 0.8, 1.1),
        ([p.brightness or 0 for p in params], 0.5, 1.5),
        ([p.channel_shift for p in params], -30, 30),
    ]:
        width = high - low
        assert low <= min(values) < low + width / 100
        assert high - width / 100 < max(values) <= high
        assert abs(mean(values) - (low + high) / 2) < width / 30
    zooms = np.corrcoef([a.zoom_x for a in affines], [a.zoom_y for a in affines])
    assert abs(zooms[0, 1]) < 0.08
    assert abs(mean(p.flip_horizontal for p in params) - 0.5) < 0.05
    assert abs(mean(p.flip_vertical for p in params) - 0.5) < 0.05


@pytest.mark.parametrize("vertical", [False, True])
@pytest.mark.parametrize("horizontal", [False, True])
def test_mirror_images_alone_are_taken_in_turn(horizontal, vertical) -> None:
    augment = Augment(horizontal_flip=horizontal, vertical_flip=vertical)
    every = {(h, v) for h in (False, horizontal) for v in (False, vertical)}
    n = len(augment.mirrorings)
    assert set(augment.mirrorings) == (every if len(every) > 1 else set())
    for key in range(5 if n else 0):
        views = [augment.draw(seed=view, view=view, key=key) for view in range(n)]
        assert {(p.flip_horizontal, p.flip_vertical) for p in views} == every
    firsts = {augment.draw(0, 0, key).flip_horizontal for key in range(4)}
    assert firsts == {False, horizontal}  # an epoch has some of each
    assert replace(augment, rotation_range=1.0).mirrorings == ()


def test_shifts_of_one_and_more_are_pixels() -> None:
    affines = [Augment(width_shift_range=12.0).draw(0, view, 1).affine for view in range(300)]
    pixels = [affine.pixels_x for affine in affines if affine is not None]
    assert -12 <= min(pixels) < -11.5
    assert 11.5 < max(pixels) <= 12
    assert {affine and replace(affine, pixels_x=0.0) for affine in affines} == {Affine()}


def test_a_single_zoom_is_to_either_side() -> None:
    zooms = [Augment(zoom_range=0.2).draw(0, view, 1).affine for view in range(300)]
    values = [affine.zoom_x for affine in zooms if affine is not None]
    assert 0.8 <= min(values) < 0.81
    assert 1.19 < max(values) <= 1.2


OFF = {field.name: field.default for field in fields(Augment)}


@pytest.mark.parametrize("name", ON)
def test_one_transform_less_leaves_the_others(name: str) -> None:
    less = replace(EVERYTHING, **{name: OFF[name]})
    for view in range(20):
        every, rest = flat(EVERYTHING.draw(0, view, 7)), flat(less.draw(0, view, 7))
        changed = {key for key, value in every.items() if rest[key] != value}
        assert changed <= OWN[name]


OWN = {
    "rotation_range": {"angle"},
    "width_shift_range": {"shift_x"},
    "height_shift_range": {"shift_y"},
    "shear_range": {"shear"},
    "zoom_range": {"zoom_x", "zoom_y"},
    "horizontal_flip": {"flip_horizontal"},
    "vertical_flip": {"flip_vertical"},
    "brightness_range": {"brightness"},
    "channel_shift_range": {"channel_shift"},
    "crop_scale": {"crop"},
    "policy": {"operations"},
    "erasing": {"erasing"},
    "mixup": {"mix"},
    "cutmix": {"mix"},
}


def flat(params: AugmentParams) -> dict[str, object]:
    assert params.affine is not None
    return vars(params) | vars(params.affine) | {"affine": None}


def test_flips_are_exact(image: torch.Tensor) -> None:
    params = [AugmentParams(flip_horizontal=True), AugmentParams(flip_vertical=True)]
    across, down = apply(torch.stack([image, image]), params)
    assert torch.equal(across, TF.horizontal_flip(image))
    assert torch.equal(down, TF.vertical_flip(image))


@pytest.mark.parametrize("factor", [0.3, 1.0, 1.7])
def test_brightness_is_pillows(image: torch.Tensor, factor: float) -> None:
    picture = Image.fromarray(image.permute(1, 2, 0).numpy())
    expected = np.asarray(ImageEnhance.Brightness(picture).enhance(factor))
    moved = apply(image[None], [AugmentParams(brightness=factor)])[0].permute(1, 2, 0).numpy()
    assert np.array_equal(moved, expected)


@pytest.mark.parametrize("amount", [-40.0, 25.0])
def test_channel_shift_stays_within_the_images_range(image: torch.Tensor, amount: float) -> None:
    pixels = image.numpy().astype(float)
    expected = np.clip(pixels + amount, pixels.min(), pixels.max())
    moved = apply(image[None], [AugmentParams(channel_shift=amount)])[0]
    assert np.array_equal(moved.numpy(), expected)


def test_the_policy_comes_after_keras_and_erasing_last(image: torch.Tensor) -> None:
    rectangle = Rectangle(((0.1, 1.0),), (0.3, 3.3), 0.5, 0.5)
    steps = [
        AugmentParams(affine=Affine(angle=20.0), flip_horizontal=True),
        AugmentParams(operations=(Operation("solarize", 0.5),)),
        AugmentParams(operations=(Operation("equalize"),)),
        AugmentParams(erasing=rectangle),
    ]
    expected = image
    for step in steps:
        expected = apply(expected[None], [step])[0]
    together = AugmentParams(
        affine=Affine(angle=20.0),
        flip_horizontal=True,
        operations=(Operation("solarize", 0.5), Operation("equalize")),
        erasing=rectangle,
    )
    assert torch.equal(apply(image[None], [together])[0], expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rotation_range": 200}, r"augment\.rotation_range=200 is not within 0 to 180 degrees"),
        ({"width_shift_range": -0.1}, r"augment\.width_shift_range=-0\.1 is not within 0 to"),
        ({"height_shift_range": float("nan")}, r"augment\.height_shift_range=nan"),
        ({"shear_range": 90}, r"augment\.shear_range=90 is not within 0 to 89 degrees"),
        ({"zoom_range": 1.0}, r"augment\.zoom_range=1\.0 is not \[smallest, largest\]"),
        ({"zoom_range": (1.2, 0.8)}, r"augment\.zoom_range=\(1\.2, 0\.8\)"),
        ({"zoom_range": (1.0,)}, r"augment\.zoom_range=\(1\.0,\)"),
        ({"brightness_range": (0.0, 1.0)}, r"augment\.brightness_range=.*both above 0"),
        ({"crop_scale": (0.1, 1.1)}, r"augment\.crop_scale=.*at most 1"),
        ({"crop_ratio": (-1.0, 1.0)}, r"augment\.crop_ratio="),
        ({"cval": 256}, r"augment\.cval=256 is not within 0 to 255"),
        ({"channel_shift_range": 300}, r"augment\.channel_shift_range=300"),
        ({"fill_mode": "reflekt"}, r"unknown augment\.fill_mode 'reflekt'.*reflect"),
        ({"policy": "autoaugment"}, r"unknown augment\.policy 'autoaugment'.*randaugment"),
        ({"num_ops": 0}, r"augment\.num_ops=0 is not within 1 to 20"),
        ({"magnitude": 31}, r"augment\.magnitude=31 is not within 0 to 30"),
        ({"erasing": 1.5}, r"augment\.erasing=1\.5 is not within 0 to 1"),
        ({"mixup": -1}, r"augment\.mixup=-1"),
        ({"cutmix": float("inf")}, r"augment\.cutmix=inf"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Augment(**settings)
