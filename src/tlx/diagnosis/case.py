"""What the doctor looks at before a training: its parts, and a few images that stand for all."""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.optim import Optimizer

from tlx.data.datamodule import ImageData
from tlx.data.targets import class_indices
from tlx.models.classifier import Classifier
from tlx.specs import StageSpec
from tlx.training.inputs import image_data
from tlx.training.job import Job
from tlx.training.optim import build_optimizer

PROBE = 32  # images


@dataclass(frozen=True)
class Case:
    """A training that could begin. Examining it changes nothing of it."""

    job: Job
    optimizer: Callable[[StageSpec, Classifier], Optimizer] = build_optimizer

    @cached_property
    def data(self) -> ImageData:
        return image_data(self.job)

    def indices(self, split: str, count: int = PROBE) -> list[int]:
        """Places in the split of images that stand for it: of each class equally many, by the seed.

        Where a class has too few, others fill up.
        """
        labels = self.labels(split).tolist()
        order = random.Random(self.job.config.seed).sample(range(len(labels)), len(labels))
        seen: Counter[int] = Counter()
        turn = {}
        for i in order:
            turn[i] = seen[labels[i]]
            seen[labels[i]] += 1
        return sorted(order, key=lambda i: turn[i])[:count]

    def labels(self, split: str) -> Tensor:
        """(n,) int64, the class of every image of the split."""
        job = self.job
        return torch.tensor(class_indices(job.manifest.split(split), job.manifest.classes))

    def images(self, split: str, indices: Sequence[int], *, view: int | None = None) -> Tensor:
        """(n, 3, H, W) uint8, as the network gets them before they are normalised.

        Augmented only where a `view` is given.
        """
        dataset = self.data.dataset(split)
        if view is None:
            dataset.augment = None
        return dataset.__getitems__([(i, view or 0) for i in indices])[0]
