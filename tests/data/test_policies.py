"""Against torchvision's own RandAugment and TrivialAugmentWide."""

from collections import Counter
from typing import Any

import pytest
import torch
from torchvision.transforms import InterpolationMode, v2

from tlx.data.augment import Augment
from tlx.data.policies import LEVELS, STRONGEST, Operation, draw_operations, run

NAMES = {
    "".join(part.capitalize() for part in name.split("_")): name
    for name in STRONGEST
    if name != "autocontrast"
} | {"AutoContrast": "autocontrast"}
THEIRS: dict[str, Any] = {"randaugment": v2.RandAugment, "trivialaugment": v2.TrivialAugmentWide}
SIZE = 96


@pytest.fixture
def image() -> torch.Tensor:
    return torch.randint(
        0, 256, (3, SIZE, SIZE), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )


def drawn(name: str, policy: str, step: int, sign: float = 0.9) -> Operation:
    which = (list(STRONGEST).index(name) + 0.5) / len(STRONGEST)
    (operation,) = draw_operations([(which, (step + 0.5) / LEVELS, sign)], policy, step)
    return operation


@pytest.mark.parametrize("policy", THEIRS)
def test_the_operations_are_torchvisions(policy: str) -> None:
    assert set(THEIRS[policy]._AUGMENTATION_SPACE) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("policy", THEIRS)
def test_so_are_the_pictures_at_every_level(policy: str, name: str, image: torch.Tensor) -> None:
    levels, signed = THEIRS[policy]._AUGMENTATION_SPACE[name]
    magnitudes = levels(LEVELS, SIZE, SIZE)
    torchvisions = THEIRS[policy]()
    for step in range(0, LEVELS, 3) if magnitudes is not None else [9]:
        # theirs are float32: where 16 is meant they have 15.999999, and int() makes it 15
        magnitude = 0.0 if magnitudes is None else round(float(magnitudes[step]), 5)
        for sign in (0.9, 0.1) if signed else (0.9,):
            expected = torchvisions._apply_image_or_video_transform(
                image,
                name,
                -magnitude if sign < 0.5 else magnitude,
                interpolation=InterpolationMode.NEAREST,
                fill={},
            )
            moved = run(image, drawn(NAMES[name], policy, step, sign))
            assert (moved.dtype, moved.shape) == (torch.uint8, image.shape)
            # a place between two pixels may fall to either
            assert ((moved.int() - expected.int()).abs() > 1).float().mean() < 0.001


def test_signs_only_where_they_mean_something() -> None:
    assert drawn("rotate", "randaugment", 10, sign=0.1).magnitude == pytest.approx(-10)
    assert drawn("posterize", "randaugment", 15, sign=0.1).magnitude == pytest.approx(2)


def test_every_operation_is_drawn_equally_often() -> None:
    augment = Augment(policy="randaugment", num_ops=3, magnitude=30)
    operations = [o for view in range(1400) for o in augment.draw(0, view, 1).operations]
    assert len(operations) == 4200
    counts = Counter(operation.name for operation in operations)
    assert set(counts) == set(STRONGEST)
    assert max(abs(count - 300) for count in counts.values()) < 75  # 4.5 standard deviations
    turns = Counter(o.magnitude for o in operations if o.name == "rotate")
    assert set(turns) == {30.0, -30.0}


def test_trivialaugment_is_one_operation_of_any_strength() -> None:
    augment = Augment(policy="trivialaugment")
    single = [augment.draw(0, view, 1).operations for view in range(5000)]
    assert {len(operations) for operations in single} == {1}
    turns = {round(o.magnitude / 4.5) for (o,) in single if o.name == "rotate"}
    assert turns == set(range(-30, 31))
