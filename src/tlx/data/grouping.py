"""Groups that must stay whole, dealt out so that each part has its share of every stratum."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Kind = tuple[tuple[int, int], ...]  # a group's images: (stratum, how many), sorted

EXCHANGED = 200  # kinds of group among which exchanges are tried, the smallest: pairs are many
EXCHANGES = 200  # at most, for the same reason
REPAIRED = 50


def deal(groups: Sequence[Kind], first: Sequence[int], targets: Ints) -> list[int]:
    """The part of each group, from a first guess, by local search.

    `targets` (S, C) is how many images of each stratum each part should have; a part whose targets
    are 0 gets nothing. One group moves, or two are exchanged, as long as that brings a stratum to
    a part that has none of it or lowers the sum of squared deviations from the targets. So, of
    groups with one stratum each: no part is ahead of another by more than its own smallest group
    of the stratum (unless that is its last), and with enough single images the targets are met.
    Deterministic.
    """
    parts = list(first)
    members = defaultdict(list)
    for group, kind in enumerate(groups):
        members[kind].append(group)
    for kinds, strata in _components(list(members)):
        search = _Search.of(kinds, strata, members, parts, targets)
        search.run()
        for (part, _), own in search.members.items():
            for group in own:
                parts[group] = part
    return parts


def _components(kinds: list[Kind]) -> Iterator[tuple[list[Kind], list[int]]]:
    """Kinds and strata that hang together; the others are problems of their own."""
    above: dict[int, int] = {}

    def top(stratum: int) -> int:
        while above.setdefault(stratum, stratum) != stratum:
            stratum = above[stratum]
        return stratum

    for kind in kinds:
        for stratum, _ in kind:
            above[top(stratum)] = top(kind[0][0])
    together = defaultdict(list)
    for kind in kinds:
        together[top(kind[0][0])].append(kind)
    for found in together.values():
        yield found, sorted({stratum for kind in found for stratum, _ in kind})


@dataclass
class _Search:
    """`kinds` (K, C), small first, the first one empty: a move is an exchange for nothing.

    `members` lists the groups of each (part, kind), the next to go last; `stock` (S, K) counts
    them; `counts` and `targets` (S, C) are images.
    """

    kinds: Ints
    members: dict[tuple[int, int], list[int]]
    stock: Ints
    counts: Ints
    targets: Ints

    @classmethod
    def of(
        cls,
        kinds: list[Kind],
        strata: list[int],
        groups: dict[Kind, list[int]],
        parts: list[int],
        targets: Ints,
    ) -> "_Search":
        column = {stratum: i for i, stratum in enumerate(strata)}
        ordered: list[Kind] = [(), *sorted(kinds, key=lambda kind: (sum(n for _, n in kind), kind))]
        matrix = np.zeros((len(ordered), len(strata)), np.int64)
        members, stock = defaultdict(list), np.zeros((len(targets), len(ordered)), np.int64)
        stock[:, 0] = 1
        for row, kind in enumerate(ordered):
            for stratum, n in kind:
                matrix[row, column[stratum]] = n
            for group in reversed(groups.get(kind, [])):
                members[parts[group], row].append(group)
                stock[parts[group], row] += 1
        return cls(matrix, members, stock, stock @ matrix, targets[:, strata])

    def run(self) -> None:
        while self.repair(1) or self.repair(REPAIRED):
            pass
        for _ in range(EXCHANGES):
            while self.sweep():
                pass
            if not self.exchange():
                return

    def pairs(self) -> list[tuple[int, int]]:
        return list(permutations(np.flatnonzero(self.targets.any(axis=1)).tolist(), 2))

    def missing(self, source: int, target: int, change: Ints) -> int:
        """How many parts have none of a stratum that they should have, after the change."""
        counts = self.counts.copy()
        counts[source] -= change
        counts[target] += change
        return int(((counts == 0) & (self.targets > 0)).sum())

    def harm(self, source: int, target: int, out: Ints, back: Ints) -> Ints:
        """Half of what exchanges (out, back) add to the sum of squared deviations."""
        deviation = self.counts - self.targets
        a, b, slope = self.kinds[out], self.kinds[back], deviation[target] - deviation[source]
        squares = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1) - 2 * a @ b.T
        return np.asarray(squares + (a @ slope)[:, None] - b @ slope)

    def repair(self, tried: int) -> bool:
        """The exchange, for one of the first `tried` kinds, that brings the most strata to parts
        without them, at the least harm."""
        best = (self.missing(0, 0, self.kinds[0]), 0, 0, 0, 0, 0)
        for source, target in self.pairs() if best[0] else ():
            wanted = (self.counts[target] == 0) & (self.targets[target] > 0)
            out = np.flatnonzero((self.stock[source] > 0) & self.kinds[:, wanted].any(axis=1))
            back = np.flatnonzero(self.stock[target, :tried])
            harm = self.harm(source, target, out, back)
            for (i, j), cost in np.ndenumerate(harm):
                missing = self.missing(source, target, self.kinds[out[i]] - self.kinds[back[j]])
                if missing < best[0] or (best[3] and (missing, cost) < best[:2]):
                    best = (missing, int(cost), source, int(out[i]), target, int(back[j]))
        _, _, source, going, target, coming = best
        self.go(going, source, target)
        self.go(coming, target, source)
        return going > 0

    def sweep(self) -> bool:
        """Moves at most one group of each kind, large ones first; whether any moved."""
        return sum(self.move(kind) for kind in range(len(self.kinds) - 1, 0, -1)) > 0

    def move(self, kind: int) -> bool:
        """Moves one group of the kind, where that lowers the deviations most."""
        change = self.kinds[kind]
        size, slope = change @ change, (self.counts - self.targets) @ change
        gains = sorted((slope[t] - slope[s], s, t) for s, t in self.pairs() if self.stock[s, kind])
        for gain, source, target in gains:
            if size + gain >= 0:
                return False
            last = (self.counts[source] == change) & (change > 0) & (self.targets[source] > 0)
            if not last.any():
                self.go(kind, source, target)
                return True
        return False

    def exchange(self) -> bool:
        """The exchange that lowers the deviations most, if it takes no part's last of a stratum."""
        now = self.missing(0, 0, self.kinds[0])
        found = []
        for source, target in self.pairs():
            out, back = (np.flatnonzero(self.stock[p, :EXCHANGED]) for p in (source, target))
            harm = self.harm(source, target, out, back)
            for place in np.argsort(harm, axis=None, kind="stable")[:10].tolist():
                i, j = divmod(place, len(back))
                if harm[i, j] < 0:
                    found.append((int(harm[i, j]), source, int(out[i]), target, int(back[j])))
        for _, source, going, target, coming in sorted(found):
            if self.missing(source, target, self.kinds[going] - self.kinds[coming]) <= now:
                self.go(going, source, target)
                self.go(coming, target, source)
                return True
        return False

    def go(self, kind: int, source: int, target: int) -> None:
        if kind:
            self.members[target, kind].insert(0, self.members[source, kind].pop())
            self.stock[source, kind] -= 1
            self.stock[target, kind] += 1
            self.counts[source] -= self.kinds[kind]
            self.counts[target] += self.kinds[kind]
