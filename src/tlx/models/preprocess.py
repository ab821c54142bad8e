"""From a photograph to what a network expects: the numbers come with its weights."""

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields, replace
from functools import cache
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor

from tlx.data.images import Decoding
from tlx.data.pixels import to_pixels
from tlx.errors import UserError, unknown
from tlx.models.catalog import TORCHVISION, family_of

Triple = tuple[float, float, float]
Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels

RESIZES = ("crop", "squash")
INTERPOLATIONS = ("nearest", "nearest-exact", "bilinear", "bicubic")

INPUTS: Mapping[str, Mapping[str, Any]] = {  # what takes the place of the weights' own
    "weights": {},
    "unit": {"channels": "RGB", "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)},
    "signed": {"channels": "RGB", "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)},
    "pixels": {"channels": "RGB", "mean": (0.0, 0.0, 0.0), "std": (1 / 255, 1 / 255, 1 / 255)},
    "caffe": {
        "channels": "BGR",
        "mean": (103.939 / 255, 116.779 / 255, 123.68 / 255),
        "std": (1 / 255, 1 / 255, 1 / 255),
    },
}


@dataclass(frozen=True)
class Preprocess:
    """Sizes in pixels; `mean` and `std` per channel, in the order of `channels`, of values in 0–1.

    `resize='crop'` scales the shorter side to `resize_size` and cuts the centre out; 'squash'
    scales both sides to `image_size`, whatever the aspect, as Keras does. `alpha` and `icc` are of
    decoding.
    """

    image_size: int
    resize_size: int
    interpolation: str  # torchvision's names, such as 'bilinear'
    antialias: bool
    mean: Triple
    std: Triple
    resize: str = "crop"
    alpha: Literal["white", "black"] = "white"
    icc: bool = False
    channels: Literal["RGB", "BGR"] = "RGB"

    def __post_init__(self) -> None:
        for name in ("image_size", "resize_size"):
            size = getattr(self, name)
            if type(size) is not int or size < 1:
                raise UserError(f"{name}={size!r}: it must be a whole number of pixels, 1 or more")
        if self.interpolation not in INTERPOLATIONS:
            raise unknown("interpolation", self.interpolation, INTERPOLATIONS)
        if self.resize not in RESIZES:
            raise unknown("resize", self.resize, RESIZES)
        if self.alpha not in ("white", "black"):
            raise unknown("alpha", self.alpha, ("white", "black"))
        if self.channels not in ("RGB", "BGR"):
            raise unknown("channels", self.channels, ("RGB", "BGR"))
        for name in ("antialias", "icc"):
            if type(getattr(self, name)) is not bool:
                raise UserError(f"{name}={getattr(self, name)!r}: it must be true or false")
        for name in ("mean", "std"):
            if not _is_triple(getattr(self, name)):
                raise UserError(f"{name}={getattr(self, name)!r}: it must be 3 numbers")
        if min(self.std) <= 0:
            raise UserError(f"std={self.std!r}: each must be above 0")

    @classmethod
    def for_weights(  # noqa: PLR0913  # one argument for each choice in the settings
        cls,
        backbone: str,
        member: str | None = None,
        *,
        image_size: int | None = None,
        resize: str = "crop",
        decoding: Decoding = Decoding(),  # noqa: B008 — it is frozen
        input: str = "weights",  # noqa: A002 — as the setting is called
    ) -> "Preprocess":
        """What torchvision's weights `member` (None: the network's default) were evaluated with.

        Another `image_size` keeps the proportion of crop and resize; another `input` than
        'weights' (see INPUTS) takes the place of channel order, mean and std.
        """
        if input not in INPUTS:
            raise unknown("preprocess.input", input, INPUTS)
        own = _evaluated_with(backbone, member)
        size = image_size if image_size is not None else own.image_size
        return replace(
            own,
            image_size=size,
            resize_size=round(size * own.resize_size / own.image_size),
            resize=resize,
            alpha=decoding.alpha,
            icc=decoding.icc,
            **INPUTS[input],
        )

    @property
    def decoding(self) -> Decoding:
        side = self.resize_size if self.resize == "crop" else self.image_size
        return Decoding(self.alpha, self.icc, side)

    def __call__(self, image: Image.Image | Tensor, box: Box | None = None) -> Tensor:
        """An RGB image, or its pixels (3, H, W) uint8, of any size → the same of image_size.

        With a `box`, that part alone, scaled to the whole: torchvision's RandomResizedCrop.
        Resized by torch, within a level of 255 (bicubic: two) of Pillow and in a third of its time.
        """
        from torchvision.transforms import InterpolationMode
        from torchvision.transforms.v2 import functional

        resizing: Any = functional  # it exports nothing to type checkers
        pixels = image if isinstance(image, Tensor) else to_pixels(image)
        if box is not None:
            left, top, right, bottom = box
            pixels = pixels[:, top:bottom, left:right]
        to_crop = self.resize == "crop" and box is None
        size = [self.resize_size] if to_crop else [self.image_size] * 2
        mode = InterpolationMode(self.interpolation)
        pixels = resizing.resize(pixels, size, interpolation=mode, antialias=self.antialias)
        cropped: Tensor = resizing.center_crop(pixels, [self.image_size])
        return cropped.contiguous()

    def normalize(self, images: Tensor) -> Tensor:
        """RGB (B, 3, H, W) uint8 → float32 on the same device, in torchvision's order of steps."""
        if self.channels == "BGR":
            images = images.flip(-3)
        mean, std = (_per_channel(tuple(v), images.device) for v in (self.mean, self.std))
        return images.float().div_(255).sub_(mean).div_(std)

    def same_input(self, other: "Preprocess") -> bool:
        """Whether the network would get the same numbers for the same pixels."""
        return (self.channels, self.mean, self.std) == (other.channels, other.mean, other.std)

    def describe_input(self) -> str:
        """For people: channel order, range, mean and std of what the network gets."""
        low = min((0 - m) / s for m, s in zip(self.mean, self.std, strict=True))
        high = max((1 - m) / s for m, s in zip(self.mean, self.std, strict=True))
        mean, std = (", ".join(f"{v:.4g}" for v in values) for values in (self.mean, self.std))
        return f"{self.channels} from {low:.4g} to {high:.4g} (mean {mean}; std {std}; of 0-1)"

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Preprocess":
        """The inverse of `to_dict`. Raises UserError for a missing, unknown or wrong value."""
        names = [field.name for field in fields(cls)]
        required = [field.name for field in fields(cls) if field.default is MISSING]
        if missing := [name for name in required if name not in values]:
            raise UserError(f"preprocessing lacks {', '.join(missing)}")
        for name in values:
            if name not in names:
                raise unknown("preprocessing key", name, names)
        triples = {
            name: tuple(values[name]) for name in ("mean", "std") if isinstance(values[name], list)
        }
        return cls(**{**values, **triples})


def _evaluated_with(backbone: str, member: str | None) -> Preprocess:
    from torchvision.models import get_model_weights  # type: ignore[attr-defined]

    family_of(backbone)
    if backbone not in TORCHVISION:
        if member is not None:
            raise UserError(f"weights of {backbone}: there are none, such as {member}")
        return Preprocess(150, 150, "bilinear", True, **INPUTS["unit"])
    members = get_model_weights(backbone)
    if member is not None and member not in members.__members__:
        raise unknown(f"weights of {backbone}", member, [m.name for m in members])
    own = members[member or "DEFAULT"].transforms()
    (crop_size,), (resize_size,) = own.crop_size, own.resize_size
    return Preprocess(
        image_size=crop_size,
        resize_size=resize_size,
        interpolation=own.interpolation.value,
        antialias=own.antialias,
        mean=tuple(own.mean),
        std=tuple(own.std),
    )


def _is_triple(values: object) -> bool:
    return (
        isinstance(values, tuple)
        and len(values) == 3
        and all(type(value) in (int, float) for value in values)
    )


@cache
def _per_channel(values: tuple[float, ...], device: torch.device) -> Tensor:
    """(3, 1, 1) float32, made once: a copy to a GPU waits for all that it has to do."""
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=torch.float32, device=device).view(3, 1, 1)
