"""Single items: an image or its features, what training aims at with it, and its index."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from tlx.data import augment as augmentation
from tlx.data.augment import Augment, AugmentParams
from tlx.data.decoded import DecodedImages
from tlx.data.images import Decoding, UnreadableImage, read
from tlx.data.mixing import Mix
from tlx.data.pixels import decode_pixels
from tlx.data.rectangles import Box
from tlx.data.targets import ProbabilityTargets
from tlx.errors import UserError

Target = int | Tensor  # a class index, or the probabilities of the classes (C,) float32
Item = tuple[Tensor, Target, int]  # (3, H, W) uint8, target, index in the data set
Batch = tuple[Tensor, Tensor, Tensor]  # the same of several images


class Preprocess(Protocol):
    def __call__(self, image: Tensor, box: Box | None) -> Tensor:
        """(3, any, any) uint8, or its part within the box → (3, H, W), always of the same size."""


class ImageDataset(Dataset[Item]):
    """Items are asked for by (index, view). Without `augment` every view is the same.

    `keys` (one per file, see `sample_key`) and `seed` are what the augmentation is drawn from.
    `targets` are class indices or, which mixing needs, probabilities. `kept` spares decoding.
    """

    def __init__(  # noqa: PLR0913 — four of them by name
        self,
        files: Sequence[Path],
        targets: Sequence[int] | ProbabilityTargets,
        preprocess: Preprocess,
        *,
        decoding: Decoding = Decoding(),  # noqa: B008 — it is frozen
        augment: Augment | None = None,
        keys: Sequence[int] = (),
        seed: int = 0,
        kept: DecodedImages | None = None,
    ) -> None:
        self.files = files
        self.targets = targets
        self.preprocess = preprocess
        self.decoding = decoding
        self.augment = augment
        self.keys = keys
        self.seed = seed
        self.kept = kept

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, item: tuple[int, int]) -> Item:
        """Raises UserError when the file cannot be read any more."""
        index, view = item
        params = self._draw(index, view)
        image = self._picture(index, params)
        if params is not None and params.mix is not None:
            partner = self._partner(params.mix)
            other = self._picture(partner, self._draw(partner, view))
            image = augmentation.mix(image, other, params)
        return image, self._target(index, params), index

    def target(self, index: int, view: int) -> Target:
        """As the item has it; without reading the image."""
        return self._target(index, self._draw(index, view) if self.mixes else None)

    @property
    def mixes(self) -> bool:
        """Whether a target depends on the view."""
        return self.augment is not None and (self.augment.mixup > 0 or self.augment.cutmix > 0)

    def _target(self, index: int, params: AugmentParams | None) -> Target:
        own = self.targets[index]
        if params is None or params.mix is None or isinstance(own, int):
            return own
        other = torch.as_tensor(self.targets[self._partner(params.mix)])
        return other.lerp(own, params.mix.lam)

    def _partner(self, mix: Mix) -> int:
        return int(mix.partner * len(self))

    def _draw(self, index: int, view: int) -> AugmentParams | None:
        if self.augment is None:
            return None
        return self.augment.draw(self.seed, view, self.keys[index])

    def _picture(self, index: int, params: AugmentParams | None) -> Tensor:
        """The image as augmentation leaves it, before it is mixed with another."""
        if params is not None and params.crop is not None:
            return augmentation.apply(self._decode(index, params)[0], params)
        image = self.kept.load(index) if self.kept is not None else None
        if image is None:
            image, data = self._decode(index, params)
            if self.kept is not None:
                self.kept.keep(index, data, image)
        return image if params is None else augmentation.apply(image, params)

    def _decode(self, index: int, params: AugmentParams | None) -> tuple[Tensor, bytes]:
        """The image as preprocessing leaves it, and what is in its file."""
        box_of = partial(augmentation.crop_box, params or AugmentParams())
        path = self.files[index]
        try:
            data = read(path)
            image = decode_pixels(data, path, self.decoding, partial(_shorter_side, box_of))
        except UnreadableImage as error:
            # a plain UserError, because a worker process can only pass on one with one argument
            raise UserError(f"{error}. Restore the file or remove it, then run again.") from error
        height, width = image.shape[1:]
        return self.preprocess(image, box_of(width, height)), data


def _shorter_side(box_of: Callable[[int, int], Box | None], width: int, height: int) -> int:
    left, top, right, bottom = box_of(width, height) or (0, 0, width, height)
    return min(right - left, bottom - top)


class Rows(Protocol):
    """Of a split's images, a tensor for each: a `Tensor`, or what is read in the same way."""

    def __len__(self) -> int: ...

    def index_select(self, dim: int, index: Tensor, /) -> Tensor: ...


@dataclass(frozen=True)
class Features:
    """What frozen blocks make of the images, in the manifest's order: (images, …) each."""

    train: Sequence[Rows]  # one for each view
    val: Rows


class FeatureDataset(Dataset[Item]):
    """Batches by (index, view), as the items of `images` would make, with features as images.

    A loader gets a whole batch at once, already collated: next to a head, single rows take time.
    """

    def __init__(self, views: Sequence[Rows], images: ImageDataset) -> None:
        self.views = views
        self.images = images
        every = range(len(images))
        self.targets = (
            None if images.mixes else default_collate([images.target(i, 0) for i in every])
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, items: Sequence[tuple[int, int]]) -> Batch:
        indices, views = torch.tensor(items).unbind(1)
        if len(set(views.tolist())) == 1:
            features = self.views[int(views[0])].index_select(0, indices)
        else:
            features = torch.cat(
                [self.views[view].index_select(0, torch.tensor([i])) for i, view in items]
            )
        if self.targets is not None:
            return features, self.targets[indices], indices
        return features, default_collate([self.images.target(*item) for item in items]), indices
