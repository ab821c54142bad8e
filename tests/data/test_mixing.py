from statistics import mean

import numpy as np
import pytest
import torch
from scipy import stats

from tlx.data.augment import Augment, AugmentParams, mix
from tlx.data.mixing import Mix, beta_quantile

ONE = torch.randint(0, 256, (3, 30, 40), generator=torch.Generator().manual_seed(0)).byte()
OTHER = torch.randint(0, 256, (3, 30, 40), generator=torch.Generator().manual_seed(1)).byte()


@pytest.mark.parametrize("alpha", [0.1, 0.2, 0.4, 1.0, 2.0, 8.0, 32.0])
def test_quantiles_are_scipys(alpha: float) -> None:
    for share in (0.0, 1e-3, 0.02, 0.3, 0.5, 0.77, 0.99, 1.0):
        expected = stats.beta.ppf(share, alpha, alpha)
        assert beta_quantile(share, alpha) == pytest.approx(expected, abs=1e-5)


def draws(augment: Augment, count: int = 2000) -> list[Mix]:
    found = [augment.draw(0, view, 3).mix for view in range(count)]
    return [mixed for mixed in found if mixed is not None]


def test_mixup_draws_from_beta_and_any_partner() -> None:
    drawn = draws(Augment(mixup=0.4))
    assert len(drawn) == 2000
    assert all(mixed.box is None for mixed in drawn)
    assert stats.kstest([m.lam for m in drawn], stats.beta(0.4, 0.4).cdf).pvalue > 0.01
    assert stats.kstest([m.partner for m in drawn], stats.uniform.cdf).pvalue > 0.01


def test_cutmix_leaves_lam_of_the_area() -> None:
    whole = 0
    for mixed in draws(Augment(cutmix=1.0)):
        assert mixed.box is not None
        left, top, right, bottom = mixed.box
        assert 0 <= left <= right <= 1
        assert 0 <= top <= bottom <= 1
        assert mixed.lam == pytest.approx(1 - (right - left) * (bottom - top))
        if min(left, top) > 0 and max(right, bottom) < 1:  # not cut at the rim
            assert right - left == pytest.approx(bottom - top)
            whole += 1
    assert whole > 100


def test_cutmix_of_two_pictures_has_their_shares() -> None:
    black, white = torch.zeros(3, 30, 40).byte(), torch.full((3, 30, 40), 255).byte()
    for view in range(200):
        params = Augment(cutmix=1.0).draw(0, view, 3)
        assert params.mix is not None
        share = (mix(white, black, params) == 255).float().mean().item()
        assert abs(share - params.mix.lam) < 1 / 40 + 1 / 30  # edges go to whole pixels


def test_with_both_each_is_chosen_half_the_time() -> None:
    boxes = [mixed.box is not None for mixed in draws(Augment(mixup=0.2, cutmix=1.0))]
    assert abs(mean(boxes) - 0.5) < 0.05


def test_mixup_is_the_weighted_sum() -> None:
    expected = np.rint(0.7 * ONE.numpy().astype(float) + 0.3 * OTHER.numpy())
    mixed = mix(ONE, OTHER, AugmentParams(mix=Mix(0.0, 0.7)))
    assert mixed.dtype == torch.uint8
    assert np.abs(mixed.numpy() - expected).max() <= 1  # a half may be rounded either way
    assert np.mean(mixed.numpy() != expected) < 0.11


def test_cutmix_pastes_the_box() -> None:
    before = ONE.clone()
    mixed = mix(ONE, OTHER, AugmentParams(mix=Mix(0.0, 0.8, (0.25, 0.0, 0.75, 0.4))))
    expected = ONE.clone()
    expected[:, 0:12, 10:30] = OTHER[:, 0:12, 10:30]
    assert torch.equal(mixed, expected)
    assert torch.equal(ONE, before)


def test_without_it_the_image_is_itself() -> None:
    assert mix(ONE, OTHER, AugmentParams()) is ONE
