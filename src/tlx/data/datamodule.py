"""Batches of images for training and evaluation. What is random is a function of the seed."""

import logging
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from tlx.data.augment import Augment, sample_key
from tlx.data.datasets import FeatureDataset, Features, ImageDataset, Item, Preprocess
from tlx.data.decoded import DecodeCache, DecodedImages, open_cache
from tlx.data.images import Decoding
from tlx.data.loaders import auto_workers, make_loader
from tlx.data.manifest import Manifest
from tlx.data.samplers import EpochSampler, OrderedSampler
from tlx.data.targets import TargetPolicy, class_indices, sample_weights, train_targets
from tlx.errors import UserError

log = logging.getLogger(__name__)

# images (B, 3, H, W) uint8 or features; classes (B,) int64 or their probabilities (B, C) float32;
# positions in the split (B,) int64
Batch = tuple[Tensor, Tensor, Tensor]


def share_of_batch(batch_size: int, processes: int) -> int:
    """Images in a batch of each process."""
    share, rest = divmod(batch_size, processes)
    if rest:
        raise UserError(
            f"data.batch_size={batch_size} cannot be shared by {processes} processes; "
            f"give a multiple, such as {(share + 1) * processes}."
        )
    return share


class ImageData(LightningDataModule):
    """The three splits of a manifest. Only train is augmented, shuffled and weighted.

    The Trainer must have `use_distributed_sampler=False`: the samplers here share out the images
    themselves. Stages that train one after the other set `epoch_offset` to the epochs already
    trained, so that each draws orders and views of its own; with `views` set, so many of them take
    turns; with `features` set, a stage reads those in place of the images. `batch_size` is over all
    processes; `num_workers=None` chooses.
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
        decoding: Decoding = Decoding(),  # noqa: B008 — it is frozen, as the next
        policy: TargetPolicy = TargetPolicy(),  # noqa: B008
        balanced: bool = False,
        decode_cache: DecodeCache = DecodeCache(),  # noqa: B008
    ) -> None:
        """Raises UserError for targets or weights that the manifest does not allow.

        `balanced`: an epoch has each class equally often.
        """
        super().__init__()
        self.manifest = manifest
        self.preprocess = preprocess
        self.augment = augment
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.decoding = decoding
        self.balanced = balanced
        self.epoch_offset = 0
        self.views: int | None = None
        train, mixed = manifest.split("train"), augment.mixup > 0 or augment.cutmix > 0
        self.weights = sample_weights(train, manifest.classes, policy)
        self._targets = train_targets(train, manifest.classes, policy, mixed=mixed)
        self.features: Features | None = None
        self.kept = self._open_cache(decode_cache) if decode_cache.where != "off" else {}

    @property
    def classes(self) -> tuple[str, ...]:
        return self.manifest.classes

    def _open_cache(self, settings: DecodeCache) -> dict[str, DecodedImages]:
        """Not for test, which is read once."""
        splits = ["train", "val"]
        if self.augment.crop_scale is not None:
            log.info("Decode cache: not of train, whose crops are from the images before resizing.")
            splits = ["val"]
        shape = self.preprocess(torch.zeros(3, 8, 8, dtype=torch.uint8), None).shape
        files = {
            split: (self._files(split), [s.sha256 for s in self.manifest.split(split)])
            for split in splits
        }
        return open_cache(settings, self.preprocess, shape, files)

    def _files(self, split: str) -> list[Path]:
        return [self.manifest.root / sample.path for sample in self.manifest.split(split)]

    def dataset(self, split: str) -> ImageDataset:
        """Images of one split in the manifest's order."""
        samples, files, kept = self.manifest.split(split), self._files(split), self.kept.get(split)
        if split != "train":
            targets = class_indices(samples, self.classes)
            return ImageDataset(files, targets, self.preprocess, decoding=self.decoding, kept=kept)
        return ImageDataset(
            files,
            self._targets,
            self.preprocess,
            decoding=self.decoding,
            augment=self.augment if self.augment.is_random else None,
            keys=[sample_key(sample.path) for sample in samples],
            seed=self.seed,
            kept=kept,
        )

    def train_dataloader(self) -> DataLoader[Item]:
        """A last batch of one image is dropped: BatchNorm cannot train on it."""
        images = self.dataset("train")
        dataset: Dataset[Item] = images
        if self.features is not None:
            dataset = FeatureDataset(self.features.train, images)
        rank, world_size = self._process()
        batch_size = self._share()
        sampler = EpochSampler(
            len(images),
            self.seed,
            epoch_offset=self.epoch_offset,
            views=self.views,
            balance_by=self._classes_to_balance(),
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
        loader = self._loader(dataset, sampler, drop_last=lone)
        threads = torch.get_num_threads()
        log.info("Feeding: workers %d, threads %d.", loader.num_workers, threads)
        return loader

    def _classes_to_balance(self) -> list[int] | None:
        train = self.manifest.split("train")
        return class_indices(train, self.classes) if self.balanced else None

    def batches_per_epoch(self) -> int:
        """Batches of train in each process.

        Lightning's own count would make the loaders before it knows where a resumed epoch stands.
        """
        _, world_size = self._process()
        batches, rest = divmod(len(self.manifest.split("train")) // world_size, self._share())
        return batches + (rest > 1)

    def images_in(self, first: int, last: int) -> int:
        """Images in the batches of train from `first` up to `last`, without it, of each process."""
        _, world_size = self._process()
        mine, share = len(self.manifest.split("train")) // world_size, self._share()
        return min(last * share, mine) - first * share

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
            dataset = FeatureDataset([self.features.val], images)
        rank, world_size = self._process()
        return self._loader(dataset, OrderedSampler(len(images), rank=rank, world_size=world_size))

    def _loader(
        self, dataset: Dataset[Item], sampler: Sampler[tuple[int, int]], *, drop_last: bool = False
    ) -> DataLoader[Item]:
        processes = self.trainer.num_devices if self.trainer is not None else 1
        workers = auto_workers(processes) if self.num_workers is None else self.num_workers
        if isinstance(dataset, FeatureDataset):
            workers = 0
        return make_loader(
            dataset,
            sampler,
            batch_size=self._share(),
            num_workers=workers,
            drop_last=drop_last,
        )

    def _share(self) -> int:
        """Images in a batch of each process."""
        _, world_size = self._process()
        return share_of_batch(self.batch_size, world_size)

    def _process(self) -> tuple[int, int]:
        """(rank, world size)"""
        if self.trainer is None:
            return 0, 1
        return self.trainer.global_rank, self.trainer.world_size
