"""Paired tests and groups of seeds."""

import numpy as np
import pytest
from scipy import stats

from tlx.evaluation.comparison import Run, compare_pair, compare_pairs, groups, mcnemar
from tlx.evaluation.intervals import wilson


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


def test_of_many_pairs_each_p_is_held_to_all():
    """By Holm's definition, worked out by hand."""
    right = [True] * 20
    runs = [
        run("a", right),
        run("b", [False] * 8 + [True] * 12),  # against a: 8 of 8, p = 2 / 2⁸
        run("c", [True] * 15 + [False] * 5),  # against a: 5 of 5, p = 2 / 2⁵; b: 8 of 13
        run("d", right, images=[(f"{i:064x}", "dog") for i in range(20)]),  # no test, so no pair
    ]
    found = {(p.first, p.second): p.p_holm for p in compare_pairs(runs)}
    assert found["a", "b"] == pytest.approx(3 * 2 / 2**8)
    assert found["a", "c"] == pytest.approx(2 * 2 / 2**5)
    assert found["b", "c"] == pytest.approx(stats.binomtest(5, 13).pvalue)
    assert found["a", "d"] is None


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
        run(f"run{i}", [True], images=[(f"{i:064x}", "cat")], settings=settings(i, i, 1e-3),
            accuracy=value)
        for i, value in enumerate(accuracies)
    ]  # fmt: skip
    (found,) = groups([*runs, run("other", [True], settings=settings(0, 0, 1e-4))])
    assert found.runs == ("run0", "run1", "run2")
    assert found.score == "accuracy"
    assert (found.low, found.high) == (0.8, 0.85)
    assert found.mean == pytest.approx(np.mean(accuracies))
    assert found.sd == pytest.approx(np.std(accuracies, ddof=1))
    expected = stats.t.interval(0.95, 2, loc=np.mean(accuracies), scale=stats.sem(accuracies))
    assert found.ci95 == pytest.approx(expected)


def test_seeds_of_one_fold_count_once():
    runs = [
        run(f"{fold}{seed}", [True], images=[(f"{fold:064x}", "cat")], accuracy=0.7 + value,
            settings={"seed": seed, "data": {"fold": fold}})
        for fold, values in enumerate([(0.1, 0.12), (0.2, 0.22), (0.05, 0.01)])
        for seed, value in enumerate(values)
    ]  # fmt: skip
    (found,) = groups(runs)
    means = [0.81, 0.91, 0.73]
    expected = stats.t.interval(0.95, 2, loc=np.mean(means), scale=stats.sem(means))
    assert found.ci95 == pytest.approx((expected[0], min(expected[1], 1.0)))


def test_the_interval_over_seeds_reckons_with_other_images():
    """Each seed adds its own mistakes to those that all make; 200 images are few for either."""
    rng, covered, repeats, truth = np.random.default_rng(0), 0, 200, 0.85
    for _ in range(repeats):
        hard = rng.random(200) < 0.1
        runs = []
        for seed in range(5):
            right = ~hard & (rng.random(200) >= 1 - truth / 0.9)
            found = run(str(seed), right.tolist(), settings={"seed": seed}, accuracy=right.mean())
            found.metrics["accuracy_ci95"] = wilson(int(right.sum()), 200)
            runs.append(found)
        (group,) = groups(runs)
        covered += group.ci95[0] <= truth <= group.ci95[1]
    assert covered / repeats > 0.93
    for found in runs:
        del found.metrics["accuracy_ci95"]
    assert groups(runs)[0].ci95 is None
