"""Curves against scikit-learn's."""

import numpy as np
import pytest
from sklearn import metrics as sk

from tlx.evaluation.curves import precision_recall_curve, roc_curve


@pytest.fixture(params=[0, 1, 2])
def case(request):
    rng = np.random.default_rng(request.param)
    positive = rng.random(50) < 0.3
    scores = rng.random(50) + 0.3 * positive
    return np.round(scores, 1 if request.param else 9), positive  # with and without equals


def test_roc_points(case):
    scores, positive = case
    false_rate, true_rate, _ = sk.roc_curve(positive, scores, drop_intermediate=False)
    ours = roc_curve(scores, positive)
    np.testing.assert_allclose(ours, [false_rate, true_rate], atol=1e-12)


def test_precision_recall_points(case):
    scores, positive = case
    precision, recall, _ = sk.precision_recall_curve(positive, scores)
    ours = precision_recall_curve(scores, positive)
    np.testing.assert_allclose(ours, [precision[::-1], recall[::-1]], atol=1e-12)


def test_constant_scores_are_one_threshold():
    false_rate, true_rate = roc_curve(np.full(4, 0.5), np.array([True, False, False, True]))
    assert false_rate.tolist() == true_rate.tolist() == [0, 1]
