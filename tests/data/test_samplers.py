from collections import Counter

import pytest

from tlx.data.samplers import EpochSampler, OrderedSampler


def test_an_epoch_is_a_permutation_drawn_from_seed_and_epoch() -> None:
    orders = {}
    for seed in (0, 1):
        for epoch in (0, 1):
            sampler = EpochSampler(50, seed)
            sampler.set_epoch(epoch)
            items = list(sampler)
            assert items == list(sampler)
            assert {view for _, view in items} == {epoch}
            orders[seed, epoch] = tuple(index for index, _ in items)
    assert len(set(orders.values())) == 4
    assert all(sorted(order) == list(range(50)) for order in orders.values())


def test_orders_never_change() -> None:
    # a run must be repeatable years later: these are what numpy 2.4 gave
    assert [index for index, _ in EpochSampler(8, 0)] == [0, 3, 7, 5, 1, 2, 6, 4]


def test_the_offset_counts_as_epochs() -> None:
    late, shifted = EpochSampler(20, 0), EpochSampler(20, 0, epoch_offset=5)
    late.set_epoch(7)
    shifted.set_epoch(2)
    assert list(late) == list(shifted)


@pytest.mark.parametrize(("size", "world_size", "batch"), [(40, 2, 4), (41, 4, 3), (7, 3, 2)])
def test_processes_share_the_batches_of_one(size: int, world_size: int, batch: int) -> None:
    alone = list(EpochSampler(size, 0))
    shards = [
        list(EpochSampler(size, 0, rank=rank, world_size=world_size)) for rank in range(world_size)
    ]
    assert {len(shard) for shard in shards} == {size // world_size}
    kept = alone[: size // world_size * world_size]
    for start in range(0, size // world_size, batch):
        together = {item for shard in shards for item in shard[start : start + batch]}
        assert together == set(kept[start * world_size : (start + batch) * world_size])


@pytest.mark.parametrize(("size", "world_size"), [(10, 1), (10, 3), (2, 4)])
def test_evaluation_sees_each_image_once(size: int, world_size: int) -> None:
    shards = [OrderedSampler(size, rank=rank, world_size=world_size) for rank in range(world_size)]
    items = [item for shard in shards for item in shard]
    assert sorted(items) == [(index, 0) for index in range(size)]
    assert [len(shard) for shard in shards] == [len(list(shard)) for shard in shards]
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


# Balanced


CLASSES = [0] * 40 + [2] * 7 + [1] * 3  # none of class 3


def balanced(epoch: int = 0, **settings: int | None) -> list[tuple[int, int]]:
    sampler = EpochSampler(50, 0, balance_by=CLASSES, **settings)
    sampler.set_epoch(epoch)
    return list(sampler)


def test_a_balanced_epoch_has_each_class_and_within_it_each_image_equally_often() -> None:
    favoured = set()
    for epoch in range(10):
        items = balanced(epoch)
        assert items == balanced(epoch)
        assert items != balanced(epoch + 1)
        assert len(items) == len(set(items)) == 50  # an image that comes again has another view
        counts = Counter(CLASSES[index] for index, _ in items)
        assert sorted(counts.values()) == [16, 17, 17]
        favoured.add(min(counts, key=counts.__getitem__))
        for name in (0, 1, 2):
            times = Counter({i: 0 for i, other in enumerate(CLASSES) if other == name})
            times.update(index for index, _ in items if CLASSES[index] == name)
            assert max(times.values()) - min(times.values()) <= 1
    assert len(favoured) > 1  # it is not always the same class that has one less


def test_balanced_classes_come_in_no_order() -> None:
    changes = sum(
        CLASSES[a] != CLASSES[b] for (a, _), (b, _) in zip(balanced(), balanced()[1:], strict=False)
    )
    assert 20 < changes < 45  # 2/3 of 49 at random, 2 if they were sorted


def test_balanced_orders_never_change() -> None:
    # a run must be repeatable years later: these are what numpy 2.4 gave
    sampler = EpochSampler(8, 0, balance_by=[0, 0, 0, 0, 0, 0, 1, 1])
    assert [index for index, _ in sampler] == [4, 0, 6, 6, 5, 1, 7, 7]


def test_views_take_turns_when_an_image_comes_again() -> None:
    views: dict[int, list[int]] = {}
    for index, view in sorted(balanced(epoch=5, views=4)):
        views.setdefault(index, []).append(view)
    assert all(view == [5 % 4] for index, view in views.items() if CLASSES[index] == 0)
    assert all(sorted(view)[:4] != [view[0]] * 4 for i, view in views.items() if CLASSES[i] == 1)
    assert {view for _, view in balanced(epoch=5, views=1)} == {0}


def test_processes_share_a_balanced_epoch() -> None:
    shards = [balanced(rank=rank, world_size=2) for rank in range(2)]
    together = [item for pair in zip(*shards, strict=True) for item in pair]
    assert together == balanced()
