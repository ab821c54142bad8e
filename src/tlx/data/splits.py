"""Which split an image is in: a pure function of the seed and the image's path."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import permutations

from tlx.data.manifest import SPLITS, natural_key
from tlx.errors import UserError


def check_fractions(val: float, test: float) -> None:
    """Train gets what val and test leave, which has to be something."""
    for name, fraction in (("val", val), ("test", test)):
        if not 0 <= fraction < 1:
            raise UserError(f"data.{name}={fraction} is not a fraction: 0 or more, below 1.")
    if val + test >= 1:
        raise UserError(f"data.val={val} and data.test={test} leave nothing to train on.")


def split_stratified(
    paths: Sequence[str], strata: Sequence[str], *, val: float, test: float, seed: int
) -> list[str]:
    """The split of each path, in the order given; train gets the fraction val and test leave.

    Each split's total is exact (largest remainder), and so, to within one image, is its share of
    every stratum. Every stratum has an image in every split whose fraction is above 0; in strata
    too small for their share this comes before exact totals. Listing order does not matter.

    Raises UserError when a stratum has fewer images than there are splits.
    """
    check_fractions(val, test)
    members = defaultdict(list)
    for path, stratum in zip(paths, strata, strict=True):
        members[stratum].append(path)
    names = sorted(members, key=natural_key)
    counts = _allocate({name: len(members[name]) for name in names}, val, test)
    split_of = {}
    for name in names:
        _, n_val, n_test = counts[name]
        for place, path in enumerate(sorted(members[name], key=lambda p: _rank(seed, p))):
            split_of[path] = _split_at(place, n_val, n_test)
    return [split_of[path] for path in paths]


def _rank(seed: int, path: str) -> bytes:
    return hashlib.sha256(f"{seed}:{path}".encode(errors="surrogateescape")).digest()


def _split_at(place: int, n_val: int, n_test: int) -> str:
    if place < n_test:
        return "test"
    return "val" if place < n_test + n_val else "train"


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


def _allocate(sizes: dict[str, int], val: float, test: float) -> dict[str, list[int]]:
    """Rounds strata × splits so that rows and columns both add up (controlled rounding)."""
    val_share, test_share = (Fraction(share).limit_denominator(10**6) for share in (val, test))
    shares = [1 - val_share - test_share, val_share, test_share]
    used = [name for name, share in zip(SPLITS, shares, strict=True) if share > 0]
    for name, size in sizes.items():
        if size < len(used):
            raise UserError(
                f"{name!r} has {size} image{'s' * (size != 1)}, fewer than the {len(used)} splits "
                f"({', '.join(used)}): add images, remove it, or set data.val or data.test to 0."
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
    while any(surplus):
        paths = [
            path
            for a, b, c in permutations(range(3))
            if surplus[a] > 0 > surplus[b]
            for path in (_moves(rows, (a, b)), _moves(rows, (a, c), (c, b)))
            if path is not None
        ]
        if not paths:
            return
        _, moves = min(paths, key=lambda path: path[0])
        for index, (source, target) in moves:
            rows[index].move(source, target)
            surplus[source] -= 1
            surplus[target] += 1


_Move = tuple[int, tuple[int, int]]


def _moves(rows: list[_Row], *steps: tuple[int, int]) -> tuple[int, list[_Move]] | None:
    """The cheapest row for each step, and their cost together; None if a step has no row."""
    cost, moves = 0, []
    for source, target in steps:
        harms = [
            (row.excess(target) - row.excess(source), index)
            for index, row in enumerate(rows)
            if row.can_move(source, target)
        ]
        if not harms:
            return None
        harm, index = min(harms)
        cost += harm
        moves.append((index, (source, target)))
    return cost, moves
