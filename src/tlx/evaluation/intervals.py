"""95 % intervals of accuracy, recall and macro-F1; benchmarks/intervals.py measures their cover."""

import math
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Z95 = NormalDist().inv_cdf(0.975)
FEWEST = 5  # images of a class, on average, that macro-F1's interval takes to keep its promise
Array = NDArray[np.float64]


def wilson(successes: float, n: float) -> tuple[float, float]:
    """Wilson's 95 % score interval of a proportion (Wilson 1927)."""
    share, z2 = successes / n, Z95**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def macro_f1(confusion: NDArray[np.int64]) -> float:
    """The mean F1 of the classes that occur in the labels or the predictions."""
    sums = confusion.sum(0) + confusion.sum(1)
    return float(_f1(confusion.diagonal(), sums).sum() / np.count_nonzero(sums))


def macro_f1_interval(confusion: NDArray[np.int64]) -> tuple[float, float] | None:
    """Wilson's interval of a share that is as large and as uncertain as macro-F1 is.

    Both come of the jackknife (Tukey 1958), which leaves each image out in turn: on few images of
    many classes macro-F1 is mostly too low, and resampling lowers it once more. None where classes
    have fewer than FEWEST images on average. Where no image matters, as when all are right, it is
    accuracy's interval.
    """
    n = int(confusion.sum())
    if n < FEWEST * np.count_nonzero(confusion.sum(axis=1)):
        return None
    rows, columns = np.nonzero(confusion)
    counts, without = confusion[rows, columns], _without_one(confusion, rows, columns)
    mean = float(np.average(without, weights=counts))
    variance = (n - 1) / n * float(counts @ (without - mean) ** 2)
    if variance < 1e-20:
        return wilson(int(confusion.trace()), n)
    unbiased = n * macro_f1(confusion) - (n - 1) * mean
    share = min(max(unbiased, 0.5 / n), 1 - 0.5 / n)
    images = share * (1 - share) / variance  # a share of so many is as uncertain
    return wilson(share * images, images)


def _without_one(
    confusion: NDArray[np.int64], rows: NDArray[np.intp], columns: NDArray[np.intp]
) -> Array:
    """Macro-F1 without one image of each of the cells."""
    hits, sums = confusion.diagonal(), confusion.sum(0) + confusion.sum(1)
    scores, right = _f1(hits, sums), rows == columns
    hit, missed = _f1(hits - 1, sums - 2) - scores, _f1(hits, sums - 1) - scores
    change = np.where(right, hit[rows], missed[rows] + missed[columns])
    last = np.where(right, sums[rows] == 2, (sums[rows] == 1) + 1 * (sums[columns] == 1))
    return np.asarray((scores.sum() + change) / (np.count_nonzero(sums) - last))


def _f1(hits: NDArray[np.int64], sums: NDArray[np.int64]) -> Array:
    """By class, from hits, and images labelled plus images predicted so; 0 where there are none."""
    return np.divide(2 * hits, sums, out=np.zeros(hits.shape), where=sums > 0)


def t_interval(mean: float, sd: float, n: int) -> tuple[float, float]:
    """Student's 95 % interval of the mean of n values with the standard deviation `sd`."""
    half = t_quantile(n - 1) * sd / math.sqrt(n)
    return mean - half, mean + half


def t_quantile(freedom: int) -> float:
    """The 97.5 % point of Student's distribution, from its finite series."""
    low, high = 0.0, math.pi / 2
    while high - low > 1e-15:
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, freedom) < 0.95 else (low, middle)
    return math.sqrt(freedom) * math.tan(low)


def _within(angle: float, freedom: int) -> float:
    """P(|t| < √freedom · tan angle): Abramowitz and Stegun 26.7.3 and 26.7.4."""
    cosine, odd = math.cos(angle), freedom % 2
    term, total = (cosine, 0.0) if odd else (1.0, 0.0)
    for k in range(2 + odd, freedom + 1, 2):
        total += term
        term *= cosine**2 * (k - 1) / k
    series = math.sin(angle) * total
    return 2 / math.pi * (angle + series) if odd else series
