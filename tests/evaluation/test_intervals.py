"""Intervals against scipy's, and their cover of a known truth in simulated test sets."""

import math

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import f1_score

from tlx.evaluation.intervals import (
    macro_f1,
    macro_f1_interval,
    t_interval,
    t_quantile,
    wilson,
)


@pytest.mark.parametrize(("successes", "n"), [(0, 1), (1, 1), (3, 7), (180, 200), (1000, 1000)])
def test_wilson_is_scipys(successes, n):
    expected = stats.binomtest(successes, n).proportion_ci(method="wilson")
    assert wilson(successes, n) == pytest.approx(tuple(expected), abs=1e-12)


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 9, 10, 99, 1000])
def test_t_quantile_is_scipys(freedom):
    assert t_quantile(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=1e-9)


def test_t_interval_is_scipys():
    values = np.array([0.81, 0.84, 0.79, 0.86])
    expected = stats.t.interval(0.95, 3, loc=values.mean(), scale=stats.sem(values))
    assert t_interval(values.mean(), values.std(ddof=1), 4) == pytest.approx(expected, rel=1e-9)


CONFUSION = np.array([[50, 6, 1], [4, 30, 3], [0, 5, 21]])


def scores_of(matrices):
    hits = np.diagonal(matrices, axis1=-2, axis2=-1)
    return np.mean(2 * hits / (matrices.sum(-1) + matrices.sum(-2)), axis=-1)


ONE_LEFT = np.array([[9, 0, 0, 1], [1, 8, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]])


@pytest.mark.parametrize("confusion", [CONFUSION, ONE_LEFT])
def test_macro_f1_interval_leaves_every_image_out_in_turn(confusion):
    truth, predicted = np.repeat(np.stack(np.nonzero(confusion)), confusion[confusion > 0], axis=1)
    n = len(truth)

    def score(kept):
        return f1_score(truth[kept], predicted[kept], average="macro")

    whole, without = score(np.arange(n)), np.array([score(np.arange(n) != i) for i in range(n)])
    share = n * whole - (n - 1) * without.mean()
    images = share * (1 - share) / ((n - 1) * without.var())
    assert macro_f1(confusion) == pytest.approx(whole)
    assert macro_f1_interval(confusion) == pytest.approx(wilson(share * images, images))


@pytest.mark.parametrize("n", [5, 100])
def test_without_a_mistake_the_interval_is_accuracys(n):
    assert macro_f1_interval(np.diag([n, n, 0])) == wilson(2 * n, 2 * n)
    assert macro_f1_interval(np.array([[0, n], [0, 0]])) == wilson(0, n)


def test_an_empty_class_leaves_the_interval_as_it_is():
    padded = np.pad(CONFUSION, (0, 2))
    assert macro_f1_interval(padded) == macro_f1_interval(CONFUSION)


def test_too_few_images_of_each_class_have_no_interval():
    assert macro_f1_interval(np.diag([4, 5])) is None
    assert macro_f1_interval(np.diag([4, 6])) == wilson(10, 10)


def test_macro_f1_interval_keeps_its_promise_with_many_classes_of_few_images():
    """5 images each of 60 classes, of which resampling loses a third, and with them F1."""
    rng, accuracy, classes, sets = np.random.default_rng(3), 0.7, 60, 400
    shares = np.full((classes, classes), (1 - accuracy) / (classes - 1) / classes)
    np.fill_diagonal(shares, accuracy / classes)
    drawn = rng.multinomial(5 * classes, shares.ravel(), size=sets)
    found = [macro_f1_interval(matrix.reshape(shares.shape)) for matrix in drawn]
    assert 0.93 <= np.mean([low <= accuracy <= high for low, high in found]) <= 0.985


SCENARIOS = {  # shares of all images: rows are the truth, columns the prediction
    "two classes": [[0.62, 0.06], [0.09, 0.23]],
    "four classes, one rare": [
        [0.38, 0.01, 0.01, 0.00], [0.02, 0.25, 0.02, 0.01],
        [0.01, 0.03, 0.18, 0.01], [0.01, 0.01, 0.01, 0.04],
    ],
    "ten classes": (0.082 * np.eye(10) + 0.002 * (1 - np.eye(10))).tolist(),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("n", [200, 1000])
@pytest.mark.parametrize("name", SCENARIOS)
def test_intervals_keep_their_promise(name, n):
    shares = np.array(SCENARIOS[name])
    assert math.isclose(shares.sum(), 1)
    accuracy, score = shares.trace(), scores_of(shares)
    rng = np.random.default_rng(7)
    covered = np.zeros(2)
    for drawn in rng.multinomial(n, shares.ravel(), size=2000).reshape(2000, *shares.shape):
        for i, (truth, (low, high)) in enumerate(
            [(accuracy, wilson(int(drawn.trace()), n)), (score, macro_f1_interval(drawn))]
        ):
            covered[i] += low <= truth <= high
    assert 0.93 <= covered[0] / 2000 <= 0.97
    assert 0.93 <= covered[1] / 2000 <= 0.97
