"""Calibration against plain loops and scipy."""

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

from tlx.evaluation.calibration import calibrated, fit_temperature, reliability


def overconfident(n=400, classes=4, factor=2.5, seed=0):
    """Logits that are `factor` times what the labels were drawn from."""
    rng = np.random.default_rng(seed)
    honest = rng.normal(size=(n, classes)) * 1.5
    labels = np.array([rng.choice(classes, p=p) for p in softmax(honest, axis=1)])
    return honest * factor, labels


def looped_ece(probabilities, labels, bins):
    """As Guo et al. (2017) write it, an image at a time."""
    members = [[] for _ in range(bins)]
    for row, label in zip(probabilities, labels, strict=True):
        best = max(range(len(row)), key=lambda i: row[i])
        place = next((b for b in range(bins) if row[best] < (b + 1) / bins), bins - 1)
        members[place].append((row[best], best == label))
    return sum(
        abs(sum(c for c, _ in bin_) - sum(r for _, r in bin_)) / len(labels) for bin_ in members
    )


@pytest.mark.parametrize("bins", [1, 10, 15])
@pytest.mark.parametrize("seed", range(3))
def test_ece_is_that_of_a_plain_loop(bins, seed):
    logits, labels = overconfident(seed=seed)
    probabilities = softmax(logits, axis=1)
    found = reliability(probabilities, labels, bins)
    assert found.ece == pytest.approx(looped_ece(probabilities, labels, bins), abs=1e-12)
    assert found.counts.sum() == len(labels)


def test_ece_of_certain_and_of_equal_predictions():
    assert reliability(np.eye(3), np.array([0, 1, 2])).ece == 0
    assert reliability(np.eye(3), np.array([1, 2, 0])).ece == 1
    quarter = np.full((8, 4), 0.25)
    assert reliability(quarter, np.array([0, 0, 1, 1, 2, 2, 3, 3])).ece == 0
    assert reliability(quarter, np.zeros(8, dtype=int)).ece == 0.75


def test_calibrated_is_a_softmax_of_divided_logits():
    logits, _ = overconfident()
    probabilities = softmax(logits, axis=1)
    ours = calibrated(probabilities, 2.5)
    np.testing.assert_allclose(ours, softmax(logits / 2.5, axis=1), atol=1e-12)
    assert calibrated(probabilities, 1.0) is probabilities
    zero = calibrated(np.array([[0.0, 1.0]]), 2.0)
    assert zero.sum() == 1
    assert zero[0, 0] < 1e-100


@pytest.mark.parametrize("factor", [0.5, 1.0, 2.5])
def test_temperature_is_the_one_that_scipy_finds(factor):
    logits, labels = overconfident(factor=factor)
    found = fit_temperature(softmax(logits, axis=1), labels)

    def loss(log_temperature):
        scores = log_softmax(logits / np.exp(log_temperature), axis=1)
        return -scores[np.arange(len(labels)), labels].mean()

    expected = np.exp(minimize_scalar(loss, bounds=(-3, 3), options={"xatol": 1e-10}).x)
    assert found == pytest.approx(expected, rel=1e-5)
    assert found == pytest.approx(factor, rel=0.2)


@pytest.mark.parametrize("labels", [[0, 1], [1, 0], []], ids=["all right", "all wrong", "empty"])
def test_no_temperature_where_none_is_the_best(labels):
    probabilities = np.array([[0.8, 0.2], [0.3, 0.7]])[: len(labels)]
    assert fit_temperature(probabilities, np.array(labels, dtype=np.int64)) is None
