"""95 % intervals of accuracy, recall and macro-F1; benchmarks/intervals.py measures their cover."""

import math
from collections.abc import Iterator
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

NORMAL = NormalDist()
Z95 = NORMAL.inv_cdf(0.975)
Array = NDArray[np.float64]
CELLS_AT_ONCE = 4_000_000  # of all resamples together, for memory's sake


def wilson(successes: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % score interval of a proportion (Wilson 1927)."""
    share, z2 = successes / n, Z95**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def macro_f1(confusion: NDArray[np.int64]) -> float:
    """The mean F1 of the classes that occur in the labels or the predictions."""
    return float(_macro_f1(confusion.diagonal(), confusion.sum(0) + confusion.sum(1)))


def macro_f1_interval(
    confusion: NDArray[np.int64], *, resamples: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """The bias-corrected, accelerated (BCa) bootstrap interval (Efron 1987).

    Images are resampled without regard to their class: a new test set would not have the same
    number of each, and an interval stratified by class covers too little. Where all predictions
    are right (or wrong) resampling shows no spread, and accuracy's interval is given.
    """
    rows, columns = np.nonzero(confusion)
    counts = confusion[rows, columns]
    n = int(counts.sum())
    generator = np.random.default_rng(seed)
    scores = np.concatenate(
        [_scores(d, rows, columns) for d in _draws(generator, counts, resamples)]
    )
    if np.ptp(scores) < 1e-12:
        return wilson(int(confusion.trace()), n)
    estimate = macro_f1(confusion)
    below = np.mean(scores < estimate - 1e-12) + np.mean(abs(scores - estimate) <= 1e-12) / 2
    bias = NORMAL.inv_cdf(min(max(float(below), 1 / resamples), 1 - 1 / resamples))
    acceleration = _acceleration(confusion, rows, columns)
    levels = []
    for z in (bias - Z95, bias + Z95):
        levels.append(NORMAL.cdf(bias + z / (1 - acceleration * z)))
    low, high = np.quantile(scores, levels)
    return float(low), float(high)


def _draws(
    generator: np.random.Generator, counts: NDArray[np.int64], resamples: int
) -> Iterator[NDArray[np.int64]]:
    """New counts of the cells that are not empty, (some resamples, cells) at a time."""
    n = int(counts.sum())
    step = max(1, CELLS_AT_ONCE // len(counts))
    for start in range(0, resamples, step):
        yield generator.multinomial(n, counts / n, size=min(step, resamples - start))


def _scores(draws: NDArray[np.int64], rows: NDArray[np.intp], columns: NDArray[np.intp]) -> Array:
    """Macro-F1 of every resample; the cells are in the order of their rows."""
    classes = max(rows.max(), columns.max()) + 1
    hits, sums = np.zeros((2, len(draws), classes))
    diagonal = rows == columns
    hits[:, rows[diagonal]] = draws[:, diagonal]
    for index in (rows, columns):
        order = np.argsort(index, kind="stable")
        present, starts = np.unique(index[order], return_index=True)
        sums[:, present] += np.add.reduceat(draws[:, order], starts, axis=1)
    return _macro_f1(hits, sums)


def _macro_f1(hits: NDArray[Any], sums: NDArray[Any]) -> Array:
    """From (…, classes) hits, and images labelled plus images predicted so."""
    scores = np.divide(2 * hits, sums, out=np.zeros(hits.shape), where=sums > 0)
    return np.asarray(scores.sum(-1) / (sums > 0).sum(-1))


def _acceleration(
    confusion: NDArray[np.int64], rows: NDArray[np.intp], columns: NDArray[np.intp]
) -> float:
    """From macro-F1's derivative by the weight of one image of each cell."""
    hits, sums = confusion.diagonal(), confusion.sum(0) + confusion.sum(1)
    known = np.maximum(sums, 1)
    member = -2 * hits / known**2  # an image more that is labelled, or predicted, so
    influence = member[rows] + member[columns] + np.where(rows == columns, 2 / known[rows], 0)
    counts = confusion[rows, columns]
    influence = influence - np.average(influence, weights=counts)
    spread = np.sum(counts * influence**2)
    return float(np.sum(counts * influence**3) / (6 * spread**1.5)) if spread > 0 else 0.0


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
