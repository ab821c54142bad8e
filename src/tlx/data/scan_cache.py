"""What scans found out about the files of one root, kept until a file changes."""

import hashlib
import logging
import os
import sqlite3
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from tlx.files import cache_dir

log = logging.getLogger(__name__)

FORMAT = 2  # counted up when what is kept changes its meaning
COLUMNS = "reason, sha256, width, height, phash, mean, deviation, is_grey, thumbnail"
SETTLED = 2_000_000_000  # ns: a file changed so shortly before it is read may again, unnoticed


class Stamp(NamedTuple):
    """What tells a file from an older one of the same path.

    Copies may keep the time of another file's contents, as `rsync -t` and `tar` do; nobody sets
    the time of change.
    """

    size: int
    mtime_ns: int
    ctime_ns: int


def stamp(path: Path) -> Stamp:
    """Raises OSError when there is no such file."""
    status = os.stat(path)
    return Stamp(status.st_size, status.st_mtime_ns, status.st_ctime_ns)


class ScanCache:
    """A table of the COLUMNS, one SQLite file per root. It never fails: at worst it is empty.

    `policy` is all that a result depends on beside the file.
    """

    def __init__(self, root: Path, policy: str) -> None:
        self.policy = policy
        self.settled = time.time_ns() - SETTLED
        place = hashlib.sha256(os.fsencode(root.absolute())).hexdigest()[:16]
        self.path = cache_dir() / "scan" / f"{FORMAT}-{place}.sqlite"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.database = self._open(str(self.path))
        except (OSError, sqlite3.Error) as error:
            log.warning("what the images hold cannot be kept in %s: %s", self.path, error)
            self.database = self._open(":memory:")

    @staticmethod
    def _open(name: str) -> sqlite3.Connection:
        database = sqlite3.connect(name, timeout=60)
        database.execute(
            "CREATE TABLE IF NOT EXISTS files (path BLOB, policy TEXT, size INTEGER, "
            f"mtime_ns INTEGER, ctime_ns INTEGER, {COLUMNS}, PRIMARY KEY (path, policy))"
        )
        return database

    def __enter__(self) -> "ScanCache":
        return self

    def __exit__(self, *_: object) -> None:
        self.database.close()

    def find(self, path: str, at: Stamp) -> tuple[Any, ...] | None:
        """The values of COLUMNS, or None when the file is not known as it is now."""
        query = f"SELECT size, mtime_ns, ctime_ns, {COLUMNS} FROM files "
        query += "WHERE path = ? AND policy = ?"
        row = self._first(query, (os.fsencode(path), self.policy))
        return row[3:] if row is not None and row[:3] == at else None

    def digest(self, path: str, at: Stamp) -> str | None:
        """The file's sha256 when any policy knows it."""
        query = "SELECT sha256 FROM files "
        query += "WHERE path = ? AND size = ? AND mtime_ns = ? AND ctime_ns = ?"
        row = self._first(query, (os.fsencode(path), *at))
        return row[0] if row is not None else None

    def _first(self, query: str, values: tuple[Any, ...]) -> tuple[Any, ...] | None:
        try:
            row: tuple[Any, ...] | None = self.database.execute(query, values).fetchone()
        except sqlite3.Error:
            return None
        return row

    def keep(self, rows: Iterable[tuple[str, Stamp, tuple[Any, ...]]]) -> None:
        """(path, stamp from before it was read, the values of COLUMNS) of each file.

        Not of those that changed shortly before this was opened.
        """
        values = [
            (os.fsencode(path), self.policy, *at, *row)
            for path, at, row in rows
            if max(at.mtime_ns, at.ctime_ns) < self.settled
        ]
        marks = ", ".join("?" * (5 + COLUMNS.count(",") + 1))
        try:
            with self.database:
                self.database.executemany(f"REPLACE INTO files VALUES ({marks})", values)
        except sqlite3.Error as error:
            log.warning("what the images hold cannot be kept in %s: %s", self.path, error)
