"""The decode cache: images as preprocessing leaves them, (3, H, W) uint8, a file each.

A file is named by the sha256 of what it was made of, in a folder of all else its pixels depend
on, and ends in a checksum. So nothing is ever stale, processes share it without locks, and what
is missing or damaged is made again. `disk` is in tlx's cache folder; `ram` is on the system's
memory disk and goes with the process.
"""

import atexit
import fcntl
import hashlib
import logging
import os
import shutil
import tempfile
import zlib
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from math import prod
from pathlib import Path
from threading import get_ident
from typing import Literal

import numpy as np
import PIL
import simplejpeg
import torch
from numpy.typing import NDArray
from torch import Tensor

from tlx.data.scan_cache import Stamp, stamp
from tlx.files import cache_dir, waiting, write_json

log = logging.getLogger(__name__)

FORMAT = 2
CHECKSUM = 4  # bytes
MEMORY_DISK = Path("/dev/shm")


@dataclass(frozen=True)
class DecodeCache:
    """Where decoded images are kept, and how many bytes of them."""

    where: Literal["off", "ram", "disk"] = "off"
    max_bytes: int = 0


class DecodedImages:
    """Those of some files, by their place among them.

    Passed over are files that changed since this was made, and those without a sha256.
    """

    def __init__(
        self, folder: Path, shape: Sequence[int], files: Sequence[Path], contents: Sequence[str]
    ) -> None:
        """`contents`: each file's sha256."""
        self.folder = folder
        self.shape = tuple(shape)
        self.files = files
        self.contents = contents
        self.stamps = [_stamp(path) for path in files]

    def load(self, index: int) -> Tensor | None:
        if not self.contents[index] or _stamp(self.files[index]) != self.stamps[index]:
            return None
        path = self.folder / self.contents[index]
        try:
            values = np.fromfile(path, dtype=np.uint8)
        except OSError:
            return None
        pixels = values[:-CHECKSUM]
        if pixels.size != prod(self.shape) or _checksum(pixels) != values[-CHECKSUM:].tobytes():
            log.warning("%s in the decode cache is damaged: it is made again.", path)
            return None
        return torch.from_numpy(pixels).view(self.shape)

    def keep(self, index: int, data: bytes, pixels: Tensor) -> None:
        """`data` is what the file held when `pixels` were made."""
        name = self.contents[index]
        if not name or hashlib.sha256(data).hexdigest() != name:
            return
        values = pixels.contiguous().numpy()
        temporary = self.folder / f".{name}.{os.getpid()}.{get_ident()}"
        try:
            temporary.write_bytes(values.tobytes() + _checksum(values))
            temporary.replace(self.folder / name)
        except OSError as error:
            if any(self.contents):  # said once, not by each thread
                self.contents = [""] * len(self.contents)
                log.warning("The decode cache %s takes no more images: %s.", self.folder, error)
            temporary.unlink(missing_ok=True)


def _checksum(pixels: NDArray[np.uint8]) -> bytes:
    return zlib.crc32(pixels.data).to_bytes(CHECKSUM, "big")


def _stamp(path: Path) -> Stamp | None:
    try:
        return stamp(path)
    except OSError:
        return None


def open_cache(
    settings: DecodeCache,
    preprocess: object,
    shape: Sequence[int],
    splits: Mapping[str, tuple[Sequence[Path], Sequence[str]]],
) -> dict[str, DecodedImages]:
    """For each split's files and their sha256s, the first splits first, as far as the bytes go.

    `shape` is that of one image; `preprocess` is told from others by its repr.
    """
    size = prod(shape) + CHECKSUM
    rows = settings.max_bytes // size
    try:
        folder = _open_folder(settings, preprocess, shape)
        kept, left = {}, rows
        for name, (files, contents) in splits.items():
            first = [sha256 if place < left else "" for place, sha256 in enumerate(contents)]
            kept[name] = DecodedImages(folder, shape, files, first)
            left = max(left - len(contents), 0)
        wanted = {name for images in kept.values() for name in images.contents if name}
        _make_room(folder, wanted, settings.max_bytes - len(wanted) * size)
    except OSError as error:
        log.warning("No decode cache: %s.", error)
        return {}
    total = sum(len(contents) for _, contents in splits.values())
    log.info(
        "Decode cache: %d of %d images, in %s%s",
        *(min(rows, total), total, folder),
        "." if rows >= total else "; data.decode_cache_bytes has no room for the others.",
    )
    return kept


def _open_folder(settings: DecodeCache, preprocess: object, shape: Sequence[int]) -> Path:
    identity = f"{FORMAT}, {preprocess!r}, Pillow {PIL.__version__}, torch {torch.__version__}"
    identity += f", simplejpeg {simplejpeg.__version__}"
    root = cache_dir() / "images" if settings.where == "disk" else memory_folder()[0]
    folder = root / hashlib.sha256(identity.encode()).hexdigest()[:40]
    with waiting(root / ".lock"):
        _use(folder.with_suffix(".lock"))
        folder.mkdir(exist_ok=True)
        write_json(folder / "entry.json", {"holds": "images", "shape": shape, "made by": identity})
    return folder


@cache
def _use(lock: Path) -> int:
    """Until the process ends, `tlx cache` sees that the folder is in use; also its last use."""
    held = os.open(lock, os.O_RDWR | os.O_CREAT)  # RDWR: for a shared lock on NFS
    fcntl.flock(held, fcntl.LOCK_SH)
    os.utime(lock)
    return held


def _make_room(folder: Path, wanted: Collection[str], others_bytes: int) -> None:
    """Remove the oldest images of other runs, whatever their size, beyond `others_bytes`."""
    others = []
    for path in folder.parent.glob("*/[!.]*"):  # a name with a dot is being written
        if path.name != "entry.json" and not (path.parent == folder and path.name in wanted):
            with suppress(FileNotFoundError):  # another run has removed it
                status = path.stat()
                others.append((status.st_mtime_ns, status.st_size, path))
    excess = sum(size for _, size, _ in others) - others_bytes
    for _, size, path in sorted(others):
        if excess <= 0:
            break
        path.unlink(missing_ok=True)
        excess -= size


@cache
def memory_folder() -> tuple[Path, int]:
    """One for this process, and the lock that says it lives. Those of killed processes go."""
    root = MEMORY_DISK if MEMORY_DISK.is_dir() else Path(tempfile.gettempdir())
    for old in root.glob("tlx-images-*"):
        with suppress(OSError), (old / "lock").open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(old)
    folder = Path(tempfile.mkdtemp(prefix="tlx-images-", dir=root))
    held = os.open(folder / "lock", os.O_WRONLY | os.O_CREAT)
    fcntl.flock(held, fcntl.LOCK_SH)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder, held
