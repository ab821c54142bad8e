import logging
import random
from collections import defaultdict

import pytest

from tlx.data.groups import group_names
from tlx.data.manifest import Record
from tlx.errors import UserError


def records(*paths: str, group: str = "") -> list[Record]:
    return [Record(path, "x", "x", group=group) for path in paths]


def test_alone_without_anything() -> None:
    assert group_names(records("a.png", "b.png"), None, []) == ["", ""]


def test_equal_matches_stay_together(caplog: pytest.LogCaptureFixture) -> None:
    found = records("p1_a.png", "p1_b.png", "p2_a.png", "other.png")
    assert group_names(found, r"(p\d+)_", []) == ["p1", "p1", "p2", ""]
    assert group_names(found, r"p\d+_.", []) == ["p1_a", "p1_b", "p2_a", ""]
    (warning,) = {r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING}
    assert warning == "data.group does not match 1 paths, such as other.png"


def test_links_join() -> None:
    found = [
        *records("a.png", "b.png", group="p 1"),
        *records("c_q.png", "d_q.png", "e.png", "f.png"),
    ]
    names = group_names(found, r"_(q)", [["b.png", "c_q.png"], ["f.png", "e.png"]])
    assert names == ["p 1", "p 1", "p 1", "p 1", "e.png", "e.png"]


@pytest.mark.parametrize("trial", range(20))
def test_as_a_plain_search_joins(trial: int) -> None:
    draw = random.Random(trial)
    paths = [f"{i}.png" for i in range(40)]
    copies = [draw.sample(paths, draw.randint(2, 4)) for _ in range(draw.randint(0, 14))]
    links = defaultdict(set)
    for same in copies:
        for path in same:
            links[path] |= set(same)
    names = group_names(records(*paths), None, copies)
    for path, name in zip(paths, names, strict=True):
        reached, waiting = {path}, [path]
        while waiting:
            new = links[waiting.pop()] - reached
            reached |= new
            waiting += new
        together = {p for p, other in zip(paths, names, strict=True) if other == name}
        assert name == "" if len(reached) == 1 else together == reached


def test_bad_patterns() -> None:
    with pytest.raises(UserError, match=r"data\.group='\(' is no regular expression: missing \)"):
        group_names(records("a.png"), "(", [])
    with pytest.raises(UserError, match=r"data\.group='q' matches none of the 1 paths, such as a"):
        group_names(records("a.png"), "q", [])
