"""Paired tests and groups of seeds."""

import numpy as np
import pytest
from scipy import stats

from tlx.evaluation.comparison import Run, compare_pair, groups, mcnemar


@pytest.mark.parametrize(
    ("first_only", "second_only"), [(0, 0), (1, 0), (0, 6), (5, 5), (3, 17), (40, 12), (900, 1000)]
)
def test_mcnemar_is_the_binomial_test(first_only, second_only):
    n = first_only + second_only
    expected = stats.binomtest(first_only, n).pvalue if n else 1.0
    assert mcnemar(first_only, second_only) == pytest.approx(expected, rel=1e-9)


def run(name, right, *, settings=None, accuracy=0.5, images=None):
    images = images or [(f"{i:064x}", "cat") for i in range(len(right))]
    rows = tuple(zip(images, right, strict=True))
    return Run(name, settings or {}, {"accuracy": accuracy, "roc_auc": None}, rows)


def test_a_pair_counts_what_only_one_has_right():
    pair = compare_pair(run("a", [True, True, True, False]), run("b", [True, False, False, True]))
    assert (pair.first_only, pair.second_only) == (2, 1)
    assert pair.p_value == 1.0


def test_other_images_are_refused():
    first, second = run("a", [True, False]), run("b", [True, False, True])
    pair = compare_pair(first, second)
    assert pair.p_value is None
    assert "0 only in the first, 1 only in the second" in pair.problem
    relabelled = run("c", [True, False], images=[(f"{0:064x}", "cat"), (f"{1:064x}", "dog")])
    assert "1 only in the first" in compare_pair(first, relabelled).problem


def test_runs_that_differ_in_chance_alone_are_taken_together():
    def settings(seed, fold, lr):
        return {"seed": seed, "data": {"fold": fold, "val": 0.2}, "optimizer": {"lr": lr}}

    accuracies = [0.8, 0.85, 0.83]
    runs = [
        run(f"run{i}", [True], settings=settings(i, i, 1e-3), accuracy=value)
        for i, value in enumerate(accuracies)
    ]
    (found,) = groups([*runs, run("other", [True], settings=settings(0, 0, 1e-4))])
    assert found.runs == ("run0", "run1", "run2")
    assert found.score == "accuracy"
    assert (found.low, found.high) == (0.8, 0.85)
    assert found.mean == pytest.approx(np.mean(accuracies))
    assert found.sd == pytest.approx(np.std(accuracies, ddof=1))
    expected = stats.t.interval(0.95, 2, loc=np.mean(accuracies), scale=stats.sem(accuracies))
    assert found.ci95 == pytest.approx(expected)
