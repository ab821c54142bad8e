"""tlx cache: what lies there, whether it is sound, and how to be rid of it."""

import hashlib
import json
import os
import shutil
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch

from tlx import cache
from tlx.data.decoded import DecodeCache, _use, open_cache
from tlx.training import cache_folder
from tlx.training.feature_store import Entry, FeatureStore

ENTRIES = [
    Entry(letter * 40, 4, 8, 4, {"backbone": "vgg16", "before": "block5", "split": "train",
                                 "view": view, "images": 4, "tlx": "0.1.0"})
    for letter, view in (("a", None), ("b", 3))
]  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    """Two entries, the first last used long ago, and a file of somebody else's."""

    def compute(parts):
        for part in parts:
            part.write(part.entries[0], np.arange(4.0).data)
            part.finish()

    with closing(FeatureStore(tmp_path / "features", 10**6)) as store:
        for entry in ENTRIES:
            assert not store.hold(entry)
            store.fill([entry], compute)
    month_ago = time.time() - 30 * 86_400
    os.utime(tmp_path / "features" / f"{'a' * 40}.lock", (month_ago, month_ago))
    (tmp_path / "features/notes.txt").write_text("mine")
    return tmp_path / "features"


def said(capsys, *arguments):
    cache.main([*arguments, "format=json"])
    return json.loads(capsys.readouterr().out)


def test_list_says_what_every_entry_holds_and_who_uses_it(folder, capsys):
    with closing(FeatureStore(folder, 10**6)) as store:
        store.hold(ENTRIES[1])
        rows = said(capsys, f"dir={folder}")["entries"]
        assert [(row["state"], row["in_use"], row["view"]) for row in rows] == [
            ("whole", False, None), ("whole", True, 3), ("foreign", False, None),
        ]  # fmt: skip
        assert rows[1]["backbone"] == "vgg16"
        cache.main(["list", f"dir={folder}"])
    lines = capsys.readouterr().out.splitlines()
    assert "vgg16 before block5  4 train images view 3" in lines[2]
    assert "whole, in use" in lines[2]


def test_clear_removes_what_is_old_enough_and_not_in_use(folder, capsys):
    assert said(capsys, "clear", "older=60", f"dir={folder}")["removed"] == 0
    assert said(capsys, "clear", "older=7", f"dir={folder}")["removed"] == 1
    with closing(FeatureStore(folder, 10**6)) as store:
        store.hold(ENTRIES[1])
        found = said(capsys, "clear", f"dir={folder}")
        assert (found["removed"], found["in_use"]) == (0, 1)
    (folder / f"{'c' * 40}.lock").touch()  # of an entry that was never made
    assert said(capsys, "clear", f"dir={folder}")["removed"] == 1
    assert sorted(p.name for p in folder.iterdir()) == [".lock", "notes.txt"]
    assert said(capsys, "size", f"dir={folder}") == {
        "folders": [str(folder)], "count": 0, "bytes": 0, "in_use": 0, "foreign": 1,
    }  # fmt: skip


def test_verify_names_the_changed_and_the_foreign_and_fails(folder, capsys):
    cache.main(["verify", f"dir={folder}"])
    assert f"{folder / 'notes.txt'} is not tlx's" in capsys.readouterr().out
    file = folder / ("b" * 40) / "features"
    file.write_bytes(bytes(32))
    with pytest.raises(SystemExit) as stop:
        cache.main(["verify", f"dir={folder}"])
    assert stop.value.code == 1
    assert "part 0 of 1 has changed" in capsys.readouterr().out


def test_verify_passes_over_what_is_removed_meanwhile(folder, capsys, monkeypatch):
    check = cache_folder.problem

    def late(item):
        if item.path.name == "b" * 40:
            shutil.rmtree(item.path)
        return check(item)

    monkeypatch.setattr(cache_folder, "problem", late)
    rows = said(capsys, "verify", f"dir={folder}")["entries"]
    assert [Path(row["entry"]).name for row in rows] == ["a" * 40, "notes.txt"]
    assert cache_folder._is_sound(folder / "a decoded image")


def test_decoded_images_are_counted_verified_and_cleared(
    tmp_path, image_folder, monkeypatch, capsys
):
    """By default tlx's own folder is looked at. A process that reads the images is a user."""
    monkeypatch.setenv("TLX_CACHE_DIR", str(tmp_path))
    files = [image_folder / "red" / f"{number}.png" for number in range(3)]
    contents = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    kept = open_cache(DecodeCache("disk", 10**6), "", (3, 2, 2), {"val": (files, contents)})["val"]
    for index, file in enumerate(files[:2]):
        kept.keep(index, file.read_bytes(), torch.zeros(3, 2, 2, dtype=torch.uint8))
    (row,) = said(capsys, "verify")["entries"]
    assert (row["state"], row["problem"], row["images"]) == ("whole", None, 2)
    cache.main(["list"])
    assert "2 decoded images" in capsys.readouterr().out
    assert (row["in_use"], said(capsys, "clear")["removed"]) == (True, 0)
    os.close(_use(kept.folder.with_suffix(".lock")))
    _use.cache_clear()
    (kept.folder / contents[0]).write_bytes(bytes(16))
    with pytest.raises(SystemExit):
        cache.main(["verify"])
    assert f"1 images have changed, such as {contents[0]}" in capsys.readouterr().out
    assert said(capsys, "clear")["removed"] == 1
    assert sorted(path.name for path in (tmp_path / "images").iterdir()) == [".lock"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["claer"], "unknown action 'claer'. Did you mean clear"),
        (["clear", "oldr=3"], "unknown argument 'oldr'. Did you mean older"),
        (["clear", "older=old"], "older=old is not a number of days"),
        (["older=3"], "older=3 is for clear"),
        (["dir=nowhere"], "dir=nowhere: no such folder"),
        (["format=xml"], "format=xml is not valid"),
    ],
)
def test_mistakes_are_named(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        cache.main(arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
