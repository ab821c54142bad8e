"""Test-time augmentation: the views of an image over which predictions are averages."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from tlx.data.augment import Augment
from tlx.errors import UserError


@dataclass(frozen=True)
class Views:
    """The image itself and further ones of `augment`, the same for every image (`tta_augment`)."""

    count: int = 1
    augment: Augment = field(default_factory=Augment)
    seed: int = 0

    def to_dict(self) -> dict[str, Any]:
        """What differs from no augmentation, for a JSON file."""
        plain = asdict(Augment())
        changed = {k: v for k, v in asdict(self.augment).items() if v != plain[k]}
        return {"count": self.count, "augment": changed, "seed": self.seed}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Views":
        augment: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in values["augment"].items()
        }
        return cls(values["count"], Augment(**augment), values["seed"])


def tta_augment(augment: Augment, views: int) -> Augment:
    """What the views after the first, the image itself, are drawn from: training's augmentation
    without what changes the truth, mixing and erasing; mirror images where that leaves nothing.

    Raises UserError for more views than there are.
    """
    milder = replace(augment, mixup=0.0, cutmix=0.0, erasing=0.0)
    if not milder.is_random:
        milder = Augment(horizontal_flip=True)
    there = len(milder.mirrorings)
    if there and views > there:
        raise UserError(
            f"tta={views}: with mirror images as the only augmentation there are {there} views, "
            f"the image itself among them; use tta={there}, or train with more, such as "
            "augment=light."
        )
    return milder
