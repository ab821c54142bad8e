"""Batches of images for training and evaluation. What is random is a function of the seed."""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule, Trainer
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from tlx.data.augment import Augment, apply, sample_key
from tlx.data.images import UnreadableImage, load_rgb
from tlx.data.manifest import Manifest
from tlx.errors import UserError

log = logging.getLogger(__name__)

Preprocess = Callable[[Image.Image], Tensor]  # RGB image → (3, H, W) uint8
Item = tuple[Tensor, int, int]  # (3, H, W) uint8, class index, index in the data set
Batch = tuple[Tensor, Tensor, Tensor]  # (B, 3, H, W) uint8, (B,) int64, (B,) int64
UNLABELLED = -1  # the class index of images to predict


class ImageDataset(Dataset[Item]):
    """Items are asked for by (index, view). Without `augment` every view is the same.

    `keys` (one per file, see `sample_key`) and `seed` are what the augmentation is drawn from.
    """

    def __init__(  # noqa: PLR0913 — three of them by name
        self,
        files: Sequence[Path],
        targets: Sequence[int],
        preprocess: Preprocess,
        *,
        augment: Augment | None = None,
        keys: Sequence[int] = (),
        seed: int = 0,
    ) -> None:
        self.files = files
        self.targets = targets
        self.preprocess = preprocess
        self.augment = augment
        self.keys = keys
        self.seed = seed

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, item: tuple[int, int]) -> Item:
        """Raises UserError when the file cannot be read any more."""
        index, view = item
        try:
            image = self.preprocess(load_rgb(self.files[index]))
        except UnreadableImage as error:
            # a plain UserError, because a worker process can only pass on one with one argument
            raise UserError(f"{error}. Restore the file or remove it, then run again.") from error
        if self.augment is not None:
            image = apply(image, self.augment.draw(self.seed, view, self.keys[index]))
        return image, self.targets[index], index


@dataclass(frozen=True)
class Features:
    """What frozen blocks make of the images, in the manifest's order: (images, …) each."""

    train: Sequence[Tensor]  # one for each view
    val: Tensor


class FeatureDataset(Dataset[Item]):
    """Items by (index, view), as ImageDataset's, with features in place of the images."""

    def __init__(self, views: Sequence[Tensor], targets: Sequence[int]) -> None:
        self.views = views
        self.targets = targets

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, item: tuple[int, int]) -> Item:
        index, view = item
        return self.views[view][index], self.targets[index], index


class EpochSampler(Sampler[tuple[int, int]]):
    """(index, view) in an order that is a pure function of (seed, epoch).

    The view is the epoch; with `views`, so many of them take turns.

    Every `world_size`-th element goes to the same process, so that the b-th batches of all of them
    together are the b-th batch of one process with `world_size` times the batch size. All get the
    same number: the at most world_size − 1 elements left over at the end of an order are dropped.
    Lightning calls `set_epoch`; `epoch_offset` is added to what it says.
    """

    def __init__(  # noqa: PLR0913 — all but two by name
        self,
        size: int,
        seed: int,
        *,
        epoch_offset: int = 0,
        views: int | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.size = size
        self.seed = seed
        self.epoch_offset = epoch_offset
        self.views = views
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        self.done = 0  # elements of this epoch that an interrupted process has seen

    def set_epoch(self, epoch: int) -> None:
        if epoch != self.epoch:
            self.epoch, self.done = epoch, 0

    def __len__(self) -> int:
        return self.size // self.world_size

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch = self.epoch_offset + self.epoch
        # raw numbers, because only the bit stream is promised not to change between numpy releases
        numbers = np.random.Philox(np.random.SeedSequence((self.seed, epoch))).random_raw(self.size)
        order = np.argsort(numbers, kind="stable").tolist()
        shared = order[: len(self) * self.world_size]
        view = epoch if self.views is None else epoch % self.views
        mine = shared[self.rank :: self.world_size]
        return ((index, view) for index in mine[self.done :])


class OrderedSampler(Sampler[tuple[int, int]]):
    """(index, 0) in order: each element in exactly one process, which may have one more or less."""

    def __init__(self, size: int, *, rank: int = 0, world_size: int = 1) -> None:
        self.indices = range(rank, size, world_size)

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return ((index, 0) for index in self.indices)


class ImageData(LightningDataModule):
    """The three splits of a manifest. Only train is augmented and shuffled.

    The Trainer must have `use_distributed_sampler=False`: the samplers here share out the images
    themselves. Stages that train one after the other set `epoch_offset` to the epochs already
    trained, so that each draws orders and views of its own; with `features` set, a stage reads
    those in place of the images. `batch_size` is over all processes; `num_workers=None` chooses.
    """

    def __init__(  # noqa: PLR0913 — four of them by name
        self,
        manifest: Manifest,
        preprocess: Preprocess,
        *,
        augment: Augment,
        batch_size: int,
        num_workers: int | None,
        seed: int,
        views: int | None = None,
    ) -> None:
        super().__init__()
        self.manifest = manifest
        self.preprocess = preprocess
        self.augment = augment
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.views = views
        self.epoch_offset = 0
        self.features: Features | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        return self.manifest.classes

    @property
    def num_classes(self) -> int:
        return len(self.manifest.classes)

    def dataset(self, split: str) -> ImageDataset:
        """Images of one split in the manifest's order."""
        samples = self.manifest.split(split)
        class_index = {name: index for index, name in enumerate(self.classes)}
        files = [self.manifest.root / sample.path for sample in samples]
        targets = [class_index[sample.label] for sample in samples]
        if split != "train":
            return ImageDataset(files, targets, self.preprocess)
        keys = [sample_key(sample.path) for sample in samples]
        return ImageDataset(
            files, targets, self.preprocess, augment=self.augment, keys=keys, seed=self.seed
        )

    def train_dataloader(self) -> DataLoader[Item]:
        """A last batch of one image is dropped: BatchNorm cannot train on it."""
        images = self.dataset("train")
        dataset: Dataset[Item] = images
        if self.features is not None:
            dataset = FeatureDataset(self.features.train, images.targets)
        rank, world_size = self._process()
        batch_size = self._share()
        sampler = EpochSampler(
            len(images),
            self.seed,
            epoch_offset=self.epoch_offset,
            views=self.views,
            rank=rank,
            world_size=world_size,
        )
        if self.trainer is not None:
            self._go_on(sampler, self.trainer, batch_size)
        if self.batches_per_epoch() == 0:
            raise UserError(
                f"{len(images)} training images are too few for {world_size} processes "
                f"with data.batch_size={self.batch_size}."
            )
        lone = batch_size > 1 and len(sampler) % batch_size == 1
        if lone:
            log.info("the last training batch would be a single image: it is dropped")
        return self._loader(dataset, sampler, drop_last=lone)

    def batches_per_epoch(self) -> int:
        """Batches of train in each process.

        Lightning's own count would make the loaders before it knows where a resumed epoch stands.
        """
        _, world_size = self._process()
        batches, rest = divmod(len(self.manifest.split("train")) // world_size, self._share())
        return batches + (rest > 1)

    @staticmethod
    def _go_on(sampler: EpochSampler, trainer: Trainer, batch_size: int) -> None:
        """Start where an interrupted process stopped.

        On resuming, Lightning starts the workers before it calls set_epoch; `processed` is what
        it calls it with, and after a restart not always `trainer.current_epoch`. It also counts
        the batches that were done, but leaves it to the loader to pass over them.
        """
        epochs: Any = trainer.fit_loop.epoch_progress.current
        sampler.set_epoch(epochs.processed)
        if epochs.started > epochs.processed:  # in the middle of an epoch
            batches = trainer.fit_loop.epoch_loop.batch_progress.current.ready
            sampler.done = batches * batch_size

    def val_dataloader(self) -> DataLoader[Item]:
        return self._ordered("val")

    def _ordered(self, split: str) -> DataLoader[Item]:
        images = self.dataset(split)
        dataset: Dataset[Item] = images
        if self.features is not None and split == "val":
            dataset = FeatureDataset([self.features.val], images.targets)
        rank, world_size = self._process()
        return self._loader(dataset, OrderedSampler(len(images), rank=rank, world_size=world_size))

    def _loader(
        self, dataset: Dataset[Item], sampler: Sampler[tuple[int, int]], *, drop_last: bool = False
    ) -> DataLoader[Item]:
        processes = self.trainer.num_devices if self.trainer is not None else 1
        workers = auto_workers(processes) if self.num_workers is None else self.num_workers
        return _loader(
            dataset,
            sampler,
            batch_size=self._share(),
            num_workers=0 if isinstance(dataset, FeatureDataset) else workers,
            drop_last=drop_last,
        )

    def _share(self) -> int:
        """Images in a batch of each process."""
        _, world_size = self._process()
        share, rest = divmod(self.batch_size, world_size)
        if rest:
            raise UserError(
                f"data.batch_size={self.batch_size} cannot be shared by {world_size} processes; "
                f"give a multiple, such as {(share + 1) * world_size}."
            )
        return share

    def _process(self) -> tuple[int, int]:
        """(rank, world size)"""
        if self.trainer is None:
            return 0, 1
        return self.trainer.global_rank, self.trainer.world_size


def prediction_loader(
    files: Sequence[Path], preprocess: Preprocess, *, batch_size: int, num_workers: int | None
) -> DataLoader[Item]:
    """The files in the order given, with UNLABELLED as class index."""
    return _loader(
        ImageDataset(files, [UNLABELLED] * len(files), preprocess),
        OrderedSampler(len(files)),
        batch_size=batch_size,
        num_workers=auto_workers() if num_workers is None else num_workers,
    )


def view_loader(
    dataset: ImageDataset, view: int, indices: Sequence[int], *, batch_size: int
) -> DataLoader[Item]:
    """The images at `indices` under one view, in order."""
    keys = [(index, view) for index in indices]
    return _loader(dataset, keys, batch_size=batch_size, num_workers=auto_workers())


def auto_workers(processes: int = 1) -> int:
    """Worker processes per loader, when `processes` on this machine each have one.

    Decoding a 300×300 PNG and resizing it to 128 takes 3 ms of a core; on the CPU the forward pass
    of ResNet-18 takes 40 and of VGG16 230, on all cores. There a worker takes from the model what
    it gives (2 cores: 41 ms an image with none, 56 and 47 with one and two), so it gets a core only
    where there are several more; a GPU leaves the cores free.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    share = (cores or 1) // processes
    return min(8, max(0, share - 1)) if torch.cuda.is_available() else min(4, share // 4)


def _loader(
    dataset: Dataset[Item],
    sampler: Sampler[tuple[int, int]] | Sequence[tuple[int, int]],
    *,
    batch_size: int,
    num_workers: int,
    drop_last: bool = False,
) -> DataLoader[Item]:
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        num_workers=num_workers,
        drop_last=drop_last,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=num_workers > 0,
        # the loader draws from it for its workers; from the global one, it would move training's
        generator=torch.Generator().manual_seed(0),
    )
