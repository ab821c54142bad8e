import random
from collections import Counter
from fractions import Fraction
from typing import Any

import pytest

from tlx.data.splits import draw_splits, few_shot, split_stratified
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


# ---- draw_splits ----

ALPHABETS = ["abcxyz", "äöüßéç", "кошка", "猫犬花鳥", "שלום", "🐱🌻", "a b'\"%$;", "019"]
Case = tuple[list[str], list[str], list[str], dict[str, Any]]


def random_case(draw: random.Random) -> Case:
    """Paths, strata and groups of a folder, and the settings of a split."""
    alphabet = draw.choice(ALPHABETS)
    labels = {"".join(draw.choices(alphabet, k=draw.randint(1, 6))) for _ in range(8)}
    strata, paths, groups = [], [], []
    grouped, mixed = draw.choice([0, 0.1, 0.6, 1]), draw.random() < 0.4
    n_groups = draw.randint(4, 40)
    for label in sorted(labels)[: draw.randint(1, 8)]:
        for number in range(draw.choice([3, 4, 7, 20, 61])):
            paths.append(f"{label}/{draw.choice(alphabet)}{number}.png")
            strata.append(label)
            own = f"{draw.randrange(n_groups)}{'' if mixed else label}"
            groups.append(own if draw.random() < grouped else "")
    fractions = {"val": draw.choice([0, 0.1, 0.2, 1 / 3]), "test": draw.choice([0, 0.1, 0.2, 0.3])}
    return paths, strata, groups, {**fractions, "seed": draw.randrange(10**6)}


def shares_of(strata: list[str], settings: dict[str, Any]) -> dict[tuple[str, str], float]:
    val, test = settings["val"], settings["test"]
    return {
        (name, split): n * share
        for name, n in Counter(strata).items()
        for split, share in (("train", 1 - val - test), ("val", val), ("test", test))
    }


def check_random_case(draw: random.Random) -> str:
    paths, strata, groups, settings = random_case(draw)
    used = 1 + (settings["val"] > 0) + (settings["test"] > 0)
    units = {(s, g or p) for p, s, g in zip(paths, strata, groups, strict=True)}
    if min(Counter(stratum for stratum, _ in units).values()) < used:
        with pytest.raises(UserError, match="fewer than the"):
            draw_splits(paths, strata, groups, **settings)
        return "refused"
    splits = draw_splits(paths, strata, groups, **settings)
    assert len(splits) == len(paths)
    assert set(splits) <= {"train", "val", "test"}
    places: dict[str, set[str]] = {}
    for group, split in zip(groups, splits, strict=True):
        places.setdefault(group, set()).add(split)
    assert all(len(found) == 1 for group, found in places.items() if group)
    counts = table(strata, splits)
    repeated = any(n > 1 for group, n in Counter(groups).items() if group)
    lacking: set[tuple[str, str]] = set()
    for cell, share in shares_of(strata, settings).items():
        assert share > 0 or counts[cell] == 0
        lacking |= {cell} if counts[cell] == 0 and share > 0 else set()
        size = sum(stratum == cell[0] for stratum in strata)
        if not repeated and size * min(s for s in (settings["val"], settings["test"], 1) if s) >= 1:
            assert abs(counts[cell] - share) < 1 + 1e-6
    order = draw.sample(range(len(paths)), len(paths))
    again = draw_splits(
        *([column[i] for i in order] for column in (paths, strata, groups)), **settings
    )
    assert again == [splits[i] for i in order]
    if lacking:  # groups of several strata may leave no way, and finding one is graph colouring
        assert len({(g, s) for g, s in zip(groups, strata, strict=True) if g}) > len(set(groups))
        return "lacking"
    return "grouped" if repeated else "alone"


def test_hundreds_of_random_folders() -> None:
    outcomes = Counter(check_random_case(random.Random(trial)) for trial in range(250))
    assert min(outcomes["grouped"], outcomes["alone"]) > 50
    assert outcomes["lacking"] == 0


@pytest.mark.slow
def test_thousands_of_random_folders() -> None:
    outcomes = Counter(check_random_case(random.Random(trial)) for trial in range(5000))
    assert min(outcomes["grouped"], outcomes["alone"]) > 1000
    assert outcomes["lacking"] <= 2


def test_enough_single_images_make_grouped_shares_exact() -> None:
    strata = [name for name in "abc" for _ in range(100)]
    paths = [f"{name}/{i}" for i, name in enumerate(strata)]
    groups = [f"{name}{i % 100 // 7}" if i % 100 < 70 else "" for i, name in enumerate(strata)]
    counts = table(strata, draw_splits(paths, strata, groups, val=0.2, test=0.15, seed=0))
    for name in "abc":
        assert [counts[name, split] for split in ("train", "val", "test")] == [65, 20, 15]


def test_groups_deviate_by_less_than_the_smallest_of_them() -> None:
    """The documented bound, for groups of one stratum each."""
    for trial in range(30):
        draw = random.Random(trial)
        sizes = [draw.randint(5, 30) for _ in range(40)]
        groups = [f"g{i}" for i, size in enumerate(sizes) for _ in range(size)]
        paths = [f"{group}/{i}" for i, group in enumerate(groups)]
        splits = draw_splits(paths, ["a"] * len(paths), groups, val=0.2, test=0.2, seed=trial)
        assert abs(splits.count("val") - len(paths) / 5) <= 5
        assert abs(splits.count("test") - len(paths) / 5) <= 5


def test_the_seed_decides_which_groups_are_in_test() -> None:
    groups = [f"g{i % 30}" for i in range(150)]
    paths = [f"{i}.png" for i in range(150)]
    tests = [
        frozenset(
            group
            for group, split in zip(
                groups, draw_splits(paths, ["a"] * 150, groups, val=0, test=0.2, seed=seed),
                strict=True,
            )
            if split == "test"
        )
        for seed in range(100)
    ]  # fmt: skip
    often = Counter(group for test in tests for group in test)
    assert {len(test) for test in tests} == {6}
    assert len(often) == 30
    assert max(often.values()) < 45  # 20 expected


def test_one_group_more_changes_little() -> None:
    paths, strata = names({"a": 200, "b": 100})
    alone = draw_splits(paths, strata, [""] * 300, val=0.2, test=0.2, seed=0)
    assert alone == split_stratified(paths, strata, val=0.2, test=0.2, seed=0)
    pair = next(i for i in range(1, 200) if alone[i] != alone[0])
    groups = ["pair" if i in (0, pair) else "" for i in range(300)]
    united = draw_splits(paths, strata, groups, val=0.2, test=0.2, seed=0)
    assert sum(a != b for a, b in zip(alone, united, strict=True)) == 2
    assert Counter(united) == Counter(alone)


def test_a_class_in_fewer_groups_than_splits_is_named() -> None:
    paths, strata = names({"cat": 30, "dog": 30})
    groups = ["" if stratum == "cat" else f"g{i % 2}" for i, stratum in enumerate(strata)]
    with pytest.raises(UserError, match=r"'dog' is in 2 groups, .* fewer than the 3 parts"):
        draw_splits(paths, strata, groups, val=0.2, test=0.2, seed=0)
    splits = draw_splits(paths, strata, groups, val=0.2, test=0, seed=0)
    assert table(strata, splits)["dog", "val"] == 15


@pytest.mark.parametrize("grouped", [False, True])
def test_folds_cover_what_test_leaves_once(grouped: bool) -> None:
    paths, strata = names({"a": 53, "b": 31, "c": 12})
    groups = [f"{s}{i // 3}" if grouped and i % 2 else "" for i, s in enumerate(strata)]
    whole = draw_splits(paths, strata, groups, val=0.2, test=0.2, seed=4)
    runs = [
        draw_splits(paths, strata, groups, val=0.2, test=0.2, seed=4, folds=5, fold=fold)
        for fold in range(5)
    ]
    for column in zip(whole, *runs, strict=True):
        parts = Counter(column[1:])
        assert parts == ({"test": 5} if column[0] == "test" else {"val": 1, "train": 4})
    for stratum in "abc":
        in_val = [table(strata, run)[stratum, "val"] for run in runs]
        assert max(in_val) - min(in_val) <= 1
    for run in runs:
        together = {(g, split) for g, split in zip(groups, run, strict=True) if g}
        assert len(together) == len(set(filter(None, groups)))
    sizes = [run.count("val") for run in runs]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(("folds", "fold"), [(1, 0), (0, 0), (5, 5), (5, -1)])
def test_folds_are_checked(folds: int, fold: int) -> None:
    paths, strata = names({"a": 50})
    with pytest.raises(UserError, match=rf"data\.folds={folds} data\.fold={fold}: give 2 folds"):
        draw_splits(paths, strata, [""] * 50, val=0, test=0.2, seed=0, folds=folds, fold=fold)
    with pytest.raises(UserError, match=r"data\.folds=41, but 'a' has 40 images beside test"):
        draw_splits(paths, strata, [""] * 50, val=0, test=0.2, seed=0, folds=41)


def test_sequential_cuts_the_list(caplog: pytest.LogCaptureFixture) -> None:
    """As `pairs[:int(0.6 * n)]` and so on: 4,317 images leave 864 for test."""
    paths, strata = names({"daisy": 4000, "tulip": 317})
    splits = draw_splits(
        paths, strata, [""] * 4317, val=0.2, test=0.2, seed=0, how="sequential"
    )  # fmt: skip
    assert splits == ["train"] * 2590 + ["val"] * 863 + ["test"] * 864
    assert "in listing order, neither shuffled nor stratified" in caplog.text
    assert "train has no image of 'tulip'" in caplog.text
    draw_splits(paths, strata, ["g"] * 4317, val=0.2, test=0.2, seed=0, how="sequential")
    assert "1 groups are divided between splits" in caplog.text


# ---- few_shot ----


def test_few_shot_keeps_n_of_each_class_and_more_only_adds() -> None:
    paths, labels = names({"a": 30, "b": 50})
    splits = split_stratified(paths, labels, val=0.2, test=0.2, seed=0)
    kept = {n: few_shot(paths, labels, splits, n=n, seed=0) for n in (1, 5, 18)}
    for n, keep in kept.items():
        left = Counter(
            (label, split)
            for label, split, stays in zip(labels, splits, keep, strict=True)
            if stays
        )
        assert left == {
            ("a", "train"): n, ("a", "val"): 6, ("a", "test"): 6,
            ("b", "train"): n, ("b", "val"): 10, ("b", "test"): 10,
        }  # fmt: skip
    assert all(more for few, more in zip(kept[1], kept[5], strict=True) if few)
    assert few_shot(paths, labels, splits, n=5, seed=1) != kept[5]
    with pytest.raises(UserError, match=r"data\.per_class=19, but 'a' has 18 in train: give 18"):
        few_shot(paths, labels, splits, n=19, seed=0)
