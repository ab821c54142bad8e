import pytest

from tlx.data.leaks import settle_leaks
from tlx.data.manifest import Record
from tlx.errors import UserError

# The name of a file: its split, its content, its number. Groups are given apart.
PATHS = ["train/A1", "train/A2", "train/B1", "train/C1", "val/B2", "val/D1", "test/A3", "test/E1"]
DIGESTS = {path: path.split("/")[1][0] for path in PATHS}


def records(**groups: str) -> list[Record]:
    return [
        Record(path, "x", "x", path.split("/")[0], groups.get(path.split("/")[1], ""))
        for path in PATHS
    ]


def splits(found: list[Record]) -> dict[str, str]:
    return {record.path: record.split for record in found}


def test_regroup_moves_train_copies_out(caplog: pytest.LogCaptureFixture) -> None:
    moved = {"train/A1": "test", "train/A2": "test", "train/B1": "val"}
    assert splits(settle_leaks(records(), DIGESTS, "regroup")) == splits(records()) | moved
    assert (
        "2 images or groups are in two splits:\n  test/A3 (test), train/A1 (train)\n" in caplog.text
    )


def test_regroup_follows_chains() -> None:
    # A1 goes to test and takes C1 of its group along, whose other member D1 follows
    found = settle_leaks(records(A1="p", C1="p", C2="q", D1="p"), DIGESTS, "regroup")
    assert {path for path, split in splits(found).items() if split == "test"} == {
        *("train/A1", "train/A2", "train/C1", "val/D1", "test/A3", "test/E1")
    }
    assert splits(found)["train/B1"] == "val"


def test_error_names_the_files_and_the_ways_out() -> None:
    with pytest.raises(UserError) as caught:
        settle_leaks(records(), DIGESTS, "error")
    message = str(caught.value)
    assert "train/B1 (train)" in message
    assert "val/B2 (val)" in message
    for way in ("data.exclude=FILE", "data.on_leak=regroup", "data.on_leak=warn"):
        assert way in message


def test_warn_leaves_them(caplog: pytest.LogCaptureFixture) -> None:
    assert settle_leaks(records(), DIGESTS, "warn") == records()
    assert "2 images or groups are in two splits" in caplog.text


def test_a_group_in_two_splits_is_a_leak() -> None:
    own = {path: path for path in PATHS}
    with pytest.raises(UserError, match=r"1 images or groups .*\n.*C1 \(train\)"):
        settle_leaks(records(C1="p", E1="p"), own, "error")


def test_nothing_to_say(caplog: pytest.LogCaptureFixture) -> None:
    own = {path: path for path in PATHS}
    assert settle_leaks(records(C1="p", A1="p"), own, "error") == records(C1="p", A1="p")
    undrawn = [Record("a", "x", "x"), Record("b", "x", "x")]
    assert settle_leaks(undrawn, {"a": "A", "b": "A"}, "error") == undrawn
    assert caplog.text == ""
