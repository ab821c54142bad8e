"""How often 95 % intervals cover the truth, in simulated test sets.

    python benchmarks/intervals.py [2000]

Each row: images a test set, classes, accuracy, how many times rarer the rarest class is than the
commonest; then the cover in per cent. Of macro-F1: the interval tlx gives (jackknife) beside the
percentile bootstrap and the percentile bootstrap stratified by class. Of the rarest class's
recall: Wilson's, which tlx gives, beside the percentile bootstrap. Of many classes a quarter of
the sets are drawn, for the time it takes.
"""

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tlx.evaluation.intervals import macro_f1, macro_f1_interval, wilson

Array = NDArray[np.float64]
LEVELS = [0.025, 0.975]
RESAMPLES = 1000
FEW, MANY = (2, 5, 10), (30, 100)  # classes: of 200 and 1,000 images, and of 5 and 10 a class
SIZES = [(n, classes) for n in (200, 1000) for classes in FEW]
SIZES += [(each * classes, classes) for each in (5, 10) for classes in MANY]


def shares(classes: int, accuracy: float, ratio: float) -> Array:
    """A population's confusion matrix, its errors spread unevenly."""
    rng = np.random.default_rng(0)
    prior = ratio ** (-np.arange(classes) / (classes - 1))
    prior /= prior.sum()
    misses = rng.uniform(0.5, 1.5, classes)
    misses *= (1 - accuracy) / (prior @ misses)
    misses = np.minimum(misses, 0.95)
    to = rng.gamma(1.0, size=(classes, classes)) * np.sqrt(prior)
    np.fill_diagonal(to, 0)
    to *= misses[:, None] / to.sum(axis=1, keepdims=True)
    return (to + np.diag(1 - misses)) * prior[:, None]


def percentile(rng: np.random.Generator, matrix: NDArray[np.int64]) -> Array:
    n, cells = matrix.sum(), np.nonzero(matrix)
    return interval(rng.multinomial(n, matrix[cells] / n, size=RESAMPLES), cells, len(matrix))


def stratified(rng: np.random.Generator, matrix: NDArray[np.int64]) -> Array:
    rows = [row[row > 0] for row in matrix]
    draws = [
        rng.multinomial(row.sum(), row / row.sum(), size=RESAMPLES) for row in rows if len(row)
    ]
    return interval(np.concatenate(draws, axis=1), np.nonzero(matrix), len(matrix))


def interval(draws: NDArray[np.int64], cells: tuple[Any, ...], classes: int) -> Array:
    """Of the macro-F1s of `draws` (resamples, cells that are not empty)."""
    truth, predicted = (np.eye(classes)[index] for index in cells)
    hits, sums = draws @ (truth * predicted), draws @ (truth + predicted)
    scores = np.divide(2 * hits, sums, out=np.zeros(hits.shape), where=sums > 0)
    return np.quantile(scores.sum(-1) / (sums > 0).sum(-1), LEVELS)


def cover(n: int, population: Array, sets: int) -> list[float]:
    """Per cent of `sets` in which each interval holds the truth."""
    rng = np.random.default_rng(1)
    accuracy, score = population.trace(), macro_f1(population)
    recall = population[-1, -1] / population[-1].sum()
    hits = []
    for cells in rng.multinomial(n, population.ravel(), size=sets):
        matrix = cells.reshape(population.shape)
        right, images = int(matrix[-1, -1]), int(matrix[-1].sum())
        recalls = rng.binomial(images, right / max(images, 1), size=1000) / max(images, 1)
        bounds = [
            (accuracy, wilson(int(matrix.trace()), n)),
            (score, macro_f1_interval(matrix)),
            (score, percentile(rng, matrix)),
            (score, stratified(rng, matrix)),
            (recall, wilson(right, images) if images else (0.0, 1.0)),
            (recall, np.quantile(recalls, LEVELS)),
        ]
        hits.append([low <= truth <= high for truth, (low, high) in bounds])
    return [float(share) for share in 100 * np.mean(hits, axis=0)]


def main() -> None:
    sets = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    heads = ("accuracy", "F1 jackkn.", "F1 perc.", "F1 strat.", "recall", "rec. perc.")
    print(" images classes accuracy rarer", *(f"{head:>10}" for head in heads))
    for n, classes in SIZES:
        for accuracy in (0.7, 0.85, 0.95):
            for ratio in (1, 5):
                some = sets // 4 if classes in MANY else sets
                found = cover(n, shares(classes, accuracy, ratio), some)
                row = " ".join(f"{value:10.1f}" for value in found)
                print(f"{n:7}{classes:8}{accuracy:9}{ratio:6} {row}", flush=True)


if __name__ == "__main__":
    main()
