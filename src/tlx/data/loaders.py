"""Loaders over data sets: for given files, for one view, and how many workers read for them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from tlx.data.augment import Augment
from tlx.data.datasets import ImageDataset, Item, Preprocess
from tlx.data.images import Decoding
from tlx.data.parallel import cores
from tlx.data.targets import UNLABELLED


def prediction_loader(  # noqa: PLR0913 — all but two by name
    files: Sequence[Path],
    preprocess: Preprocess,
    *,
    batch_size: int,
    num_workers: int | None,
    decoding: Decoding = Decoding(),  # noqa: B008 — it is frozen
    augment: Augment | None = None,
    seed: int = 0,
    view: int = 0,
) -> DataLoader[Item]:
    """See `prediction_dataset`."""
    return make_loader(
        prediction_dataset(files, preprocess, decoding=decoding, augment=augment, seed=seed),
        [(index, view) for index in range(len(files))],
        batch_size=batch_size,
        num_workers=auto_workers() if num_workers is None else num_workers,
    )


def prediction_dataset(
    files: Sequence[Path],
    preprocess: Preprocess,
    *,
    decoding: Decoding,
    augment: Augment | None,
    seed: int,
) -> ImageDataset:
    """The files in the order given, with UNLABELLED as class index.

    Augmentation treats all of them alike: it depends on seed and view only.
    """
    return ImageDataset(
        files,
        [UNLABELLED] * len(files),
        preprocess,
        decoding=decoding,
        augment=augment,
        keys=[0] * len(files),
        seed=seed,
    )


def auto_workers(processes: int = 1) -> int:
    """Worker processes per loader, when `processes` on this machine each have one.

    Decoding a 300×300 PNG and resizing it to 128 takes 3 ms of a core; on the CPU the forward pass
    of ResNet-18 takes 40 and of VGG16 230, on all cores. There a worker takes from the model what
    it gives (2 cores: 41 ms an image with none, 56 and 47 with one and two), so it gets a core only
    where there are several more; a GPU leaves the cores free. Without workers, threads decode.
    """
    share = cores() // processes
    return min(8, max(0, share - 1)) if torch.cuda.is_available() else min(4, share // 4)


def make_loader(
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
        collate_fn=as_it_is,  # both data sets make whole batches
        pin_memory=torch.cuda.is_available(),
        persistent_workers=num_workers > 0,
        # the loader draws from it for its workers; from the global one, it would move training's
        generator=torch.Generator().manual_seed(0),
    )


def as_it_is(batch: Any) -> Any:
    return batch
