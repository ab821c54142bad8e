"""What lies in a folder of cached entries: for people, and for making room. Needs no torch."""

import fcntl
import json
import os
import re
import shutil
import zlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

NAME = r"[0-9a-f]{40}"
CHECKSUM = r"[0-9a-f]{8}"
SHA256 = r"[0-9a-f]{64}"


@dataclass(frozen=True)
class Item:
    """`bytes` are those on the disk; `last_used` is in seconds since 1970."""

    path: Path
    state: Literal["whole", "unfinished", "damaged", "foreign"]
    bytes: int
    last_used: float
    in_use: bool
    about: dict[str, Any]


def contents(folder: Path) -> list[Item]:
    """Everything in the folder but locks, by name."""
    if not folder.is_dir():
        return []
    items = []
    for path in sorted(folder.iterdir()):
        if not path.name.startswith(".") and path.suffix != ".lock":
            with suppress(FileNotFoundError):  # another process has just removed it
                items.append(_item(path))
    return items


def _item(path: Path) -> Item:
    lock = path.with_suffix(".lock")
    about = described(path)
    state: Literal["whole", "unfinished", "damaged", "foreign"] = "foreign"
    if re.fullmatch(NAME, path.name) and (path.is_dir() or path.is_symlink()):
        state = "whole" if about is not None else "unfinished"
        if about is None and (not path.exists() or (path / "entry.json").exists()):
            state = "damaged"
    used = (lock if lock.exists() else path).lstat().st_mtime
    return Item(path, state, allocated(path), used, lock.exists() and _is_locked(lock), about or {})


def described(entry: Path) -> dict[str, Any] | None:
    """Its entry.json; None without one, or where the file is not as long as that says.

    A folder of decoded images (see data/decoded.py) has no such file, but `images`, their number.
    """
    try:
        about: dict[str, Any] = json.loads((entry / "entry.json").read_text("utf-8"))
        if about.get("holds") == "images":
            return about | {"images": len(_images(entry))}
        size = (entry / about.get("file", "features")).stat().st_size
        return about if size == about["bytes"] else None
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return None


def _images(entry: Path) -> list[Path]:
    return [path for path in sorted(entry.iterdir()) if re.fullmatch(SHA256, path.name)]


def allocated(path: Path) -> int:
    """Bytes on the disk: an unfinished file has holes."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_blocks * 512 for file in files if file.is_file())


def problem(item: Item) -> str | None:
    """What is wrong with an item, by its checksums; None where nothing is."""
    if item.state == "foreign":
        return "is not tlx's: nothing reads it"
    if item.state == "damaged":
        return "is not what its entry.json says: it will be computed again"
    if item.state == "unfinished":
        return None if item.in_use else "was interrupted: the next run that needs it goes on"
    if item.about.get("holds") == "images":
        changed = [path.name for path in _images(item.path) if not _is_sound(path)]
        return f"{len(changed)} images have changed, such as {changed[0]}" if changed else None
    expected = item.about.get("crc32", [])
    with (item.path / item.about.get("file", "features")).open("rb") as file:
        for number, checksum in enumerate(expected):
            if f"{zlib.crc32(file.read(item.about['part_bytes'])):08x}" != checksum:
                return f"part {number} of {len(expected)} has changed since it was written"
    return None


def _is_sound(image: Path) -> bool:
    """A decoded image ends in its own checksum, 4 bytes. One that has just gone is none's fault."""
    try:
        values = image.read_bytes()
    except FileNotFoundError:
        return True
    return zlib.crc32(values[:-4]).to_bytes(4, "big") == values[-4:]


def remove(entry: Path) -> bool:
    """Remove an entry unless a process uses it. The caller holds the folder's own lock."""
    lock = entry.with_suffix(".lock")
    with lock.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        if entry.is_symlink():
            entry.unlink()
        elif entry.exists():
            shutil.rmtree(entry)
        lock.unlink()
    return True


def remove_idle_locks(folder: Path) -> None:
    """Those of entries that were never made. The caller holds the folder's own lock."""
    for lock in folder.glob("*.lock"):
        entry = lock.with_suffix("")
        if re.fullmatch(NAME, entry.name) and not os.path.lexists(entry):
            with suppress(PermissionError):  # another user's
                remove(entry)


def _is_locked(lock: Path) -> bool:
    """Whether a process uses the entry, as far as can be told here."""
    with lock.open("rb+" if os.access(lock, os.W_OK) else "rb") as file:  # rb+: NFS wants it
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def readable(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
