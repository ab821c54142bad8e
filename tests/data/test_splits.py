import random
from collections import Counter
from fractions import Fraction

import pytest

from tlx.data.splits import split_stratified
from tlx.errors import UserError


def table(strata: list[str], splits: list[str]) -> Counter[tuple[str, str]]:
    return Counter(zip(strata, splits, strict=True))


def names(sizes: dict[str, int]) -> tuple[list[str], list[str]]:
    strata = [name for name, size in sizes.items() for _ in range(size)]
    return [f"{stratum}/{i}.png" for i, stratum in enumerate(strata)], strata


def test_sixty_twenty_twenty() -> None:
    paths, strata = names({"a": 10, "b": 50, "c": 5})
    counts = table(strata, split_stratified(paths, strata, val=0.2, test=0.2, seed=0))
    expected = {"a": (6, 2, 2), "b": (30, 10, 10), "c": (3, 1, 1)}
    for name, numbers in expected.items():
        assert tuple(counts[name, split] for split in ("train", "val", "test")) == numbers


def test_totals_are_exact_where_rounding_each_stratum_is_not() -> None:
    paths, strata = names({str(i): 12 for i in range(10)})  # 12 × 0.2 = 2.4, 24 in all
    splits = split_stratified(paths, strata, val=0.2, test=0.2, seed=0)
    assert Counter(splits) == {"train": 72, "val": 24, "test": 24}


def test_totals_that_need_an_image_passed_on_through_a_third_split() -> None:
    # train, val, test of x: 25.6, 12.4, 2.0; of y: 32.0, 15.5, 2.5; in all 83.2, 40.3, 6.5.
    # Alone, they round to 26, 12, 2 (twice) and 32, 16, 2: train has one too many, test one too
    # few, and no stratum has an odd image of train's that could go to test.
    paths, strata = names({"x0": 40, "x1": 40, "y": 50})
    counts = table(strata, split_stratified(paths, strata, val=0.31, test=0.05, seed=0))
    rows = {
        name: tuple(counts[name, split] for split in ("train", "val", "test"))
        for name in ("x0", "x1", "y")
    }
    assert sorted([rows["x0"], rows["x1"]]) == [(25, 13, 2), (26, 12, 2)]
    assert rows["y"] == (32, 15, 3)


@pytest.mark.parametrize("trial", range(60))
def test_any_sizes_and_fractions(trial: int) -> None:
    draw = random.Random(trial)
    val, test = draw.choice([0, 0.1, 0.15, 0.2, 1 / 3]), draw.choice([0, 0.1, 0.2, 0.25, 0.3])
    sizes = {f"s{i}": draw.randint(10, 70) for i in range(draw.randint(1, 12))}
    paths, strata = names(sizes)
    counts = table(strata, split_stratified(paths, strata, val=val, test=test, seed=trial))
    for split, share in {"train": 1 - val - test, "val": val, "test": test}.items():
        exact = sum(sizes.values()) * share
        assert abs(sum(counts[name, split] for name in sizes) - exact) < 1 + 1e-6
        for name, size in sizes.items():
            assert abs(counts[name, split] - size * share) < 1 + 1e-6
            assert counts[name, split] > 0 or share == 0


def test_a_small_stratum_is_in_every_split() -> None:
    paths, strata = names({"common": 100, "rare": 3, "rarer": 3})
    counts = table(strata, split_stratified(paths, strata, val=0.1, test=0.1, seed=0))
    for name in ("rare", "rarer"):
        assert [counts[name, split] for split in ("train", "val", "test")] == [1, 1, 1]


def test_the_listing_order_does_not_matter() -> None:
    paths, strata = names({"a": 31, "b": 17})
    splits = dict(
        zip(paths, split_stratified(paths, strata, val=0.2, test=0.2, seed=5), strict=True)
    )
    order = list(range(len(paths)))
    random.Random(1).shuffle(order)
    shuffled = split_stratified(
        [paths[i] for i in order], [strata[i] for i in order], val=0.2, test=0.2, seed=5
    )
    assert shuffled == [splits[paths[i]] for i in order]


def test_the_seed_matters_and_each_image_gets_its_share_of_test() -> None:
    paths, strata = names({"a": 20})
    runs = [split_stratified(paths, strata, val=0.2, test=0.25, seed=seed) for seed in range(400)]
    share = [sum(run[i] == "test" for run in runs) / len(runs) for i in range(len(paths))]
    assert all(abs(part - 0.25) < 0.09 for part in share)  # four standard deviations
    assert runs[0] == split_stratified(paths, strata, val=0.2, test=0.25, seed=0)


def test_too_few_images_are_named() -> None:
    paths, strata = names({"plenty": 10, "rare": 2})
    with pytest.raises(UserError, match=r"'rare' has 2 images, fewer than the 3 splits"):
        split_stratified(paths, strata, val=0.2, test=0.2, seed=0)
    splits = split_stratified(paths, strata, val=0.2, test=0, seed=0)
    assert table(strata, splits)["rare", "val"] == 1


@pytest.mark.parametrize(
    ("val", "test", "message"),
    [
        (-0.1, 0.2, r"data\.val=-0\.1 is not a fraction"),
        (0.2, 20, r"data\.test=20 is not a fraction"),
        (float("nan"), 0.2, r"data\.val=nan"),
        (0.5, 0.5, r"data\.val=0\.5 and data\.test=0\.5 leave nothing to train on"),
    ],
)
def test_fractions_are_checked(val: float, test: float, message: str) -> None:
    with pytest.raises(UserError, match=message):
        split_stratified(["a"], ["a"], val=val, test=test, seed=0)


def test_shares_are_exact_numbers_not_binary_ones() -> None:
    paths, strata = names({"a": 30})
    counts = Counter(split_stratified(paths, strata, val=0.1, test=0.2, seed=0))
    assert counts == {"train": 30 * Fraction(7, 10), "val": 3, "test": 6}
