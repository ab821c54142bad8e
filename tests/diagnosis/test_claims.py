"""How many images a claim takes, against Wilson's interval itself."""

from collections import Counter

import pytest
from scipy.stats import binomtest

from tlx.diagnosis.claims import claim, half_width, needed_images


@pytest.mark.parametrize(("right", "n"), [(9, 10), (45, 50), (0, 7), (656, 656), (580, 656)])
def test_half_width_is_scipys(right, n):
    low, high = binomtest(right, n).proportion_ci(method="wilson")
    assert half_width(right / n, n) == pytest.approx((high - low) / 2)


@pytest.mark.parametrize("accuracy", [0.0, 0.5, 0.68, 0.9, 0.99, 1.0])
@pytest.mark.parametrize("half", [0.02, 0.05, 0.2, 0.6])
def test_needed_images_are_the_fewest(accuracy, half):
    n = needed_images(accuracy, half)
    assert n == next(k for k in range(1, 10_000) if half_width(accuracy, k) <= half)


@pytest.mark.parametrize(
    ("n", "smallest", "severity"),
    [(10, 5, "warning"), (49, 20, "warning"), (50, 9, "warning"), (50, 10, "note"),
     (656, 205, None), (656, 9, "warning"), (0, 0, None)],
)  # fmt: skip
def test_what_is_too_few(n, smallest, severity):
    found = list(claim("test", n, 0.9, smallest=smallest))
    assert [finding.severity for finding in found] == ([severity] if severity else [])


def test_ten_test_images_say_next_to_nothing():
    (finding,) = claim("test", 10, 0.9, smallest=5)
    low, high = binomtest(9, 10).proportion_ci(method="wilson")
    assert (finding.numbers["low"], finding.numbers["high"]) == pytest.approx((low, high))
    assert finding.numbers["needed_5_points"] == 141
    assert Counter(finding.evidence.split())["141"] == 1
