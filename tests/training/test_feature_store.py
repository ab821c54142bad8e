"""Entries on disk: filled in parts by several processes, never removed in use, never trusted."""

import errno
import fcntl
import json
import logging
import multiprocessing
import os
import shutil
import signal
import time
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from tlx.files import waiting
from tlx.training import feature_store
from tlx.training.cache_folder import allocated, contents, problem, remove
from tlx.training.feature_store import Entry, FeatureStore, Part

ROWS = np.arange(10 * 16, dtype=np.float32).reshape(10, 16)
A, B = (Entry(letter * 40, 10, 64, 4, {"backbone": "vgg16"}) for letter in "ab")


@pytest.fixture
def open_store(tmp_path):
    with ExitStack() as stack:
        yield lambda size=10**9: stack.enter_context(closing(FeatureStore(tmp_path, size)))


def compute(parts):
    """What a network would: rows of A, and their doubles for B."""
    for part in parts:
        for entry in part.entries:
            rows = ROWS[part.rows.start : part.rows.stop] * (1 if entry == A else 2)
            part.write(entry, rows.data)
        part.finish()


def fill(store, entries, compute=compute):
    missing = [entry for entry in entries if not store.hold(entry)]
    if missing:
        store.fill(missing, compute)
    return [np.fromfile(store.file(e), np.float32).reshape(10, 16) for e in entries]


def killed_after(parts_done, folder):
    """Fill A in a process that ends as by SIGKILL in the middle of a part."""

    def crash(parts):
        for number, part in enumerate(parts):
            rows = ROWS[part.rows.start : part.rows.stop]
            if number == parts_done:
                part.write(A, rows[:1].data)
                os.kill(os.getpid(), signal.SIGKILL)
            part.write(A, rows.data)
            part.finish()

    def main():
        fill(FeatureStore(folder, 10**9), [A], crash)

    process = multiprocessing.get_context("fork").Process(target=main)
    process.start()
    process.join(30)
    assert process.exitcode == -signal.SIGKILL


def test_a_killed_process_leaves_its_finished_parts(tmp_path, open_store):
    killed_after(1, tmp_path)
    computed = []

    def spy(parts):
        def watched():
            for part in parts:
                computed.append((part.rows, part.entries))
                yield part

        compute(watched())

    (item,) = contents(tmp_path)
    assert (item.state, item.in_use) == ("unfinished", False)
    assert "was interrupted" in problem(item)
    a, b = fill(open_store(), [A, B], spy)
    assert computed == [(range(4), [B]), (range(4, 8), [A, B]), (range(8, 10), [A, B])]
    assert np.array_equal(a, ROWS)
    assert np.array_equal(b, ROWS * 2)
    assert {(i.state, i.in_use, problem(i)) for i in contents(tmp_path)} == {("whole", True, None)}


def test_a_claim_while_an_entry_is_ended(open_store, tmp_path, monkeypatch):
    """Another process opens a part's file after the last was removed and before their folder is."""
    remove = os.rmdir

    def late(*args, **kwargs):
        with suppress(FileNotFoundError):
            (tmp_path / A.name / "parts/0000").open("a+").close()
        remove(*args, **kwargs)

    monkeypatch.setattr(os, "rmdir", late)
    (rows,) = fill(open_store(), [A])
    assert np.array_equal(rows, ROWS)
    assert not (tmp_path / A.name / "parts").exists()


def test_two_processes_share_the_parts_and_wait_for_each_other(
    tmp_path, open_store, caplog, monkeypatch
):
    """The other holds part 0 until this one, which computes 1 and 2, has said that it waits."""
    monkeypatch.setattr(feature_store, "PATIENCE", 0.1)
    monkeypatch.setattr(feature_store, "POLL", 0.05)
    caplog.set_level(logging.INFO)
    context = multiprocessing.get_context("fork")
    begun, go_on = context.Event(), context.Event()

    def slow(parts):
        first = next(parts)
        begun.set()
        go_on.wait(30)
        compute(iter([first]))
        compute(parts)

    process = context.Process(target=lambda: fill(FeatureStore(tmp_path, 10**9), [A], slow))
    process.start()
    assert begun.wait(30)
    mine = []

    class Said(logging.Handler):
        def emit(self, record):
            go_on.set()

    logging.getLogger("tlx").addHandler(said := Said())

    def spy(parts):
        for part in parts:
            mine.append(part.rows)
            compute(iter([part]))

    (rows,) = fill(open_store(), [A], spy)
    logging.getLogger("tlx").removeHandler(said)
    process.join(30)
    assert process.exitcode == 0
    assert mine == [range(4, 8), range(8, 10)]
    assert "another process computes 1 of 3 parts; waiting for it" in caplog.text
    assert np.array_equal(rows, ROWS)


def test_a_part_is_taken_over_from_a_process_that_dies(tmp_path, open_store):
    context = multiprocessing.get_context("fork")
    begun = context.Event()

    def hang(parts):
        next(parts)
        begun.set()
        time.sleep(60)

    process = context.Process(target=lambda: fill(FeatureStore(tmp_path, 10**9), [A], hang))
    process.start()
    assert begun.wait(30)

    def compute_and_kill(parts):
        compute(parts)
        process.kill()

    (rows,) = fill(open_store(), [A], compute_and_kill)
    process.join(30)
    assert np.array_equal(rows, ROWS)


DAMAGES = ["truncated", "broken json", "no bytes", "a file", "no data", "a link", "a dangling link"]


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_damaged_is_computed_again_and_said(tmp_path, open_store, caplog, damage):
    fill(store := open_store(), [A])
    store.close()
    place = tmp_path / A.name
    if damage == "truncated":
        os.truncate(place / "features", 100)
    elif damage == "broken json":
        (place / "entry.json").write_text('{"rows": ')
    elif damage == "no bytes":
        (place / "entry.json").write_text("[]")
    elif damage == "no data":
        (place / "features").unlink()
    elif "link" in damage:
        elsewhere = place.rename(tmp_path / ".elsewhere")
        place.symlink_to(elsewhere if damage == "a link" else "nowhere")
        os.truncate(elsewhere / "features", 100)
    else:
        place.rename(tmp_path / ".elsewhere")
        place.write_text("of another program")
    assert [item.state for item in contents(tmp_path)] == [
        "foreign" if damage == "a file" else "damaged"
    ]
    (rows,) = fill(open_store(), [A])
    assert f"{place} is damaged: it is computed again" in caplog.text
    assert np.array_equal(rows, ROWS)


def test_a_foreign_file_in_an_unfinished_entry_is_not_trusted(tmp_path, open_store):
    killed_after(2, tmp_path)
    (tmp_path / A.name / "features").write_bytes(b"foreign")
    assert np.array_equal(fill(open_store(), [A])[0], ROWS)
    (tmp_path / B.name).mkdir()
    (tmp_path / B.name / "features").write_bytes(bytes(B.bytes))  # as long as the right one
    assert np.array_equal(fill(open_store(), [B])[0], ROWS * 2)


@pytest.mark.parametrize("target", [".elsewhere", "nowhere"])
def test_a_linked_entry_makes_room_as_others_do(tmp_path, open_store, target):
    fill(store := open_store(), [B])
    store.close()
    (tmp_path / B.name).rename(tmp_path / ".elsewhere")
    (tmp_path / B.name).symlink_to(target)
    with waiting(tmp_path / ".lock"):
        assert remove(tmp_path / B.name)
    assert contents(tmp_path) == []
    assert (tmp_path / ".elsewhere/features").exists()


def test_locks_of_entries_that_were_never_made_go(tmp_path, open_store):
    (given_up := open_store()).hold(B)
    fill(open_store(), [A])
    assert {path.stem for path in tmp_path.glob("*.lock")} == {".lock", A.name, B.name}
    given_up.close()
    (tmp_path / "mine.lock").touch()
    fill(open_store(), [Entry("c" * 40, 10, 64, 4, {})])
    assert {path.stem for path in tmp_path.glob("*.lock")} == {".lock", A.name, "c" * 40, "mine"}


def test_checksums_are_those_of_parts_by_number(tmp_path, open_store):
    """Not by name, which would put 10000 before 9999; a file manager may leave notes of its own."""
    killed_after(1, tmp_path)
    for name in (".DS_Store", "00001"):
        (tmp_path / A.name / "parts" / name).write_text("notes")
    fill(open_store(), [A])
    (item,) = contents(tmp_path)
    assert problem(item) is None
    assert len(item.about["crc32"]) == 3


def test_what_a_process_left_that_was_killed_as_it_ended_an_entry(tmp_path, open_store):
    killed_after(1, tmp_path)
    (tmp_path / A.name / "ended").mkdir()
    (tmp_path / A.name / "ended/0000").write_text("0" * 8)
    assert np.array_equal(fill(open_store(), [A])[0], ROWS)
    assert {p.name for p in (tmp_path / A.name).iterdir()} == {"features", "entry.json"}


def test_a_full_disk_leaves_nothing_behind(tmp_path, open_store, monkeypatch):
    def full(self, entry, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    fill(open_store(), [B])
    with monkeypatch.context() as patch:
        patch.setattr(Part, "write", full)
        with pytest.raises(OSError, match="No space left"):
            fill(open_store(), [A])
    assert [item.path.name for item in contents(tmp_path)] == [B.name]
    assert np.array_equal(fill(open_store(), [A])[0], ROWS)


def test_a_folder_without_locks_or_that_is_read_only_is_an_oserror(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", no_locks)
        with pytest.raises(OSError, match="No locks available"):
            FeatureStore(tmp_path, 10**9).hold(A)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="Not a directory"):
        FeatureStore(tmp_path / "file/features", 10**9).hold(A)


def test_room_is_made_of_what_is_unused_and_tlxs(tmp_path, open_store):
    killed_after(2, tmp_path)  # interrupted for good: it goes too
    fill(used := open_store(), [B])
    (tmp_path / "notes.txt").write_text("mine")
    os.utime(tmp_path / f"{B.name}.lock", (0, 0))
    newer = Entry("c" * 40, 10, 64, 4, {})
    in_use = allocated(tmp_path / B.name)
    fill(open_store(in_use + newer.bytes), [newer])
    assert {item.path.name for item in contents(tmp_path)} == {B.name, newer.name, "notes.txt"}
    with pytest.raises(OSError, match=r"0\.0 MB are needed.* of which 0\.0 MB are in use"):
        fill(open_store(in_use + A.bytes - 1), [A])
    used.close()
    with pytest.raises(OSError, match=r"0\.0 MB are needed"):
        fill(open_store(600), [A])
    assert B.name in {item.path.name for item in contents(tmp_path)}  # it would not have helped


def test_what_a_store_turns_from_makes_room_for_what_it_turns_to(tmp_path, open_store):
    store = open_store(B.bytes + A.bytes)  # and not for the blocks that the disk takes for them
    store.check_room([A, B])
    fill(store, [B])
    fill(store, [A])
    newer = Entry("c" * 40, 10, 64, 4, {})
    with pytest.raises(OSError, match="are in use"):
        store.check_room([B, newer])
    store.check_room([A, B])  # which are there
    store.hold_only([B, newer])
    store.check_room([B, newer])
    fill(store, [newer])
    assert {item.path.name for item in contents(tmp_path)} == {B.name, newer.name}


def test_room_is_made_on_a_full_disk_where_that_is_enough(tmp_path, open_store, monkeypatch):
    fill(store := open_store(), [B])
    store.close()
    free = 0
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    with pytest.raises(OSError, match="are free on the disk"):
        fill(open_store(), [replace(A, row_bytes=64_000)])
    assert [item.path.name for item in contents(tmp_path)] == [B.name]
    free = A.bytes - 1
    fill(open_store(), [A])
    assert [item.path.name for item in contents(tmp_path)] == [A.name]


def test_locks_are_opened_as_nfs_wants_them(tmp_path, open_store, monkeypatch):
    """flock(2): shared locks want files open for reading, exclusive ones for writing."""
    real, seen = fcntl.flock, []

    def flock(file, kind):
        wanted = os.O_RDONLY if kind & fcntl.LOCK_SH else os.O_WRONLY
        number = file if isinstance(file, int) else file.fileno()
        mode = fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE
        if mode not in (wanted, os.O_RDWR):
            raise OSError(errno.EBADF, "Bad file descriptor")
        seen.append(kind)
        real(file, kind)

    monkeypatch.setattr(fcntl, "flock", flock)
    fill(open_store(), [B])
    assert [item.in_use for item in contents(tmp_path)] == [True]
    fill(open_store(10**5), [A])
    assert {fcntl.LOCK_SH, fcntl.LOCK_EX, fcntl.LOCK_EX | fcntl.LOCK_NB} <= set(seen)


def test_an_entry_says_what_it_is_and_its_checksums_find_one_changed_bit(tmp_path, open_store):
    fill(store := open_store(), [A])
    store.close()
    about = json.loads((tmp_path / A.name / "entry.json").read_text())
    assert (about["backbone"], about["bytes"], about["part_bytes"]) == ("vgg16", 640, 256)
    assert len(about["crc32"]) == 3
    assert not (tmp_path / A.name / "parts").exists()
    file = tmp_path / A.name / "features"
    data = bytearray(file.read_bytes())
    data[300] ^= 1
    file.write_bytes(data)
    (item,) = contents(tmp_path)
    assert problem(item) == "part 1 of 3 has changed since it was written"
