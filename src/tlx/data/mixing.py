"""MixUp (Zhang et al. 2018, arXiv:1710.09412) and CutMix (Yun et al. 2019, arXiv:1905.04899)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

NUMBERS = 5  # that `draw_mix` takes
MAX_ALPHA = 32.0


@dataclass(frozen=True)
class Mix:
    """`lam` of the target is the image's own label, the rest its partner's."""

    partner: float  # uniform in [0, 1): which of the training images
    lam: float
    box: tuple[float, ...] | None = None  # CutMix: left, top, right, bottom in fractions


def draw_mix(uniform: Sequence[float], mixup: float, cutmix: float) -> Mix | None:
    """Of NUMBERS numbers from 0 to 1. With both alphas above 0, each is chosen half the time."""
    if mixup == cutmix == 0:
        return None
    which, partner, share, x, y = uniform
    if mixup > 0 and (cutmix == 0 or which < 0.5):
        return Mix(partner, beta_quantile(share, mixup))
    half = math.sqrt(1 - beta_quantile(share, cutmix)) / 2
    left, right = max(x - half, 0.0), min(x + half, 1.0)
    top, bottom = max(y - half, 0.0), min(y + half, 1.0)
    return Mix(partner, 1 - (right - left) * (bottom - top), (left, top, right, bottom))


def mix_images(image: Tensor, partner: Tensor, params: Mix) -> Tensor:
    """Two (3, H, W) uint8 of one size → one. CutMix rounds the box's edges to whole pixels."""
    if params.box is None:
        mixed = partner.float().lerp_(image.float(), params.lam)
        return mixed.add_(0.5).to(torch.uint8)
    height, width = image.shape[1:]
    left, right = (round(edge * width) for edge in params.box[::2])
    top, bottom = (round(edge * height) for edge in params.box[1::2])
    image = image.clone()
    image[:, top:bottom, left:right] = partner[:, top:bottom, left:right]
    return image


def beta_quantile(share: float, alpha: float) -> float:
    """Where Beta(alpha, alpha)'s distribution reaches `share`: one uniform number, one draw.

    NumPy may change how its own `beta` draws from one release to the next.
    """
    knots, reached = _half_beta(alpha)
    low = min(share, 1 - share)
    quantile: float = float(np.interp(low, reached, knots)) ** (1 / alpha)
    return quantile if share <= 0.5 else 1 - quantile


@lru_cache(maxsize=8)
def _half_beta(alpha: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The distribution from 0 to 1/2 over w = x^alpha, in which its density is finite."""
    # denser at 0, where a large alpha's density falls steeply
    knots = 0.5**alpha * np.linspace(0, 1, 4096) ** max(1.0, alpha)
    density = (1 - knots ** (1 / alpha)) ** (alpha - 1)
    steps = np.diff(knots) * (density[1:] + density[:-1]) / 2
    reached = np.concatenate([[0.0], np.cumsum(steps)])
    return knots, reached / (2 * reached[-1])
