"""Runs side by side: paired tests on shared images, and seeds taken together."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from tlx.data.manifest import Manifest
from tlx.errors import UserError
from tlx.evaluation.intervals import t_interval
from tlx.evaluation.prediction_file import read_predictions

SCORES = ("accuracy", "balanced_accuracy", "macro_f1", "roc_auc", "loss", "ece")
# Settings in which runs of one group may differ: chance, and what no result depends on.
FREE = (("seed",), ("data", "fold"), ("data", "num_workers"), ("report",), ("verbosity",),
        ("resume",))  # fmt: skip


@dataclass(frozen=True)
class Run:
    """`right` says of every image of the split, (sha256, label), whether it was predicted so."""

    name: str
    settings: Mapping[str, Any]  # the composed configuration
    metrics: Mapping[str, Any]  # of the split
    right: tuple[tuple[tuple[str, str], bool], ...]  # in the order of the images' hashes


@dataclass(frozen=True)
class Pair:
    """McNemar's exact test of two runs; `problem` says why there is none.

    `p_holm` is for all pairs at once (Holm 1979): below 0.05 for any of equally good ones in less
    than one comparison of twenty, however many there are.
    """

    first: str
    second: str
    first_only: int = 0  # images that only the first run has right
    second_only: int = 0
    p_value: float | None = None
    problem: str = ""
    p_holm: float | None = None


@dataclass(frozen=True)
class Group:
    """Runs that differ in seed or fold alone, and one score of theirs."""

    runs: tuple[str, ...]
    score: str
    mean: float
    sd: float
    low: float
    high: float
    ci95: tuple[float, float] | None


def read_run(
    folder: Path, name: str, split: str, settings: Mapping[str, Any], metrics: Mapping[str, Any]
) -> Run:
    """Joins predictions and manifest; raises when they are not of the same images and classes."""
    manifest = Manifest.read(folder / "manifest.csv", folder)
    found = read_predictions(folder / "predictions" / f"{split}.csv", manifest.classes)
    known = {sample.path: sample for sample in manifest.samples}
    rows = []
    for path, label, predicted in zip(found.paths, found.labels, found.predicted, strict=True):
        if path not in known or known[path].label != label:
            raise UserError(f"{folder}: the predictions for {path} are not those of its manifest.")
        rows.append(((known[path].sha256, label), label == predicted))
    return Run(name, settings, metrics, tuple(sorted(rows)))


def compare_pair(first: Run, second: Run) -> Pair:
    ours, theirs = ([image for image, _ in run.right] for run in (first, second))
    if ours != theirs:
        only = len(set(ours) - set(theirs)), len(set(theirs) - set(ours))
        problem = f"their images differ: {only[0]} only in the first, {only[1]} only in the second"
        if any(run.settings.get("data", {}).get("split_seed") is None for run in (first, second)):
            problem += " (runs of several seeds have the same with data.split_seed=0)"
        return Pair(first.name, second.name, problem=problem)
    outcomes = list(zip(first.right, second.right, strict=True))
    first_only = sum(a and not b for (_, a), (_, b) in outcomes)
    second_only = sum(b and not a for (_, a), (_, b) in outcomes)
    p_value = mcnemar(first_only, second_only)
    return Pair(first.name, second.name, first_only, second_only, p_value)


def compare_pairs(runs: Sequence[Run]) -> list[Pair]:
    pairs = [compare_pair(first, second) for first, second in combinations(runs, 2)]
    found = [(pair.p_value, i) for i, pair in enumerate(pairs) if pair.p_value is not None]
    least = 0.0
    for before, (p_value, i) in enumerate(sorted(found)):
        least = max(least, min(1.0, p_value * (len(found) - before)))
        pairs[i] = replace(pairs[i], p_holm=least)
    return pairs


def mcnemar(first_only: int, second_only: int) -> float:
    """The two-sided exact p-value: the chance of a split as uneven, if both were as good."""
    n, fewer = first_only + second_only, min(first_only, second_only)
    ways = term = 1
    for k in range(fewer):
        term = term * (n - k) // (k + 1)
        ways += term
    return float(min(1, 2 * ways / 2**n))


def groups(runs: Sequence[Run]) -> list[Group]:
    """Of runs that differ in chance alone, two or more: each score's mean and spread."""
    alike: dict[str, list[Run]] = {}
    for run in runs:
        alike.setdefault(repr(_without_chance(run.settings)), []).append(run)
    return [
        _group(members, score)
        for members in alike.values()
        if len(members) > 1
        for score in SCORES
        if all(member.metrics.get(score) is not None for member in members)
    ]


def _group(members: Sequence[Run], score: str) -> Group:
    values = np.array([member.metrics[score] for member in members])
    names = tuple(member.name for member in members)
    mean, sd = float(values.mean()), float(values.std(ddof=1))
    ci95 = _interval(members, score)
    return Group(names, score, mean, sd, float(values.min()), float(values.max()), ci95)


def _interval(members: Sequence[Run], score: str) -> tuple[float, float] | None:
    """For other seeds and other images: a t-interval of the folds' (or other splits') means.

    Where all have the same images their spread says nothing of these: half the widths of the
    seeds' t-interval and of the images' own are then added as independent errors are, in squares.
    None for a score without such an interval.
    """
    by_images: dict[tuple[tuple[str, str], ...], list[Run]] = {}
    for member in members:
        by_images.setdefault(tuple(image for image, _ in member.right), []).append(member)
    means = np.array([np.mean([m.metrics[score] for m in same]) for same in by_images.values()])
    values = means if len(means) > 1 else np.array([m.metrics[score] for m in members])
    mean = float(values.mean())
    low, high = t_interval(mean, float(values.std(ddof=1)), len(values))
    if len(means) == 1:
        own = [member.metrics.get(f"{score}_ci95") for member in members]
        if None in own:
            return None
        below, above = np.abs(np.array(own) - values[:, None]).mean(axis=0)
        low, high = mean - math.hypot(mean - low, below), mean + math.hypot(high - mean, above)
    most = math.inf if score == "loss" else 1.0  # the others are fractions
    return max(0.0, low), min(most, high)


def _without_chance(settings: Mapping[str, Any], prefix: tuple[str, ...] = ()) -> list[Any]:
    """Keys and values in a fixed order, without those in `FREE`."""
    kept: list[Any] = []
    for key, value in sorted(settings.items(), key=lambda item: str(item[0])):
        if (*prefix, key) not in FREE:
            inner = isinstance(value, Mapping)
            kept.append((key, _without_chance(value, (*prefix, key)) if inner else value))
    return kept
