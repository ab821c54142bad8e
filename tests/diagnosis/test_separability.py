"""The ridge that leaves out, against scikit-learn's fitted again and again."""

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from sklearn.linear_model import Ridge

from tlx.diagnosis.separability import (
    centred_targets,
    is_constant,
    left_out_scores,
    permutation_test,
    scores,
    sign_test,
)


@pytest.fixture
def features():
    return torch.randn(20, 30, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 31)


LABELS = torch.arange(20) % 3


def reference(fitted, asked, targets, kept):
    mean, std = fitted.mean(0), fitted.std(0, ddof=1)
    a, b = (fitted - mean) / std, (asked - mean) / std
    alpha = (a**2).sum() / len(a)
    return Ridge(alpha=alpha, fit_intercept=False).fit(a[kept], targets[kept]).predict(b)


def test_left_out_scores_are_those_of_a_ridge_without_the_image(features):
    targets = centred_targets(LABELS)
    changed = features + torch.randn(features.shape, generator=torch.Generator().manual_seed(1))
    a, b, t = features.double().numpy(), changed.double().numpy(), targets.numpy()
    expected = [reference(a, b, t, np.arange(20) != i)[i] for i in range(20)]
    np.testing.assert_allclose(left_out_scores(features, changed, targets), expected, atol=1e-6)
    np.testing.assert_allclose(
        scores(features, changed[:7], targets), reference(a, b[:7], t, slice(None)), atol=1e-6
    )


def test_what_is_constant_counts_for_nothing(features):
    targets = centred_targets(LABELS)
    more = torch.cat([features, torch.full((20, 5), 3.0)], 1)
    torch.testing.assert_close(
        left_out_scores(more, more, targets), left_out_scores(features, features, targets)
    )
    assert is_constant(more[:, 30:])
    assert not is_constant(more)


def test_p_is_small_for_true_labels_and_evenly_spread_for_shuffled_ones():
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(60, 40, generator=generator)
    labels = torch.arange(60) % 2
    accuracy, p = permutation_test(noise + labels[:, None], labels, seed=0)
    assert accuracy > 0.9
    assert p == 1 / 1000
    shuffled = [
        permutation_test(noise, labels[torch.randperm(60, generator=generator)], seed=0)[1]
        for _ in range(40)
    ]
    assert 0.35 < np.mean(shuffled) < 0.65
    assert np.mean(np.array(shuffled) < 0.05) <= 0.15


@pytest.mark.parametrize(("lost", "gained"), [(0, 0), (3, 1), (20, 5), (1, 9)])
def test_sign_test_is_the_binomial_one(lost, gained):
    expected = (
        binomtest(lost, lost + gained, alternative="greater").pvalue if lost + gained else 1.0
    )
    assert sign_test(lost, gained) == pytest.approx(expected)
