"""Which images a report shows: a function of the run, never of chance."""

from collections.abc import Sequence
from dataclasses import asdict
from itertools import zip_longest

import numpy as np
from numpy.typing import NDArray

from tlx.data.augment import Augment
from tlx.data.datamodule import ImageData
from tlx.data.manifest import SPLITS, Manifest
from tlx.errors import UserError
from tlx.evaluation.finished import Judged
from tlx.models.preprocess import Preprocess
from tlx.specs import Config

DRAWS = 16


def class_counts(manifest: Manifest) -> dict[str, NDArray[np.int64]]:
    """Images of each class in each split that has some."""
    index = {name: i for i, name in enumerate(manifest.classes)}
    return {
        split: np.bincount([index[s.label] for s in labelled], minlength=len(index))
        for split in SPLITS
        if (labelled := [s for s in manifest.split(split) if s.label])
    }


def augmented_views(
    manifest: Manifest, config: Config, preprocess: Preprocess
) -> list[NDArray[np.uint8]]:
    """One training image under 16 views, or all mirror images; none without augmentation."""
    augment = Augment(**asdict(config.augment))
    if not augment.is_random or not manifest.split("train"):
        return []
    images = ImageData(
        manifest, preprocess, augment=augment, batch_size=1, num_workers=0, seed=config.seed,
        decoding=preprocess.decoding,
    ).dataset("train")  # fmt: skip
    try:
        views = range(len(augment.mirrorings) or DRAWS)
        return [images[len(images) // 2, view][0].permute(1, 2, 0).numpy() for view in views]
    except UserError:  # its file is no longer there
        return []


def mistakes(judged: Judged, number: int) -> list[int]:
    """The wrong ones, the most confident first."""
    wrong = np.flatnonzero(~judged.right)
    return [int(i) for i in wrong[np.argsort(-judged.confidence[wrong], kind="stable")][:number]]


def successes(judged: Judged, number: int) -> list[int]:
    """The right ones of each class in turn, each class's most confident first."""
    right = np.flatnonzero(judged.right)
    ordered = right[np.argsort(-judged.confidence[right], kind="stable")]
    return in_turn([int(i) for i in ordered], judged.labels[ordered], number)


def in_turn(items: Sequence[int], labels: NDArray[np.int64], number: int) -> list[int]:
    """One of each class, then a second of each, and so on."""
    by_class: dict[int, list[int]] = {int(label): [] for label in sorted(set(labels))}
    for item, label in zip(items, labels, strict=True):
        by_class[int(label)].append(item)
    rounds = zip_longest(*by_class.values())
    return [item for turn in rounds for item in turn if item is not None][:number]


def confused_pairs(counts: NDArray[np.int64], number: int) -> list[tuple[int, int, int]]:
    """(true class, predicted class, images), the most frequent confusions first."""
    wrong = counts - np.diag(np.diag(counts))
    order = np.argsort(-wrong, axis=None, kind="stable")[:number]
    pairs = [(int(i), int(j)) for i, j in zip(*np.unravel_index(order, wrong.shape), strict=True)]
    return [(i, j, int(wrong[i, j])) for i, j in pairs if wrong[i, j] > 0]
