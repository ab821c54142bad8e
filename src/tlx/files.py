"""Files that are whole or not there."""

import fcntl
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tlx.errors import UserError

log = logging.getLogger(__name__)


@contextmanager
def replace_atomically(path: Path) -> Iterator[Path]:
    """Write to the yielded temporary path; on success it becomes `path` in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        if error.filename == str(temporary):
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    with replace_atomically(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8")


@contextmanager
def locked(path: Path, message: str) -> Iterator[None]:
    """Hold `path` as a lock between processes; UserError with `message` when another one does.

    The lock goes with the process, however it ends; the file stays. Where the disk has no locks, as
    some network drives do not, a warning says that nothing is held.
    """
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(message) from None
        except OSError as error:
            log.warning("%s cannot be locked (%s): use it in one process at a time.",
                        path.parent, error)  # fmt: skip
        yield


@contextmanager
def waiting(path: Path) -> Iterator[None]:
    """Hold `path` as a lock between processes, waiting for it; it goes with the process."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def cache_dir() -> Path:
    """Where tlx keeps what it can compute again."""
    if own := os.environ.get("TLX_CACHE_DIR"):
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "tlx"
