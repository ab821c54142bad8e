"""A zip or tar of images becomes a folder in the cache, unpacked once and without trusting it.

Refused by the member's name: paths that lead out (absolute, a drive, `..`), links, devices, what
is encrypted, damaged or there twice; and archives of more than `MAX_FILES` members or that unpack
to more than 50 GB or, above 100 MB, to more than 100 times their size. Photographs hardly shrink
in an archive, and even plain bitmaps rarely a hundredfold; a bomb does, a thousandfold.
"""

import hashlib
import re
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from lzma import LZMAError
from pathlib import Path
from typing import IO

from tlx.data.folders import EXTENSIONS, visible
from tlx.errors import UserError
from tlx.files import cache_dir, waiting

MAX_FILES = 200_000
MAX_BYTES = 50 * 10**9
MAX_RATIO = 100
ALWAYS_FINE = 100 * 10**6  # bytes, whatever the ratio
CHUNK = 1 << 20
BROKEN = (
    *(zipfile.BadZipFile, tarfile.TarError, zlib.error, LZMAError, EOFError, OSError),
    *(NotImplementedError, RuntimeError, ValueError),  # zipfile on methods and passwords
)


@dataclass(frozen=True)
class _Member:
    name: str
    kind: str  # file | folder | what else it is, in words
    info: zipfile.ZipInfo | tarfile.TarInfo


def is_archive(path: Path) -> bool:
    return zipfile.is_zipfile(path) or tarfile.is_tarfile(path)


def unpacked(archive: Path) -> Path:
    """The folder with the archive's content: a single folder at its top is stepped into.

    Raises UserError naming the member that is refused; nothing of the archive is left then.
    """
    digest = hashlib.sha256()
    with archive.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    target = cache_dir() / "archives" / digest.hexdigest()
    if not target.is_dir():
        with waiting(target.with_suffix(".lock")):
            if not target.is_dir():
                _unpack(archive, target)
    return _inner(target)


def _unpack(archive: Path, target: Path) -> None:
    """All of it, or nothing. What a killed process left is thrown away first."""
    partial = target.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        _extract(archive, partial)
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _extract(archive: Path, folder: Path) -> None:
    left = min(MAX_BYTES, max(ALWAYS_FINE, MAX_RATIO * archive.stat().st_size))
    name = ""
    try:
        with _opened(archive) as source:
            for number, member in enumerate(_members(source), start=1):
                name = member.name
                path = folder / _safe(member)
                if number > MAX_FILES:
                    raise ValueError(f"it has more than {MAX_FILES:,} members")
                if member.kind == "folder":
                    path.mkdir(parents=True, exist_ok=True)
                    continue
                path.parent.mkdir(parents=True, exist_ok=True)
                left -= _write(source, member, path, left)
            _read_to_the_end(source, left)
    except FileExistsError:
        raise UserError(f"{archive}: {name!r} is in it twice. Nothing was unpacked.") from None
    except BROKEN as error:
        at = f" at {name!r}" if name else ""
        raise UserError(f"{archive}: {error}{at}. Nothing was unpacked.") from error


@contextmanager
def _opened(archive: Path) -> Iterator[zipfile.ZipFile | tarfile.TarFile]:
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as source:
            yield source
    else:
        with tarfile.open(archive) as tar:
            yield tar


def _members(source: zipfile.ZipFile | tarfile.TarFile) -> Iterator[_Member]:
    if isinstance(source, zipfile.ZipFile):
        for info in source.infolist():
            mode = stat.S_IFMT(info.external_attr >> 16)
            kind = "folder" if info.filename.endswith(("/", "\\")) else "file"
            if mode not in (0, stat.S_IFREG, stat.S_IFDIR):
                kind = "a link" if mode == stat.S_IFLNK else "a device"
            yield _Member(_name(info), kind, info)
    else:
        for entry in source:
            kind = "file" if entry.isreg() else "folder" if entry.isdir() else "a device"
            yield _Member(entry.name, "a link" if entry.islnk() or entry.issym() else kind, entry)


def _name(info: zipfile.ZipInfo) -> str:
    """Where no flag says UTF-8, zipfile takes it for cp437; macOS writes UTF-8 without the flag."""
    if info.flag_bits & 0x800:
        return info.filename
    try:
        return info.filename.encode("cp437").decode("utf-8")
    except UnicodeError:
        return info.filename


def _safe(member: _Member) -> str:
    """The member's path inside the folder. Archives made on Windows may have backslashes."""
    name = member.name.replace("\\", "/")
    if name.startswith("/") or re.match(r"[A-Za-z]:", name):
        raise ValueError("an absolute path is refused")
    if ".." in name.split("/"):
        raise ValueError("a path with .. is refused")
    if member.kind not in ("file", "folder"):
        raise ValueError(f"{member.kind} is refused: pack the images themselves")
    return name


def _write(
    source: zipfile.ZipFile | tarfile.TarFile, member: _Member, path: Path, limit: int
) -> int:
    """Counts what comes out: the sizes that an archive states need not be true."""
    written = 0
    with _reader(source, member) as packed, path.open("xb") as file:
        while chunk := packed.read(CHUNK):
            written += len(chunk)
            if written > limit:
                raise ValueError(
                    f"it unpacks to more than {MAX_BYTES // 10**9} GB or {MAX_RATIO} times its "
                    "size; unpack it yourself if you trust it, and give the folder"
                )
            file.write(chunk)
    return written


def _read_to_the_end(source: zipfile.ZipFile | tarfile.TarFile, limit: int) -> None:
    """A tar's last member comes before the checksum of its compression, which then shows damage."""
    if isinstance(source, tarfile.TarFile) and source.fileobj is not None:
        while limit > 0 and (chunk := source.fileobj.read(CHUNK)):
            limit -= len(chunk)


def _reader(source: zipfile.ZipFile | tarfile.TarFile, member: _Member) -> IO[bytes]:
    if isinstance(source, zipfile.ZipFile):
        return source.open(member.info)  # type: ignore[arg-type]
    packed = source.extractfile(member.info)  # type: ignore[arg-type]
    if packed is None:
        raise ValueError("it has no content")
    return packed


def _inner(folder: Path) -> Path:
    """Down through single folders, as long as folders lie in them: photos/photos/CLASS.

    A licence or a readme beside them does not matter; images do.
    """
    entries = visible(folder)
    folders = [entry for entry in entries if entry.is_dir()]
    has_images = any(Path(entry.name).suffix.lower() in EXTENSIONS for entry in entries)
    if len(folders) == 1 and not has_images:
        inner = Path(folders[0])
        if any(entry.is_dir() for entry in visible(inner)):
            return _inner(inner)
    return folder
