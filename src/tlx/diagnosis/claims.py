"""How much a measured accuracy can say, and how many images it would take to say more."""

import math
from collections import Counter
from collections.abc import Iterator

from tlx.diagnosis.case import Case
from tlx.diagnosis.findings import Finding
from tlx.evaluation.intervals import Z95
from tlx.specs import DataSpec

PLAUSIBLE = 0.9  # an accuracy to reckon with before there is one
FEW = 50  # images, with which ±8 points are not known at an accuracy of 0.9
FEW_OF_CLASS = 10
SHARE = 0.3  # of all images, the most that is advised for a split
GOOD = 0.05  # half of the interval's width, below which there is nothing to say


def half_width(accuracy: float, n: int) -> float:
    """Of Wilson's 95 % interval of an accuracy measured on n images."""
    z2 = Z95**2
    spread = accuracy * (1 - accuracy) / n + z2 / (4 * n**2)
    return Z95 / (1 + z2 / n) * math.sqrt(spread)


def needed_images(accuracy: float, half: float) -> int:
    """The fewest images with which Wilson's interval is no wider than ± `half`.

    From half²·(n + z²)² = z²·(p(1−p)·n + z²/4), whose larger root is n.
    """
    z2, variance = Z95**2, accuracy * (1 - accuracy)
    b, c = 2 * z2 - z2 * variance / half**2, z2**2 * (1 - 1 / (4 * half**2))
    n = max(1, round((-b + math.sqrt(max(b * b - 4 * c, 0.0))) / 2) - 1)
    while half_width(accuracy, n) > half:
        n += 1
    return n


def few_images(case: Case) -> Iterator[Finding]:
    """What test could say; without test images, val."""
    split = "test" if case.job.manifest.split("test") else "val"
    counts = Counter(s.label for s in case.job.manifest.split(split) if s.label)
    smallest = min((counts[name] for name in case.job.manifest.classes), default=0)
    yield from claim(split, counts.total(), PLAUSIBLE, smallest, case.job.config.data)


def claim(split: str, n: int, accuracy: float, smallest: int, data: DataSpec) -> Iterator[Finding]:
    """Whether n images of the split support an accuracy; `smallest` is the rarest class's n."""
    if n == 0:
        return
    half = half_width(accuracy, n)
    few = n < FEW or smallest < FEW_OF_CLASS
    if half <= GOOD and not few:
        return
    centre = (accuracy + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
    needed = {points: needed_images(accuracy, points / 100) for points in (5, 2)}
    yield Finding(
        "few_images",
        "warning" if few else "note",
        f"{n} {split} images, {smallest} of the rarest class: an accuracy of {accuracy:.2f} could "
        f"be anything from {centre - half:.2f} to {centre + half:.2f} (95 %); "
        f"±5 points take {needed[5]} images, ±2 take {needed[2]}",
        _more(split, data),
        {
            "n": n, "smallest_class": smallest, "accuracy": accuracy,
            "low": centre - half, "high": centre + half,
            "needed_5_points": needed[5], "needed_2_points": needed[2],
        },
    )  # fmt: skip


def _more(split: str, data: DataSpec) -> str:
    """The ways to more images that are still open."""
    ways = [f"collect more {split} images"]
    if (data.test if split == "test" else data.val) < SHARE and data.folds is None:
        ways.append(f"data.{split}={SHARE} where tlx draws the split")
    if split == "val" and data.folds is None:
        ways.append("-m data.folds=5 data.fold=0,1,2,3,4, with which val has every image once")
    return ", or ".join(ways)
