"""RandAugment (arXiv:1909.13719) and TrivialAugment (arXiv:2103.10158), with torchvision's tables.

What is drawn here is a pure function of its numbers; torchvision's own classes draw from torch's
global state.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from torch import Tensor

LEVELS = 31  # magnitudes 0 to 30
POLICIES = ("randaugment", "trivialaugment")
NUMBERS = 3  # that an operation is drawn from

# the strongest magnitude of RandAugment and of TrivialAugment (its "wide" table)
STRONGEST = {
    "identity": (0.0, 0.0),
    "shear_x": (0.3, 0.99),
    "shear_y": (0.3, 0.99),
    "translate_x": (150 / 331, 32.0),  # fraction of the side; pixels
    "translate_y": (150 / 331, 32.0),
    "rotate": (30.0, 135.0),  # degrees
    "brightness": (0.9, 0.99),
    "color": (0.9, 0.99),
    "contrast": (0.9, 0.99),
    "sharpness": (0.9, 0.99),
    "posterize": (4.0, 6.0),  # bits taken away
    "solarize": (1.0, 1.0),
    "autocontrast": (0.0, 0.0),
    "equalize": (0.0, 0.0),
}
_UNSIGNED = {"identity", "posterize", "solarize", "autocontrast", "equalize"}


@dataclass(frozen=True)
class Operation:
    """`magnitude` in the operation's own unit, with its sign."""

    name: str
    magnitude: float = 0.0


def draw_operations(
    uniform: Sequence[Sequence[float]], policy: str | None, magnitude: int
) -> tuple[Operation, ...]:
    """One for each row of NUMBERS numbers from 0 to 1; TrivialAugment takes the first only, and
    draws the magnitude."""
    if policy is None:
        return ()
    trivial = policy == "trivialaugment"
    return tuple(
        _operation(which, int(level * LEVELS) if trivial else magnitude, sign, policy)
        for which, level, sign in (uniform[:1] if trivial else uniform)
    )


def _operation(which: float, step: int, sign: float, policy: str) -> Operation:
    name = list(STRONGEST)[int(which * len(STRONGEST))]
    strength = STRONGEST[name][POLICIES.index(policy)] * step / (LEVELS - 1)
    return Operation(name, -strength if sign < 0.5 and name not in _UNSIGNED else strength)


def run(image: Tensor, operation: Operation) -> Tensor:
    """(3, H, W) uint8 → the same. What comes in at the rim is black, as in torchvision."""
    from torchvision.transforms.v2 import functional

    moved: Tensor = _RUN[operation.name](functional, image, operation.magnitude)
    return moved


def _shear(f: ModuleType, image: Tensor, x: float, y: float) -> Any:
    degrees = [math.degrees(math.atan(value)) for value in (x, y)]
    return f.affine(image, angle=0, translate=[0, 0], scale=1, shear=degrees, center=[0, 0])


def _translate(f: ModuleType, image: Tensor, x: float, y: float) -> Any:
    sides = (image.shape[2], image.shape[1])
    # RandAugment's fractions are all below 1; of TrivialAugment's pixels only 0 is
    pixels = [
        int(value * side if abs(value) < 1 else value)
        for value, side in zip((x, y), sides, strict=True)
    ]
    return f.affine(image, angle=0, translate=pixels, scale=1, shear=[0, 0])


_RUN: dict[str, Callable[[ModuleType, Tensor, float], Any]] = {
    "identity": lambda f, image, m: image,
    "shear_x": lambda f, image, m: _shear(f, image, m, 0),
    "shear_y": lambda f, image, m: _shear(f, image, 0, m),
    "translate_x": lambda f, image, m: _translate(f, image, m, 0),
    "translate_y": lambda f, image, m: _translate(f, image, 0, m),
    "rotate": lambda f, image, m: f.rotate(image, m),
    "brightness": lambda f, image, m: f.adjust_brightness(image, 1 + m),
    "color": lambda f, image, m: f.adjust_saturation(image, 1 + m),
    "contrast": lambda f, image, m: f.adjust_contrast(image, 1 + m),
    "sharpness": lambda f, image, m: f.adjust_sharpness(image, 1 + m),
    "posterize": lambda f, image, m: f.posterize(image, round(8 - m)),
    "solarize": lambda f, image, m: f.solarize(image, 255 * (1 - m)),
    "autocontrast": lambda f, image, m: f.autocontrast(image),
    "equalize": lambda f, image, m: f.equalize(image),
}
