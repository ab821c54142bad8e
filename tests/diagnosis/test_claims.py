"""How many images a claim takes, against Wilson's interval itself."""

from collections import Counter
from dataclasses import replace

import pytest
from scipy.stats import binomtest

from tlx.composition import compose
from tlx.config import parse
from tlx.diagnosis.claims import claim, half_width, needed_images

DATA = parse(compose(["data=folder", "data.root=here"])).data


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
    found = list(claim("test", n, 0.9, smallest, DATA))
    assert [finding.severity for finding in found] == ([severity] if severity else [])


def test_ten_test_images_say_next_to_nothing():
    (finding,) = claim("test", 10, 0.9, 5, DATA)
    low, high = binomtest(9, 10).proportion_ci(method="wilson")
    assert (finding.numbers["low"], finding.numbers["high"]) == pytest.approx((low, high))
    assert finding.numbers["needed_5_points"] == 141
    assert Counter(finding.evidence.split())["141"] == 1


@pytest.mark.parametrize(
    ("split", "settings", "advice"),
    [
        ("test", {}, "collect more test images, or data.test=0.3 where tlx draws the split"),
        ("val", {"val": 0.3}, "collect more val images, or -m data.folds=5 data.fold=0,1,2,3,4, "
         "with which val has every image once"),
        ("test", {"test": 0.4}, "collect more test images"),
        ("val", {"folds": 4, "test": 0.0}, "collect more val images"),
    ],
)  # fmt: skip
def test_what_is_set_already_is_not_advised(split, settings, advice):
    (finding,) = claim(split, 10, 0.9, 5, replace(DATA, **settings))
    assert finding.fix == advice
