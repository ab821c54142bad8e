"""Random changes of training images, each a pure function of seed, view and sample."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby, islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tlx.data import mixing, policies, rectangles
from tlx.data.affine import FILL_MODES, Affine, warp
from tlx.data.colours import brighten, shift_channels
from tlx.data.mixing import Mix, draw_mix, mix_images
from tlx.data.policies import POLICIES, Operation, draw_operations, run
from tlx.data.rectangles import (
    ERASED_AREA,
    Box,
    Rectangle,
    crop_of,
    draw_rectangle,
    erase,
)
from tlx.errors import UserError, unknown


@dataclass(frozen=True)
class AugmentParams:
    """What one view does to one image."""

    crop: Rectangle | None = None
    affine: Affine | None = None
    flip_horizontal: bool = False
    flip_vertical: bool = False
    channel_shift: float = 0.0
    brightness: float | None = None
    operations: tuple[Operation, ...] = ()
    erasing: Rectangle | None = None
    mix: Mix | None = None

    @property
    def kind(self) -> tuple[object, ...]:
        """Equal for images that can be changed together."""
        affine = self.affine and (self.affine.fill_mode, self.affine.cval)
        return affine, self.channel_shift != 0, self.brightness is not None


@dataclass(frozen=True)
class Augment:
    """The ranges views are drawn from; as it stands, none. conf/augment/none.yaml explains each.

    The first ten are Keras's ImageDataGenerator's and mean the same, but that each shift moves
    along its own side (Keras moves by its width_shift_range up and down).
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

    def __post_init__(self) -> None:
        for name, low, high, unit in _LIMITS:
            if not low <= getattr(self, name) <= high:
                given = getattr(self, name)
                raise UserError(f"augment.{name}={given} is not within {low} to {high}{unit}.")
        for name, highest in _RANGES.items():
            values = self._zoom if name == "zoom_range" else getattr(self, name)
            if values is not None and not _is_range(values, highest):
                raise UserError(
                    f"augment.{name}={getattr(self, name)} is not [smallest, largest], both above "
                    f"0 and at most {highest}."
                )
        if self.fill_mode not in FILL_MODES:
            raise unknown("augment.fill_mode", self.fill_mode, FILL_MODES)
        if self.policy is not None and self.policy not in POLICIES:
            raise unknown("augment.policy", self.policy, POLICIES)

    @property
    def is_random(self) -> bool:
        """Whether a view can differ from the image."""
        return replace(self, **_INERT) != Augment()

    @cached_property
    def mirrorings(self) -> tuple[tuple[bool, bool], ...]:
        """Where views are mirror images and nothing else: all there are, the image itself first.

        Each as (horizontally, vertically); empty where there is more to a view, or less.
        """
        plain = replace(self, horizontal_flip=False, vertical_flip=False)
        if plain.is_random or not self.is_random:
            return ()
        horizontal, vertical = (
            (False, True) if on else (False,) for on in (self.horizontal_flip, self.vertical_flip)
        )
        return tuple((h, v) for v in vertical for h in horizontal)

    @property
    def _zoom(self) -> Sequence[float]:
        zoom = self.zoom_range
        return (1 - zoom, 1 + zoom) if isinstance(zoom, float | int) else zoom

    def draw(self, seed: int, view: int, key: int) -> AugmentParams:
        """The same arguments give the same parameters, in any process and any order.

        Mirror images alone are taken in turn, from one that `key` chooses: as many views as there
        are have each once, whatever the seed.
        """
        if mirrorings := self.mirrorings:
            flips = mirrorings[(view + key) % len(mirrorings)]
            return AugmentParams(flip_horizontal=flips[0], flip_vertical=flips[1])
        random = np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, view, key))))
        # all numbers are drawn, whatever is on: switching one transform off leaves the others'
        horizontal, vertical, *first = random.random(8).tolist()
        channel, brightness, erases = random.random(3).tolist()
        crop, erased = (random.random(rectangles.NUMBERS).tolist() for _ in range(2))
        mixed = random.random(mixing.NUMBERS).tolist()
        steps = random.random((self.num_ops, policies.NUMBERS)).tolist()
        factors = self.brightness_range
        return AugmentParams(
            crop=draw_rectangle(crop, self.crop_scale, self.crop_ratio),
            affine=self._draw_affine(first),
            flip_horizontal=self.horizontal_flip and horizontal < 0.5,
            flip_vertical=self.vertical_flip and vertical < 0.5,
            channel_shift=self.channel_shift_range * (2 * channel - 1),
            brightness=_within(factors, brightness) if factors else None,
            operations=draw_operations(steps, self.policy, self.magnitude),
            erasing=draw_rectangle(erased, ERASED_AREA if erases < self.erasing else None),
            mix=draw_mix(mixed, self.mixup, self.cutmix),
        )

    def _draw_affine(self, uniform: Sequence[float]) -> Affine | None:
        angle, x, y, zoom_x, zoom_y, shear = uniform
        shift_x = self.width_shift_range * (2 * x - 1)
        shift_y = self.height_shift_range * (2 * y - 1)
        in_pixels_x, in_pixels_y = self.width_shift_range >= 1, self.height_shift_range >= 1
        affine = Affine(
            angle=self.rotation_range * (2 * angle - 1),
            shift_x=0.0 if in_pixels_x else shift_x,
            shift_y=0.0 if in_pixels_y else shift_y,
            pixels_x=shift_x if in_pixels_x else 0.0,
            pixels_y=shift_y if in_pixels_y else 0.0,
            shear=self.shear_range * (2 * shear - 1),
            zoom_x=_within(self._zoom, zoom_x),
            zoom_y=_within(self._zoom, zoom_y),
        )
        if affine == Affine():
            return None
        return replace(affine, fill_mode=self.fill_mode, cval=self.cval)


# the settings that are one number: from, to, of what
_LIMITS = (
    ("rotation_range", 0, 180, " degrees"),
    ("shear_range", 0, 89, " degrees"),
    ("width_shift_range", 0, 10_000, ""),
    ("height_shift_range", 0, 10_000, ""),
    ("cval", 0, 255, ""),
    ("channel_shift_range", 0, 255, ""),
    ("num_ops", 1, 20, ""),
    ("magnitude", 0, policies.LEVELS - 1, ""),
    ("erasing", 0, 1, ""),
    ("mixup", 0, mixing.MAX_ALPHA, ""),
    ("cutmix", 0, mixing.MAX_ALPHA, ""),
)
# those that are two, and the most that the second may be
_RANGES = {"zoom_range": 100, "brightness_range": 100, "crop_scale": 1, "crop_ratio": 100}
# those that alone change nothing
_INERT: dict[str, Any] = {
    "fill_mode": "nearest", "cval": 0.0, "crop_ratio": (3 / 4, 4 / 3), "num_ops": 2, "magnitude": 9
}  # fmt: skip


def _is_range(values: Sequence[float], highest: float) -> bool:
    return len(values) == 2 and 0 < values[0] <= values[1] <= highest


def _within(limits: Sequence[float], uniform: float) -> float:
    return limits[0] + (limits[1] - limits[0]) * uniform


def sample_key(path: str) -> int:
    """64 bits from a manifest path: stable where `hash` is not."""
    digest = hashlib.sha256(path.encode(errors="surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big")


def crop_box(params: AugmentParams, width: int, height: int) -> Box | None:
    """(left, top, right, bottom) of the decoded picture's pixels to keep, before it is resized.

    What is left goes to the network's size whatever its aspect. None: all, as in evaluation.
    """
    return crop_of(params.crop, width, height) if params.crop else None


def apply(images: Iterable[Tensor], params: Sequence[AugmentParams]) -> Tensor:
    """(3, H, W) uint8 each, of one size → (B, 3, H, W) uint8, each image by its own params.

    All but `params.crop`, which is for the picture before this, and `params.mix`, after. In
    Keras's order: affine, channel shift, flips, brightness; then the policy and erasing.
    """
    # a thread has an image; more at once no longer lie in the processor's cache
    most = torch.get_num_threads()
    changed = list[Tensor]()
    for _, pairs in groupby(zip(images, params, strict=True), key=lambda pair: pair[1].kind):
        while some := list(islice(pairs, most)):
            same, theirs = zip(*some, strict=True)
            changed += _apply(torch.stack(same), theirs)
    return torch.stack(changed)


def _apply(images: Tensor, params: Sequence[AugmentParams]) -> Sequence[Tensor]:
    """Of images to which the same things are done."""
    affines = [p.affine for p in params if p.affine is not None]
    mirrors = [(p.flip_horizontal, p.flip_vertical) for p in params]
    if affines:
        images = warp(images, affines, mirrors)
    else:
        for axis, flags in zip((3, 2), zip(*mirrors, strict=True), strict=True):
            mirrored = torch.tensor(flags)
            images[mirrored] = images[mirrored].flip(axis)
    if params[0].channel_shift != 0:
        images = shift_channels(images.float(), torch.tensor([p.channel_shift for p in params]))
    if params[0].brightness is not None:
        images = brighten(images.float(), torch.tensor([p.brightness for p in params]))
    if images.is_floating_point():
        # straight to bytes takes thrice as long
        images = images.add_(0.5).to(torch.int32).to(torch.uint8)
    return [_last(image, p) for image, p in zip(images, params, strict=True)]


def _last(image: Tensor, params: AugmentParams) -> Tensor:
    """What is done to one image after another."""
    for operation in params.operations:
        image = run(image, operation)
    return erase(image, params.erasing) if params.erasing is not None else image


def mix(image: Tensor, partner: Tensor, params: AugmentParams) -> Tensor:
    """The image under `params.mix` with another of its size, (3, H, W) uint8 each."""
    return image if params.mix is None else mix_images(image, partner, params.mix)
