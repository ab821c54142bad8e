"""From a folder of photographs or the ELPV data set to a manifest, checked before training."""

import hashlib
import logging
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from tlx.data.images import UnreadableImage, decode_rgb
from tlx.data.manifest import SPLITS, Manifest, Sample, natural_key
from tlx.data.splits import check_fractions, split_stratified
from tlx.errors import UserError, unknown

log = logging.getLogger(__name__)

SOURCES = ("folder", "elpv")
ON_ERROR = ("skip", "error")
EXTENSIONS = {
    *(".avif", ".bmp", ".dib", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".mpo"),
    *(".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp"),
}
SPLIT_FOLDERS = {
    "train": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}
TOOL_NAMES = {
    *("__macosx", "__pycache__", "@eadir", "$recycle.bin", "system volume information"),
    *("thumbs.db", "desktop.ini"),
}
# The test images of ELPV are the same in every run, whatever the run's seed.
ELPV_TEST_SEED = 0
ELPV_DEFECTIVE = 0.5  # defect probability from which a cell counts as defective


@dataclass(frozen=True)
class Record:
    """An image before it is read. `split` is '' until one is drawn, within its stratum."""

    path: str
    label: str
    stratum: str
    split: str = ""


def build_manifest(  # noqa: PLR0913 — the settings of data=, by name
    source: str, *, root: Path | None, val: float, test: float, seed: int, on_error: str
) -> Manifest:
    """Scans, reads and hashes every image, and splits what does not come split.

    `val` and `test` are fractions of all images; where a folder has train and test but no val,
    `val` is the fraction taken out of train. Raises UserError naming what is wrong and the fix.
    """
    if on_error not in ON_ERROR:
        raise unknown("data.on_error", on_error, ON_ERROR)
    check_fractions(val, test)
    root = data_root(source, root)
    records = scan_elpv(root) if source == "elpv" else scan_folder(root)
    digests = _read_all(root, records, on_error)
    readable = [record for record in records if record.path in digests]
    _check_classes(root, records, readable)
    splits = _draw_splits(source, readable, val, test, seed)
    samples = [
        Sample(record.path, record.label, split, "", digests[record.path])
        for record, split in zip(readable, splits, strict=True)
    ]
    manifest = Manifest.of(root, samples)
    _tell(manifest)
    return manifest


def data_root(source: str, root: Path | None) -> Path:
    """The folder that a manifest's paths are relative to."""
    if source not in SOURCES:
        raise unknown("data", source, SOURCES)
    if root is None:
        if source == "elpv":
            return _elpv_package()
        raise UserError("no images given: set data.root=DIR, a folder with one folder per class.")
    root = root.expanduser()
    if not root.exists():
        raise UserError(f"no such folder: {root} (data.root).")
    if not root.is_dir():
        raise UserError(f"data.root={root} is a file; it takes a folder with a folder per class.")
    return root


def _elpv_package() -> Path:
    spec = find_spec("elpv_dataset")
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            "data=elpv needs the elpv-dataset package: pip install 'tlx[demo]', "
            "or set data.root to the folder that holds its labels.csv."
        )
    return Path(spec.submodule_search_locations[0]) / "data"


def find_images(place: Path, on_error: str) -> tuple[Path, list[Path]]:
    """The folder that paths are relative to, and the readable images in `place`, a file or folder.

    Raises UserError when there is none, or one cannot be read and `on_error` is not skip.
    """
    if place.is_file():
        root, paths = place.parent, [place.name]
    elif place.is_dir():
        root = place
        found = _images_below(place, Counter())
        paths = sorted((path.relative_to(place).as_posix() for path in found), key=natural_key)
    else:
        raise UserError(f"no such file or folder: {place}.")
    if not paths:
        raise UserError(f"no images in {place}. Read are: {', '.join(sorted(EXTENSIONS))}.")
    readable = _read_all(root, [Record(path, "", "") for path in paths], on_error)
    return root, [root / path for path in paths if path in readable]


def scan_elpv(root: Path) -> list[Record]:
    """Rows of labels.csv: path, defect probability, cell type (mono or poly)."""
    table = root / "labels.csv"
    if not table.is_file():
        raise UserError(f"no labels.csv in {root}: it is not the ELPV data set (data.root).")
    records = []
    for number, line in enumerate(table.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            path, probability, cell = line.split()
            label = "defective" if float(probability) >= ELPV_DEFECTIVE else "functional"
        except ValueError as error:
            raise UserError(
                f"{table}, line {number}: {line!r} is not a path, a probability and a cell type."
            ) from error
        records.append(Record(path, label, f"{label} {cell}"))
    return records


def scan_folder(root: Path) -> list[Record]:
    """A folder per class, or such folders inside train, val (valid, validation) and test.

    Hidden and tool folders are passed over. Raises UserError when a class folder is empty; in val
    and test it may be.
    """
    others: Counter[str] = Counter()
    folders = {entry.name: entry for entry in _entries(root) if entry.is_dir()}
    roles = {name: SPLIT_FOLDERS[key] for name in folders if (key := name.lower()) in SPLIT_FOLDERS}
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
    if others:
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in others.most_common(8))
        log.warning("ignored %d files that are not images: %s", others.total(), kinds)
    if not records:
        raise UserError(
            f"no images in {root} (data.root): it takes a folder per class, with files of "
            f"the kinds {' '.join(sorted(EXTENSIONS))}."
        )
    return records


def _scan_splits(
    root: Path, folders: dict[str, Path], roles: dict[str, str], others: Counter[str]
) -> list[Record]:
    for split, count in Counter(roles.values()).items():
        if count > 1:
            names = " and ".join(sorted(name for name in roles if roles[name] == split))
            raise UserError(f"{root} has {names}, which both mean {split}: keep one.")
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
    entries = _entries(parent)
    loose = _images(parent, [entry.name for entry in entries if not entry.is_dir()], others)
    if loose:
        log.warning("ignored %d images in %s that lie in no class folder", len(loose), parent)
    for folder in filter(Path.is_dir, entries):
        paths = sorted(_images_below(folder, others))
        if not paths and split not in ("val", "test"):  # those are compared with train later
            raise UserError(f"the class folder {folder} has no image: fill it or remove it.")
        records += [
            Record(path.relative_to(root).as_posix(), folder.name, folder.name, split)
            for path in paths
        ]
    return records


def _entries(folder: Path) -> list[Path]:
    return sorted(
        (entry for entry in folder.iterdir() if _visible(entry.name)),
        key=lambda entry: natural_key(entry.name),
    )


def _visible(name: str) -> bool:
    return not name.startswith(".") and name.lower() not in TOOL_NAMES


def _images_below(folder: Path, others: Counter[str]) -> Iterator[Path]:
    """Links are followed, each real folder once: a link to a parent must not loop."""
    seen = set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = filter(_visible, folders)
        yield from _images(Path(parent), filter(_visible, files), others)


def _images(parent: Path, names: Iterable[str], others: Counter[str]) -> list[Path]:
    """The files that are images by their suffix; the others are counted."""
    found = []
    for name in names:
        suffix = os.path.splitext(name)[1].lower()
        if suffix in EXTENSIONS:
            found.append(parent / name)
        else:
            others[suffix or "(no suffix)"] += 1
    return found


def _read_all(root: Path, records: list[Record], on_error: str) -> dict[str, str]:
    """sha256 of each image that decodes in full, by path; the others are named."""
    digests, bad = {}, []
    with ThreadPoolExecutor() as pool:
        results = pool.map(lambda record: _digest(root / record.path), records)
        for record, result in zip(records, results, strict=True):
            if isinstance(result, UnreadableImage):
                bad.append(result)
            else:
                digests[record.path] = result
    if bad and on_error == "error":
        listed = "\n".join(f"  {error.path}: {error.reason}" for error in bad[:10])
        more = f"\n  and {len(bad) - 10} more" if len(bad) > 10 else ""
        raise UserError(
            f"{len(bad)} of {len(records)} images cannot be read:\n{listed}{more}\n"
            "Replace or remove them, or set data.on_error=skip to go on without them."
        )
    for error in bad:
        log.warning("skipped: %s", error)
    return digests


def _digest(path: Path) -> str | UnreadableImage:
    try:
        data = path.read_bytes()
        decode_rgb(data, path)
    except UnreadableImage as error:
        return error
    except OSError as error:
        return UnreadableImage(path, error.strerror or str(error))
    return hashlib.sha256(data).hexdigest()


def _check_classes(root: Path, records: list[Record], readable: list[Record]) -> None:
    """Raises UserError when the classes cannot be learned; says aloud which split lacks one."""
    labels = _labels_by_split(readable)
    for split, listed in _labels_by_split(records).items():
        if lost := listed - labels[split]:
            raise UserError(
                f"no image of the class {_listed(lost)} in {root / split} can be read: "
                "replace the files or remove the folder."
            )
    trained = labels["train"] | labels[""]
    if len(trained) < 2:
        raise UserError(
            f"one class only ({_listed(trained)}) in {root}: a classifier needs at least two, "
            "each with its own folder. Is data.root a level too high or too low?"
        )
    for split in sorted(labels.keys() & {"val", "test"}):
        if strange := labels[split] - trained:
            raise UserError(
                f"{split} has the class {_listed(strange)}, which train does not have: "
                f"add it to train or remove it from {split}. Train has {_listed(trained)}."
            )
        if missing := _listed(trained - labels[split]):
            log.warning("%s has no image of the class %s: it is not measured there", split, missing)


def _labels_by_split(records: Iterable[Record]) -> defaultdict[str, set[str]]:
    labels = defaultdict(set)
    for record in records:
        labels[record.split].add(record.label)
    return labels


def _listed(names: Iterable[str]) -> str:
    ordered = sorted(names, key=natural_key)
    more = f" and {len(ordered) - 10} more" if len(ordered) > 10 else ""
    return ", ".join(repr(name) for name in ordered[:10]) + more


def _draw_splits(
    source: str, records: list[Record], val: float, test: float, seed: int
) -> list[str]:
    """One split per record."""
    present = {record.split for record in records}
    if source == "elpv":
        drawn = _draw(records, val=0, test=test, seed=ELPV_TEST_SEED)
        rest = [record for record in records if drawn[record.path] == "train"]
        drawn |= _draw(rest, val=val / (1 - test), test=0, seed=seed)
    elif present == {""}:
        drawn = _draw(records, val=val, test=test, seed=seed)
    else:
        drawn = {record.path: record.split for record in records}
        if "test" not in present:
            log.warning("there is no test folder: this run cannot measure how good the model is")
        if "val" not in present:
            log.warning("there is no val folder: val is %g of the train images", val)
            train = [record for record in records if record.split == "train"]
            drawn |= _draw(train, val=val, test=0, seed=seed)
    return [drawn[record.path] for record in records]


def _draw(records: list[Record], *, val: float, test: float, seed: int) -> dict[str, str]:
    paths = [record.path for record in records]
    strata = [record.stratum for record in records]
    splits = split_stratified(paths, strata, val=val, test=test, seed=seed)
    return dict(zip(paths, splits, strict=True))


def _tell(manifest: Manifest) -> None:
    sizes = ", ".join(f"{len(manifest.split(name))} {name}" for name in SPLITS)
    log.info("%d classes; images: %s", len(manifest.classes), sizes)
    splits_of = defaultdict(set)
    for sample in manifest.samples:
        splits_of[sample.sha256].add(sample.split)
    if shared := sum(len(splits) > 1 for splits in splits_of.values()):
        log.warning(
            "%d images are byte for byte the same in two splits: the metrics will flatter", shared
        )
