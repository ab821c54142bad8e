"""Class folders, with or without train, val and test above them; and the walk through folders."""

import logging
import os
import re
import unicodedata
from collections import Counter, defaultdict, deque
from collections.abc import Collection, Iterator, Sequence
from itertools import islice
from pathlib import Path

from tlx.data.manifest import Record, natural_key
from tlx.errors import UserError

log = logging.getLogger(__name__)

EXTENSIONS = {
    *(".avif", ".bmp", ".dib", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".mpo"),
    *(".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp"),
}
SPLIT_NAMES = {  # without "set" or "data", a year, and what is no letter
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
TOOL_NAMES = {
    *("__macosx", "__pycache__", "@eadir", "$recycle.bin", "system volume information"),
    *("thumbs.db", "desktop.ini"),
}


def scan_folder(root: Path) -> list[Record]:
    """A folder per class, or such folders inside train, val (valid, validation) and test, also
    called training, test_set and the like.

    Hidden and tool folders are passed over. Raises UserError when a class folder is empty; in val
    and test it may be.
    """
    others: Counter[str] = Counter()
    folders = {entry.name: Path(entry) for entry in visible(root) if os.path.isdir(entry)}
    roles = {name: split for name in folders if (split := split_named(name)) is not None}
    if len(roles) >= 2 and "train" in roles.values():
        records = _scan_splits(root, folders, roles, others)
    elif roles and len(roles) == len(folders):
        found = " and ".join(sorted(roles))
        fix = f"set data.root={root / found}" if len(roles) == 1 else "add a train folder"
        raise UserError(f"{root} has only {found}, no folder per class: {fix}.")
    else:
        if roles:
            log.warning("taken as a class, not as a split: %s", ", ".join(sorted(roles)))
        records = _scan_classes(root, root, others)
        _tell_if_nested(records)
    tell_of_others(others)
    if not records:
        raise UserError(
            f"no images in {root} (data.root): it takes a folder per class, with files of "
            f"the kinds {' '.join(sorted(EXTENSIONS))}."
        )
    return records


def tell_of_others(others: Counter[str]) -> None:
    if others:
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in others.most_common(8))
        log.warning("ignored %d files that are not images: %s", others.total(), kinds)


def split_named(name: str) -> str | None:
    bare = re.sub(r"[\W_]", "", name.lower())
    return SPLIT_NAMES.get(re.sub(r"(set|data)?(\d{4})?$", "", bare, count=1))


def _tell_if_nested(records: Sequence[Record]) -> None:
    """Two folders or more that hold folders of the same names, or are called seg_train and
    seg_test, may be splits."""
    below: defaultdict[str, set[str]] = defaultdict(set)
    for record in records:
        _, first, *rest = record.path.split("/")
        below[record.label].add(first if rest else "")
    names, *others = below.values() or [set()]
    if others and len(names) > 1 and "" not in names and all(names == own for own in others):
        log.warning(
            "the classes are taken to be %s. Each of them has the folders %s: if those are the "
            "classes, name the folders above them train, val and test, or set data.root to one.",
            _listed(below), _listed(sorted(names)),
        )  # fmt: skip
    words = {word for name in below for word in re.split(r"[\W\d_]+", name.lower())}
    splits = {SPLIT_NAMES[word] for word in words & SPLIT_NAMES.keys()}
    if "train" in splits and len(splits) > 1:
        log.warning(
            "the classes are taken to be %s. If those are splits: tlx takes class folders inside "
            "folders called train, val and test, side by side in data.root.", _listed(below),
        )  # fmt: skip


def _listed(names: Collection[str]) -> str:
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return ", ".join(islice(names, 10)) + more


def _scan_splits(
    root: Path, folders: dict[str, Path], roles: dict[str, str], others: Counter[str]
) -> list[Record]:
    for split, count in Counter(roles.values()).items():
        if count > 1:
            names = " and ".join(sorted(name for name in roles if roles[name] == split))
            raise UserError(
                f"{root} has {names}, which both mean {split}: put them together, or keep one."
            )
    if extra := sorted(set(folders) - set(roles)):
        log.warning("ignored beside train and its like: %s", ", ".join(extra))
    records = []
    for name, split in roles.items():
        found = _scan_classes(root, folders[name], others, split=split)
        if not found:
            raise UserError(
                f"no images in class folders in {folders[name]}: fill it, or move it out of {root}."
            )
        records += found
    return records


def _scan_classes(
    root: Path, parent: Path, others: Counter[str], *, split: str = ""
) -> list[Record]:
    records = []
    named: dict[str, str] = {}
    entries = visible(parent)
    if loose := sum(_is_image(entry, others) for entry in entries if not os.path.isdir(entry)):
        log.warning("ignored %d images in %s that lie in no class folder", loose, parent)
    for entry in filter(os.path.isdir, entries):
        label = unicodedata.normalize("NFC", entry.name)  # macOS writes é as e and an accent
        _check_name(entry, label, named)
        above = Path(entry).relative_to(root).as_posix()
        paths = sorted(f"{above}/{path}" for path in images_below(Path(entry), others))
        if not paths and split not in ("val", "test"):  # those are compared with train later
            raise UserError(f"the class folder {entry.path} has no image: fill it or remove it.")
        records += [Record(path, label, label, split) for path in paths]
    return records


def _check_name(entry: os.DirEntry[str], label: str, named: dict[str, str]) -> None:
    if not label.isascii() and any("\ud800" <= c <= "\udfff" for c in label):
        raise UserError(
            f"the name of the class folder {entry.path!r} is not UTF-8, and goes into tables "
            "and reports: rename it."
        )
    if label in named:
        raise UserError(
            f"{entry.path} has a twin whose name looks the same ({entry.name!a} and "
            f"{named[label]!a}, one class to a reader): put their images into one folder."
        )
    named[label] = entry.name


def images_below(folder: Path, others: Counter[str] | None = None) -> Iterator[str]:
    """The files that are images by their suffix; the others are counted, by suffix, in `others`.
    Paths are relative to `folder`.

    Links are followed, after what is no link, and each real folder once: a link to a parent must
    not loop.
    """
    others = Counter() if others is None else others
    start = os.path.join(folder, "")
    seen, waiting = set(), deque([str(folder)])
    while waiting:
        parent = waiting.popleft()
        real = os.path.realpath(parent)
        if real in seen:
            continue
        seen.add(real)
        for entry in visible(parent):
            if entry.is_dir(follow_symlinks=False):
                waiting.appendleft(entry.path)
            elif os.path.isdir(entry):
                waiting.append(entry.path)
            elif _is_image(entry, others):
                yield entry.path[len(start) :]


def visible(folder: str | Path) -> list[os.DirEntry[str]]:
    """What a folder holds, in natural order, without hidden entries and those of tools."""
    try:
        with os.scandir(folder) as entries:
            kept = [e for e in entries if not e.name.startswith(".")]
    except OSError as error:
        raise UserError(
            f"cannot list the folder {folder}: {error.strerror}. Give yourself access to it, or "
            "move it out of data.root."
        ) from error
    kept = [entry for entry in kept if entry.name.lower() not in TOOL_NAMES]
    return sorted(kept, key=lambda entry: natural_key(entry.name))


def _is_image(entry: os.DirEntry[str], others: Counter[str]) -> bool:
    """A link with an image's suffix that points nowhere counts: reading names it."""
    suffix = os.path.splitext(entry.name)[1].lower()
    dangling = entry.is_symlink() and not os.path.exists(entry)
    if suffix in EXTENSIONS and (dangling or os.path.isfile(entry)):
        return True
    if dangling:
        raise UserError(
            f"{entry.path} is a link to {os.readlink(entry)}, which is not there: mend it or "
            "remove it."
        )
    others[suffix or "(no suffix)"] += 1
    return False
