"""How many images of each stratum go to each split."""

from dataclasses import dataclass
from fractions import Fraction
from heapq import heappop, heappush
from itertools import permutations
from operator import itemgetter

from tlx.data.manifest import SPLITS
from tlx.errors import UserError


def share(fraction: float) -> Fraction:
    """The fraction that was meant: 0.1 as 1/10, 0.3333333333 as 1/3."""
    return Fraction(fraction).limit_denominator(10**6)


@dataclass
class _Row:
    """One stratum's counts, (train, val, test), between their bounds.

    `ideal` is in units of 1/denominator image, so that ties are ties and not rounding errors.
    """

    counts: list[int]
    lowest: list[int]
    highest: list[int]
    ideal: list[int]
    denominator: int

    def excess(self, column: int) -> int:
        """How far above its exact share a count is."""
        return self.counts[column] * self.denominator - self.ideal[column]

    def can_move(self, source: int, target: int) -> bool:
        has_spare = self.counts[source] > self.lowest[source]
        return has_spare and self.counts[target] < self.highest[target]

    def move(self, source: int, target: int) -> None:
        self.counts[source] -= 1
        self.counts[target] += 1


def allocate(sizes: dict[str, int], val: float, test: float) -> dict[str, list[int]]:
    """Images of each stratum in train, val and test: `sizes` × fractions, rounded.

    Rows and columns both add up (controlled rounding), every cell within one image of its share.
    Every stratum has an image in every split whose fraction is above 0; in strata too small for
    their share this comes before exact totals. Raises UserError when one has too few images.
    """
    shares = [1 - share(val) - share(test), share(val), share(test)]
    used = [name for name, part in zip(SPLITS, shares, strict=True) if part > 0]
    for name, size in sizes.items():
        if size < len(used):
            raise UserError(
                f"{name!r} has {size} image{'s' * (size != 1)}, fewer than the {len(used)} splits "
                f"({', '.join(used)}): add images, remove it, or set data.test to 0."
            )
    rows = {name: _row(size, shares, at_least=1) for name, size in sizes.items()}
    totals = _row(sum(sizes.values()), shares, at_least=0).counts
    _balance(list(rows.values()), totals)
    return {name: row.counts for name, row in rows.items()}


def _row(size: int, shares: list[Fraction], *, at_least: int) -> _Row:
    """`size` images by largest remainder, with at least so many in each split that has a share."""
    denominator = shares[0].denominator * shares[1].denominator * shares[2].denominator
    ideal = [int(size * share * denominator) for share in shares]
    lowest = [max(n // denominator, at_least if n else 0) for n in ideal]
    highest = [max(-(-n // denominator), low) for n, low in zip(ideal, lowest, strict=True)]
    row = _Row(list(lowest), lowest, highest, ideal, denominator)
    while sum(row.counts) > size:  # the images given to a small share come out of the largest
        row.counts[row.counts.index(max(row.counts))] -= 1
    while sum(row.counts) < size:
        row.counts[min(range(3), key=row.excess)] += 1
    return row


def _balance(rows: list[_Row], totals: list[int]) -> None:
    """Moves single images between splits, least harm first, until the columns add up.

    Rounding every cell up or down can always reach the totals (a transport problem with integer
    margins has an integer solution), and with three columns a path has at most two moves. Only
    strata too small for their share can stop it early.
    """
    surplus = [
        sum(row.counts[column] for row in rows) - total for column, total in enumerate(totals)
    ]
    queues = {step: _Queue(rows, *step) for step in permutations(range(3), 2)}
    while any(surplus):
        best = {step: found for step, queue in queues.items() if (found := queue.best())}
        paths = [
            (sum(best[step][0] for step in path), path)
            for a, b, c in permutations(range(3))
            if surplus[a] > 0 > surplus[b]
            for path in ([(a, b)], [(a, c), (c, b)])
            if all(step in best for step in path)
        ]
        if not paths:
            return
        _, path = min(paths, key=itemgetter(0))
        for source, target in path:
            index = best[source, target][1]
            rows[index].move(source, target)
            surplus[source] -= 1
            surplus[target] += 1
            for queue in queues.values():
                queue.add(index)


class _Queue:
    """The rows that can give an image from one split to another, the least harmed first."""

    def __init__(self, rows: list[_Row], source: int, target: int) -> None:
        self.rows, self.source, self.target = rows, source, target
        self.heap: list[tuple[int, int]] = []
        for index in range(len(rows)):
            self.add(index)

    def add(self, index: int) -> None:
        if self.rows[index].can_move(self.source, self.target):
            heappush(self.heap, (self._harm(index), index))

    def best(self) -> tuple[int, int] | None:
        """Harm and row, None if no row can. What a move has overtaken is dropped here."""
        while self.heap:
            harm, index = self.heap[0]
            if self.rows[index].can_move(self.source, self.target) and harm == self._harm(index):
                return harm, index
            heappop(self.heap)
        return None

    def _harm(self, index: int) -> int:
        row = self.rows[index]
        return row.excess(self.target) - row.excess(self.source)
