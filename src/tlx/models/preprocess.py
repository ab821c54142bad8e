"""From a photograph to what a network expects: the numbers come with its weights."""

from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor

from tlx.data.images import Decoding
from tlx.errors import UserError, unknown
from tlx.models.catalog import family_of

Triple = tuple[float, float, float]
Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels

RESIZES = ("crop", "squash")


@dataclass(frozen=True)
class Preprocess:
    """Sizes in pixels; `mean` and `std` per RGB channel, of values in 0–1.

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

    def __post_init__(self) -> None:
        from torchvision.transforms import InterpolationMode

        for name in ("image_size", "resize_size"):
            size = getattr(self, name)
            if type(size) is not int or size < 1:
                raise UserError(f"{name}={size!r}: it must be a whole number of pixels, 1 or more")
        modes = [mode.value for mode in InterpolationMode]
        if self.interpolation not in modes:
            raise unknown("interpolation", self.interpolation, modes)
        if self.resize not in RESIZES:
            raise unknown("resize", self.resize, RESIZES)
        if self.alpha not in ("white", "black"):
            raise unknown("alpha", self.alpha, ("white", "black"))
        for name in ("antialias", "icc"):
            if type(getattr(self, name)) is not bool:
                raise UserError(f"{name}={getattr(self, name)!r}: it must be true or false")
        for name in ("mean", "std"):
            if not _is_triple(getattr(self, name)):
                raise UserError(f"{name}={getattr(self, name)!r}: it must be 3 numbers")
        if min(self.std) <= 0:
            raise UserError(f"std={self.std!r}: each must be above 0")

    @classmethod
    def for_weights(
        cls,
        backbone: str,
        member: str | None = None,
        *,
        image_size: int | None = None,
        resize: str = "crop",
        decoding: Decoding = Decoding(),  # noqa: B008 — it is frozen
    ) -> "Preprocess":
        """What torchvision's weights `member` (None: the network's default) were evaluated with.

        Another `image_size` keeps the proportion of crop and resize.
        """
        from torchvision.models import get_model_weights  # type: ignore[attr-defined]

        family_of(backbone)
        members = get_model_weights(backbone)
        if member is not None and member not in members.__members__:
            raise unknown(f"weights of {backbone}", member, [m.name for m in members])
        own = members[member or "DEFAULT"].transforms()
        (crop_size,), (resize_size,) = own.crop_size, own.resize_size
        size = image_size if image_size is not None else crop_size
        return cls(
            image_size=size,
            resize_size=round(size * resize_size / crop_size),
            interpolation=own.interpolation.value,
            antialias=own.antialias,
            mean=tuple(own.mean),
            std=tuple(own.std),
            resize=resize,
            alpha=decoding.alpha,
            icc=decoding.icc,
        )

    @property
    def decoding(self) -> Decoding:
        return Decoding(self.alpha, self.icc)

    def __call__(self, image: Image.Image, box: Box | None = None) -> Tensor:
        """An RGB image of any size → (3, image_size, image_size) uint8.

        With a `box`, that part alone, scaled to the whole: torchvision's RandomResizedCrop.
        """
        from torchvision.transforms import InterpolationMode
        from torchvision.transforms import functional as F

        if box is not None:
            image = image.crop(box)
        to_crop = self.resize == "crop" and box is None
        size = [self.resize_size] if to_crop else [self.image_size] * 2
        mode = InterpolationMode(self.interpolation)
        pixels: Any = image  # torchvision's annotations know tensors only
        pixels = F.resize(pixels, size, interpolation=mode, antialias=self.antialias)
        return F.pil_to_tensor(F.center_crop(pixels, [self.image_size]))

    def normalize(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 → float32 on the same device, in torchvision's order of steps."""
        options: dict[str, Any] = {"dtype": torch.float32, "device": images.device}
        mean = torch.tensor(self.mean, **options).view(3, 1, 1)
        std = torch.tensor(self.std, **options).view(3, 1, 1)
        return (images.float() / 255).sub_(mean).div_(std)

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


def _is_triple(values: object) -> bool:
    return (
        isinstance(values, tuple)
        and len(values) == 3
        and all(type(value) in (int, float) for value in values)
    )
