"""Items, and batches of them: image or features, what training aims at with it, its index."""

import hashlib
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
from tlx.data.parallel import in_threads
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
    Where `contents` has the files' sha256, a file that holds something else is an error.
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
        self.contents: Sequence[str] | None = None

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, item: tuple[int, int]) -> Item:
        """Raises UserError when the file cannot be read any more."""
        images, targets, _ = self.__getitems__([item])
        return images[0], targets[0], item[0]

    def __getitems__(self, items: Sequence[tuple[int, int]]) -> Batch:
        """The same of several, collated; images are decoded by PyTorch's number of threads."""
        indices, views = zip(*items, strict=True)
        params = list(map(self._draw, indices, views))
        images = self._pictures(indices, params)
        if self.mixes:
            partners = [self._partner(p.mix) for p in params if p.mix is not None]
            others = self._pictures(partners, list(map(self._draw, partners, views)))
            pairs = zip(images, others, params, strict=True)
            images = torch.stack([augmentation.mix(*pair) for pair in pairs])
        targets = default_collate(list(map(self._target, indices, params)))
        return images, targets, torch.tensor(indices)

    def target(self, index: int, view: int) -> Target:
        """As the item has it; without reading the image."""
        return self._target(index, self._draw(index, view) if self.mixes else AugmentParams())

    @property
    def mixes(self) -> bool:
        """Whether a target depends on the view."""
        return self.augment is not None and (self.augment.mixup > 0 or self.augment.cutmix > 0)

    def _target(self, index: int, params: AugmentParams) -> Target:
        own = self.targets[index]
        if params.mix is None or isinstance(own, int):
            return own
        other = torch.as_tensor(self.targets[self._partner(params.mix)])
        return other.lerp(own, params.mix.lam)

    def _partner(self, mix: Mix) -> int:
        return int(mix.partner * len(self))

    def _draw(self, index: int, view: int) -> AugmentParams:
        if self.augment is None:
            return AugmentParams()
        return self.augment.draw(self.seed, view, self.keys[index])

    def _pictures(self, indices: Sequence[int], params: Sequence[AugmentParams]) -> Tensor:
        """The images as augmentation leaves them, before they are mixed."""
        images = list(in_threads(self._fitted, indices, params))
        return torch.stack(images) if self.augment is None else augmentation.apply(images, params)

    def _fitted(self, index: int, params: AugmentParams) -> Tensor:
        """The image as preprocessing leaves it."""
        kept = self.kept if params.crop is None else None
        image = kept.load(index) if kept is not None else None
        if image is None:
            image, data = self._decode(index, params)
            if kept is not None:
                kept.keep(index, data, image)
        return image

    def _decode(self, index: int, params: AugmentParams) -> tuple[Tensor, bytes]:
        """The image as preprocessing leaves it, and what is in its file."""
        box_of = partial(augmentation.crop_box, params)
        path = self.files[index]
        try:
            data = read(path)
            self._check(index, data)
            image = decode_pixels(data, path, self.decoding, partial(_shorter_side, box_of))
        except UnreadableImage as error:
            # a plain UserError, because a worker process can only pass on one with one argument
            raise UserError(f"{error}. Restore the file or remove it, then run again.") from error
        height, width = image.shape[1:]
        return self.preprocess(image, box_of(width, height)), data

    def _check(self, index: int, data: bytes) -> None:
        if self.contents and hashlib.sha256(data).hexdigest() != self.contents[index]:
            raise UserError(
                f"{self.files[index]} has changed since the images were listed. Restore it and go "
                "on, or start a new run."
            )


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
