"""Which images an epoch has and in which order: (index, view), a pure function of the seed."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

AGAIN = 1_000_003  # views between the occurrences of an image in one epoch; a prime


class EpochSampler(Sampler[tuple[int, int]]):
    """(index, view) in an order that is a pure function of (seed, epoch).

    The view is the epoch; with `views`, so many of them take turns. With `balance_by`, the class
    of every image, an epoch has as many items as there are images, of each class equally many (one
    more or less): from the larger classes a random part, from the smaller ones all images several
    times, each time under another view.

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
        balance_by: Sequence[int] | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.size = size
        self.seed = seed
        self.epoch_offset = epoch_offset
        self.views = views
        self.balance_by = balance_by
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
        random = np.random.Philox(np.random.SeedSequence((self.seed, epoch)))
        order, turns = np.argsort(random.random_raw(self.size), kind="stable"), None
        if self.balance_by is not None:
            items, turns = _balanced(np.asarray(self.balance_by), random)
            order, turns = items[order], turns[order]
        shared = slice(self.rank, len(self) * self.world_size, self.world_size)
        indices = order[shared].tolist()
        views = [epoch] * len(indices)
        if turns is not None:
            views = [epoch + AGAIN * turn for turn in turns[shared].tolist()]
        if self.views is not None:
            views = [view % self.views for view in views]
        return iter(list(zip(indices, views, strict=True))[self.done :])


def _balanced(
    classes: NDArray[np.int64], random: np.random.Philox
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """As many indices as there are `classes`, sorted by class, and how often each came before."""
    present = np.unique(classes)
    share, rest = divmod(len(classes), len(present))
    favoured = np.argsort(random.random_raw(len(present)), kind="stable")[:rest]
    items, turns = [], []
    for place, name in enumerate(present):
        members = np.flatnonzero(classes == name)
        wanted = share + int(place in favoured)
        rounds = -(-wanted // len(members))
        numbers = random.random_raw(rounds * len(members)).reshape(rounds, -1)
        items.append(members[np.argsort(numbers, axis=1, kind="stable")].ravel()[:wanted])
        turns.append(np.repeat(np.arange(rounds), len(members))[:wanted])
    return np.concatenate(items), np.concatenate(turns)


class OrderedSampler(Sampler[tuple[int, int]]):
    """(index, 0) in order: each element in exactly one process, which may have one more or less."""

    def __init__(self, size: int, *, rank: int = 0, world_size: int = 1) -> None:
        self.indices = range(rank, size, world_size)

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return ((index, 0) for index in self.indices)
