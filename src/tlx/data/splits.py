"""Which split an image is in: a pure function of the seed and the image's path."""

import hashlib
import logging
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Literal

import numpy as np

from tlx.data.allocation import allocate, share
from tlx.data.grouping import Ints, Kind, deal
from tlx.data.manifest import SPLITS, natural_key
from tlx.errors import UserError
from tlx.specs import check_fractions

_Images = tuple[Sequence[str], Sequence[str], Sequence[str]]  # paths, strata, groups

log = logging.getLogger(__name__)


def draw_splits(  # noqa: PLR0913 — the settings of data=, by name
    paths: Sequence[str],
    strata: Sequence[str],
    groups: Sequence[str],
    *,
    val: float,
    test: float,
    seed: int,
    how: Literal["stratified", "sequential"] = "stratified",
    folds: int | None = None,
    fold: int = 0,
) -> list[str]:
    """The split of each path, in the order given. Images of one group, unless '', stay together.

    Without groups as `split_stratified`; with groups as near to it as `grouping.deal` says, and
    every stratum still in every split whose fraction is above 0 where a way is found, which the
    log says otherwise. With `folds`, test is drawn as
    without; what it leaves is cut into so many parts, which differ by one image in a stratum
    (without groups), and val is part number `fold`. `sequential` cuts the paths in the order
    given, whatever their groups and strata. Otherwise the order does not matter.
    """
    check_fractions(val, test)
    if folds is None and fold != 0:
        raise UserError(f"data.fold={fold} needs data.folds: how many folds there are.")
    if folds is not None and (folds < 2 or not 0 <= fold < folds):
        raise UserError(
            f"data.folds={folds} data.fold={fold}: give 2 folds or more, and a fold from 0 to "
            f"{max(folds, 2) - 1}."
        )
    if how == "sequential":
        if folds is not None:
            raise UserError("data.split=sequential has no folds: remove data.folds.")
        return _sequential(paths, strata, groups, val, test)
    drawn = split_stratified(paths, strata, val=val, test=test, seed=seed)
    images = (paths, strata, groups)
    parts = _unite(images, [SPLITS.index(split) for split in drawn], len(SPLITS), seed)
    splits = [SPLITS[part] for part in parts]
    if folds is None:
        return splits
    rest = [i for i, split in enumerate(splits) if split != "test"]
    left = ([paths[i] for i in rest], [strata[i] for i in rest], [groups[i] for i in rest])
    parts = _folds(left, folds, seed)
    for i, part in zip(rest, parts, strict=True):
        splits[i] = "val" if part == fold else "train"
    return splits


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
    members = _by_stratum(paths, strata, seed)
    counts = allocate({name: len(found) for name, found in members.items()}, val, test)
    split_of = {}
    for name, found in members.items():
        _, n_val, n_test = counts[name]
        for place, path in enumerate(found):
            split_of[path] = _split_at(place, n_val, n_test)
    return [split_of[path] for path in paths]


def few_shot(
    paths: Sequence[str], labels: Sequence[str], splits: Sequence[str], *, n: int, seed: int
) -> list[bool]:
    """Which images stay when train has `n` of each class: a larger n only adds. Val and test stay.

    Raises UserError when a class has fewer in train.
    """
    train = [i for i, split in enumerate(splits) if split == "train"]
    members = _by_stratum([paths[i] for i in train], [labels[i] for i in train], seed)
    for label, found in members.items():
        if len(found) < n:
            raise UserError(
                f"data.per_class={n}, but {label!r} has {len(found)} in train: give "
                f"{min(map(len, members.values()))} or less, or add images."
            )
    chosen = {path for found in members.values() for path in found[:n]}
    return [split != "train" or path in chosen for path, split in zip(paths, splits, strict=True)]


def _by_stratum(paths: Sequence[str], strata: Sequence[str], seed: int) -> dict[str, list[str]]:
    """Each stratum's paths in the order in which they are drawn."""
    members = defaultdict(list)
    for path, stratum in zip(paths, strata, strict=True):
        members[stratum].append(path)
    return {
        name: sorted(members[name], key=lambda path: _rank(seed, path))
        for name in sorted(members, key=natural_key)
    }


def _rank(seed: int, path: str) -> bytes:
    return hashlib.sha256(f"{seed}:{path}".encode(errors="surrogateescape")).digest()


def _split_at(place: int, n_val: int, n_test: int) -> str:
    if place < n_test:
        return "test"
    return "val" if place < n_test + n_val else "train"


def _sequential(
    paths: Sequence[str], strata: Sequence[str], groups: Sequence[str], val: float, test: float
) -> list[str]:
    n_train = int(len(paths) * (1 - share(val) - share(test)))
    n_val = int(len(paths) * (1 - share(test))) - n_train
    splits = ["train"] * n_train + ["val"] * n_val
    splits += ["test"] * (len(paths) - len(splits))
    log.warning("split in listing order, neither shuffled nor stratified: only to reproduce others")
    for split in dict.fromkeys(splits):
        present = {stratum for stratum, own in zip(strata, splits, strict=True) if own == split}
        if absent := sorted(set(strata) - present, key=natural_key):
            log.warning("%s has no image of %s", split, ", ".join(map(repr, absent)))
    places = defaultdict(set)
    for group, split in zip(groups, splits, strict=True):
        places[group].add(split)
    if divided := sum(len(found) > 1 for group, found in places.items() if group):
        log.warning("%d groups are divided between splits: the metrics will flatter", divided)
    return splits


def _folds(images: _Images, folds: int, seed: int) -> list[int]:
    """The part of each path, 0 to folds - 1: in turn, stratum after stratum, then groups united."""
    members = _by_stratum(images[0], images[1], seed)
    for name, found in members.items():
        if len(found) < folds:
            raise UserError(
                f"data.folds={folds}, but {name!r} has {len(found)} images beside test: "
                f"set data.folds to {len(found)} or less, or add images."
            )
    drawn = [path for found in members.values() for path in found]
    part_of = {path: place % folds for place, path in enumerate(drawn)}
    return _unite(images, [part_of[path] for path in images[0]], folds, seed)


def _unite(images: _Images, parts: Sequence[int], n_parts: int, seed: int) -> list[int]:
    """`parts` changed so that groups are whole and each part keeps, nearly, what it had of all."""
    paths, strata, groups = images
    members = defaultdict(list)
    for i in sorted(range(len(paths)), key=paths.__getitem__):
        members[(groups[i], "") if groups[i] else ("", paths[i])].append(i)
    if len(members) == len(paths):
        return list(parts)
    number = {name: i for i, name in enumerate(sorted(set(strata), key=natural_key))}
    targets = np.zeros((n_parts, len(number)), np.int64)
    np.add.at(targets, (list(parts), [number[stratum] for stratum in strata]), 1)
    # A group starts where its first path was drawn, so that one group more changes little.
    found = sorted(members.values(), key=lambda own: _rank(seed, paths[own[0]]))
    kinds = [tuple(sorted(Counter(number[strata[i]] for i in own).items())) for own in found]
    _check_groups(list(number), kinds, targets)
    dealt = deal(kinds, [parts[own[0]] for own in found], targets)
    _tell_absent(list(number), kinds, dealt, targets)
    part_of = {i: part for own, part in zip(found, dealt, strict=True) for i in own}
    return [part_of[i] for i in range(len(paths))]


def _check_groups(names: list[str], kinds: list[Kind], targets: Ints) -> None:
    n_groups = Counter(stratum for kind in kinds for stratum, _ in kind)
    for stratum, n_parts in enumerate((targets > 0).sum(axis=0).tolist()):
        if (n := n_groups[stratum]) < n_parts:
            raise UserError(
                f"{names[stratum]!r} is in {n} group{'s' * (n != 1)}, which stay whole, fewer "
                f"than the {n_parts} parts to fill: add images, remove it, group by something "
                "finer (data.group, data.keep_together), or set data.val, data.test or "
                "data.folds lower."
            )


def _tell_absent(names: list[str], kinds: list[Kind], dealt: list[int], targets: Ints) -> None:
    """Groups of several strata may leave no way, or none that is found."""
    present = {(part, s) for part, kind in zip(dealt, kinds, strict=True) for s, _ in kind}
    wanted = {(int(part), int(s)) for part, s in np.argwhere(targets > 0)}
    if absent := sorted({names[s] for _, s in wanted - present}, key=natural_key):
        log.warning(
            "with groups whole, not every split has an image of %s: try another seed",
            ", ".join(map(repr, absent)),
        )
