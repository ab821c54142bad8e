"""How often 95 % intervals cover the truth, in simulated test sets.

    python benchmarks/intervals.py [2000]

Each row: images a test set, classes, accuracy, how many times rarer the rarest class is than the
commonest; then the cover in per cent. Of macro-F1: the interval tlx gives (BCa bootstrap) beside
the percentile bootstrap and the percentile bootstrap stratified by class. Of the rarest class's
recall: Wilson's, which tlx gives, beside the percentile bootstrap.
"""

import sys

import numpy as np
from numpy.typing import NDArray

from tlx.evaluation.intervals import macro_f1_interval, wilson

Array = NDArray[np.float64]
LEVELS = [0.025, 0.975]


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


def macro_f1(matrices: Array) -> Array:
    hits = np.diagonal(matrices, axis1=-2, axis2=-1)
    sums = matrices.sum(-1) + matrices.sum(-2)
    scores = np.divide(2 * hits, sums, out=np.zeros(hits.shape), where=sums > 0)
    return scores.sum(-1) / (sums > 0).sum(-1)


def percentile(rng: np.random.Generator, matrix: NDArray[np.int64]) -> Array:
    n = matrix.sum()
    draws = rng.multinomial(n, matrix.ravel() / n, size=1000)
    return np.quantile(macro_f1(draws.reshape(-1, *matrix.shape)), LEVELS)


def stratified(rng: np.random.Generator, matrix: NDArray[np.int64]) -> Array:
    rows = [rng.multinomial(row.sum(), row / max(row.sum(), 1), size=1000) for row in matrix]
    return np.quantile(macro_f1(np.stack(rows, axis=1)), LEVELS)


def cover(n: int, population: Array, sets: int) -> list[float]:
    """Per cent of `sets` in which each interval holds the truth."""
    rng = np.random.default_rng(1)
    accuracy, score = population.trace(), float(macro_f1(population))
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
    heads = ("accuracy", "F1 BCa", "F1 perc.", "F1 strat.", "recall", "rec. perc.")
    print(" images classes accuracy rarer", *(f"{head:>10}" for head in heads))
    for n in (200, 1000):
        for classes in (2, 5, 10):
            for accuracy in (0.7, 0.85, 0.95):
                for ratio in (1, 5):
                    found = cover(n, shares(classes, accuracy, ratio), sets)
                    row = " ".join(f"{value:10.1f}" for value in found)
                    print(f"{n:7}{classes:8}{accuracy:9}{ratio:6} {row}", flush=True)


if __name__ == "__main__":
    main()
