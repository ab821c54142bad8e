"""How well features tell classes apart, by a ridge classifier that leaves out what it is asked."""

from math import comb

import torch
from torch import Tensor
from torch.nn.functional import one_hot

STRENGTH = 1.0  # of the ridge, times the images' mean square: chosen on solar cells, flat around it
PERMUTATIONS = 999
CONSTANT = 1e-6  # a feature's deviation below which it says nothing


def centred_targets(labels: Tensor) -> Tensor:
    """(n,) int64 → (n, classes) float64 whose columns have the mean 0."""
    targets: Tensor = one_hot(labels).double()
    return targets - targets.mean(0)


def left_out_scores(fitted: Tensor, asked: Tensor, targets: Tensor) -> Tensor:
    """(n, outputs): row i of `asked` by a ridge regression on all rows of `fitted` but the i-th.

    Both are (n, d), row i the same image, maybe changed. Scaling is by all rows of `fitted`.
    """
    kernel, cross = _kernels(fitted, asked)
    inverse = torch.linalg.inv(kernel)
    dual = inverse @ targets
    own = (cross * inverse).sum(1) / inverse.diagonal()
    left_out: Tensor = cross @ dual - own[:, None] * dual
    return left_out


def scores(fitted: Tensor, asked: Tensor, targets: Tensor) -> Tensor:
    """(m, outputs) of other images (m, d), by all rows of `fitted` (n, d)."""
    kernel, cross = _kernels(fitted, asked)
    found: Tensor = cross @ torch.linalg.solve(kernel, targets)
    return found


def _kernels(fitted: Tensor, asked: Tensor) -> tuple[Tensor, Tensor]:
    """Of the ridge, (n, n), and between what is asked and what is fitted, (m, n)."""
    deviation, mean = torch.std_mean(fitted.double(), 0)
    varies = deviation > CONSTANT
    a, b = ((x.double() - mean)[:, varies] / deviation[varies] for x in (fitted, asked))
    scale = a.square().sum() / len(a)
    return a @ a.T / scale + STRENGTH * torch.eye(len(a), dtype=torch.float64), b @ a.T / scale


def is_constant(features: Tensor) -> bool:
    return not bool((features.std(0) > CONSTANT).any())


def permutation_test(features: Tensor, labels: Tensor, *, seed: int) -> tuple[float, float]:
    """Accuracy on images left out, and how often shuffled labels fit the features as well (p).

    Compared is the correlation of scores and labels, which sees more than the accuracy does.
    """
    targets = centred_targets(labels)
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(len(labels), generator=generator) for _ in range(PERMUTATIONS)]
    all_targets = torch.stack([targets, *(targets[order] for order in orders)], 1)
    flat = all_targets.flatten(1)  # (n, permutations × classes): the scores are linear in it
    found = left_out_scores(features, features, flat).view_as(all_targets)
    fits = (found * all_targets).sum((0, 2)) / found.square().sum((0, 2)).sqrt()
    accuracy = (found[:, 0].argmax(1) == labels).double().mean().item()
    return accuracy, (fits >= fits[0]).double().mean().item()


def sign_test(lost: int, gained: int) -> float:
    """The chance of `lost` or more of lost + gained, were both equally likely (McNemar, exact)."""
    n = lost + gained
    return float(sum(comb(n, k) for k in range(lost, n + 1)) / 2**n)
