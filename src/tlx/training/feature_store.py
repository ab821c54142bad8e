"""Entries of the feature cache on disk, which several processes fill and read together.

FOLDER/NAME/features     rows of one size, raw
FOLDER/NAME/parts/0007   locked by the process that computes part 7; later the part's checksum
FOLDER/NAME/entry.json   what the entry holds; it is whole once this is there
FOLDER/NAME.lock         held, shared, by whoever uses the entry; its time is the last use
FOLDER/.lock             held while an entry begins, ends or is removed
"""

import fcntl
import logging
import os
import re
import shutil
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from tlx.files import waiting, write_json
from tlx.training.cache_folder import (
    CHECKSUM,
    Item,
    allocated,
    contents,
    described,
    readable,
    remove,
    remove_idle_locks,
)

log = logging.getLogger(__name__)

FORMAT = 4  # counted up when the same fingerprint would mean other bytes
POLL, PATIENCE = 0.2, 5.0  # seconds between looks at what others compute, and before saying so


@dataclass(frozen=True)
class Entry:
    name: str
    rows: int
    row_bytes: int
    part_rows: int
    about: Mapping[str, Any] = field(compare=False)  # for people

    @property
    def bytes(self) -> int:
        return self.rows * self.row_bytes

    @property
    def parts(self) -> list[range]:
        starts = range(0, self.rows, self.part_rows)
        return [range(start, min(start + self.part_rows, self.rows)) for start in starts]


class Part:
    """Rows of some entries that only this process computes: it writes them, then calls `finish`."""

    def __init__(self, rows: range) -> None:
        self.rows = rows
        self._claims: dict[Entry, TextIO] = {}
        self._files: dict[Entry, BinaryIO] = {}
        self._checksums: dict[Entry, int] = {}

    def take(self, entry: Entry, claim: TextIO, file: BinaryIO) -> None:
        file.seek(self.rows.start * entry.row_bytes)
        self._claims[entry], self._files[entry], self._checksums[entry] = claim, file, 0

    @property
    def entries(self) -> list[Entry]:
        return list(self._claims)

    def write(self, entry: Entry, data: memoryview) -> None:
        """Append rows."""
        self._files[entry].write(data)
        self._checksums[entry] = zlib.crc32(data, self._checksums[entry])

    def finish(self) -> None:
        for entry, file in self._files.items():
            file.flush()
            os.fsync(file.fileno())  # the checksum must not be on the disk before the rows
            self._claims[entry].write(f"{self._checksums[entry]:08x}")
        self.close()

    def close(self) -> None:
        """Let go of the rows, which are computed again unless they are finished."""
        with ExitStack() as stack:
            for claim in self._claims.values():
                stack.callback(claim.close)
            for file in self._files.values():
                stack.callback(file.close)


class FeatureStore:
    """Entries below `folder`, no more than `max_bytes` of them; the least recently used go first.

    While a store is open, what it holds is in use: no process removes it. Any method may raise
    OSError when the folder cannot be written, locked or filled.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder = folder
        self.max_bytes = max_bytes
        self._locks: dict[Entry, TextIO] = {}

    def close(self) -> None:
        self.hold_only([])

    def hold_only(self, entries: Sequence[Entry]) -> None:
        """Let go of all others, which may then be removed."""
        for entry in self._locks.keys() - set(entries):
            self._locks.pop(entry).close()

    def file(self, entry: Entry) -> Path:
        return self.folder / entry.name / "features"

    def hold(self, entry: Entry) -> bool:
        """Keep the entry from being removed; whether it is whole. A damaged one is removed."""
        with waiting(self.folder / ".lock"):
            path = self.folder / f"{entry.name}.lock"
            if entry not in self._locks:
                lock = path.open("a+")  # NFS wants to read what is shared, and write what is not
                try:
                    fcntl.flock(lock, fcntl.LOCK_SH)
                except OSError:
                    lock.close()
                    raise
                self._locks[entry] = lock
            os.utime(path)
            return self._is_whole(entry)

    def _is_whole(self, entry: Entry) -> bool:
        place = self.folder / entry.name
        if not os.path.lexists(place) or (place.is_dir() and not (place / "entry.json").exists()):
            return False
        found = described(place)
        if found is not None and found["bytes"] == entry.bytes:
            return True
        log.warning("The cache entry %s is damaged: it is computed again.", place)
        if place.is_dir() and not place.is_symlink():
            shutil.rmtree(place)
        else:
            place.unlink()
        return False

    def fill(self, entries: Sequence[Entry], compute: Callable[[Iterator[Part]], None]) -> None:
        """Make the entries, which have the same parts, whole.

        `compute` gets the parts that nobody has computed or computes, claimed as it comes to
        them. Those that other processes compute are waited for, and taken over when such a
        process ends before its part.
        """
        opened: list[Part] = []
        pending = dict(enumerate(entries[0].parts))
        try:
            self._begin(entries)
            waited = 0.0
            while pending:
                parts = self._claim_all(entries, pending, opened)
                first = next(parts, None)
                if first is not None:
                    compute(chain([first], parts))
                elif pending:
                    waited = self._wait(waited, len(pending), len(entries[0].parts))
            self._end(entries)
        except OSError:
            self._discard(entries, opened)
            raise
        finally:
            for part in opened:
                part.close()

    def _begin(self, entries: Sequence[Entry]) -> None:
        with waiting(self.folder / ".lock"):
            missing = [entry for entry in entries if not self._is_whole(entry)]
            if missing:
                self._make_room(missing)
            for entry in missing:
                file, parts = self.file(entry), self.folder / entry.name / "parts"
                if not file.exists() or file.stat().st_size != entry.bytes:
                    shutil.rmtree(parts, ignore_errors=True)
                parts.mkdir(parents=True, exist_ok=True)
                with file.open("ab") as whole:
                    whole.truncate(entry.bytes)

    def _claim_all(
        self, entries: Sequence[Entry], pending: dict[int, range], opened: list[Part]
    ) -> Iterator[Part]:
        """Those of the pending parts that can be had; what is whole is no longer pending."""
        for number, rows in list(pending.items()):
            part = Part(rows)
            opened.append(part)
            # all processes claim in one order: who has the first entry's part gets the others'
            is_free = all(self._claim(entry, number, part) for entry in entries)
            if part.entries:
                yield part
            if is_free:
                del pending[number]

    def _claim(self, entry: Entry, number: int, part: Part) -> bool:
        """Add the entry to the part unless it is there already; False: another has it."""
        try:
            claim = (self.folder / entry.name / "parts" / f"{number:04d}").open("a+")
        except FileNotFoundError:
            return True  # another process found every part there and ended the entry
        try:
            fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            claim.close()
            return False
        claim.seek(0)
        if re.fullmatch(CHECKSUM, claim.read()):
            claim.close()
        else:
            claim.truncate(0)
            part.take(entry, claim, self.file(entry).open("r+b"))
        return True

    @staticmethod
    def _wait(waited: float, missing: int, parts: int) -> float:
        time.sleep(POLL)
        if waited <= PATIENCE < waited + POLL:
            log.info(
                "Cache: another process computes %d of %d parts; waiting for it.", missing, parts
            )
        return waited + POLL

    def _end(self, entries: Sequence[Entry]) -> None:
        with waiting(self.folder / ".lock"):
            for entry in entries:
                parts = self.folder / entry.name / "parts"
                if not parts.exists():
                    continue
                numbers = range(len(entry.parts))
                checksums = [(parts / f"{number:04d}").read_text() for number in numbers]
                write_json(
                    parts.with_name("entry.json"),
                    {
                        **entry.about,
                        "format": FORMAT,
                        "bytes": entry.bytes,
                        "part_bytes": entry.part_rows * entry.row_bytes,
                        "crc32": checksums,
                    },
                )
                # at once: another process, in the middle of claiming, may add to a folder it finds
                ended = parts.with_name("ended")
                shutil.rmtree(ended, ignore_errors=True)  # of a process that was killed here
                shutil.rmtree(parts.rename(ended), ignore_errors=True)

    def check_room(self, entries: Sequence[Entry]) -> None:
        """Raise OSError when the disk or `max_bytes` cannot hold all of these together."""
        with waiting(self.folder / ".lock"):
            if not all(self._is_whole(entry) for entry in entries):
                self._room(entries)

    def _make_room(self, entries: Sequence[Entry]) -> None:
        """Remove the least recently used entries that nobody uses, until these fit."""
        unused, excess = self._room(entries)
        for item in unused:
            if excess > 0 and remove(item.path):
                excess -= item.bytes
        remove_idle_locks(self.folder)

    def _room(self, entries: Sequence[Entry]) -> tuple[list[Item], int]:
        """What may go, the least recently used first, and how many bytes of it have to."""
        own = {entry.name for entry in entries}
        needed = sum(entry.bytes for entry in entries)
        others = [
            item
            for item in contents(self.folder)
            if item.state != "foreign" and item.path.name not in own
        ]
        unused = [item for item in others if not item.in_use]
        free = shutil.disk_usage(self.folder).free
        lacking = needed - sum(allocated(self.folder / name) for name in own) - free
        # held ones as they were counted when room for all was looked for: files take whole blocks
        held = {entry.name: entry.bytes for entry in self._locks}
        taken = sum(held.get(item.path.name, item.bytes) for item in others)
        excess = max(lacking, taken + needed - self.max_bytes)
        if excess > sum(item.bytes for item in unused):
            used = taken - sum(item.bytes for item in unused)
            raise OSError(
                f"{readable(needed)} are needed, {readable(free)} are free on the disk and "
                f"cache.max_bytes allows {readable(self.max_bytes)}, of which {readable(used)} "
                "are in use"
            )
        return sorted(unused, key=lambda item: item.last_used), excess

    def _discard(self, entries: Sequence[Entry], opened: Sequence[Part]) -> None:
        """Leave no unfinished file on a full disk, unless another process still uses it."""
        with suppress(OSError):
            for part in opened:
                part.close()
        with suppress(OSError), waiting(self.folder / ".lock"):
            for entry in entries:
                if (lock := self._locks.pop(entry, None)) is not None:
                    lock.close()
                if not (self.folder / entry.name / "entry.json").exists():
                    remove(self.folder / entry.name)
