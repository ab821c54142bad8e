"""From what data= names to a manifest: listed, read in full, grouped and split before training."""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path

from tlx.data.archives import is_archive, unpacked
from tlx.data.classes import check_classes
from tlx.data.duplicates import copies
from tlx.data.folders import EXTENSIONS, images_below, scan_folder, tell_of_others
from tlx.data.groups import group_names
from tlx.data.images import Decoding, UnreadableImage
from tlx.data.leaks import settle_leaks
from tlx.data.manifest import SPLITS, Manifest, Record, Sample, natural_key
from tlx.data.scan import Scanned, scan, verify
from tlx.data.splits import draw_splits, few_shot
from tlx.data.tables import find_below, read_elpv, read_table
from tlx.data.torchvision_sets import images_root, read_torchvision
from tlx.errors import UserError
from tlx.specs import DataSpec

log = logging.getLogger(__name__)

# The test images of ELPV are the same in every run, whatever the run's seed.
ELPV_TEST_SEED = 0


def build_manifest(spec: DataSpec, *, seed: int) -> Manifest:
    """Lists, reads and hashes every image, and splits what does not come split.

    `spec.val` and `spec.test` are fractions of all images; where test comes given and val does
    not, `val` is the fraction taken out of train. Raises UserError naming what is wrong and the
    fix.
    """
    seed = seed if spec.split_seed is None else spec.split_seed
    root = data_root(spec)
    records = list_records(spec, root)
    scanned = scan(root, [r.path for r in records], Decoding(alpha=spec.alpha, icc=spec.icc))
    read = readable(scanned, spec.on_error, option="data.on_error")
    digests = {path: found.sha256 for path, found in read.items()}
    there = [record for record in records if record.path in read]
    check_classes(root, records, there)
    there = _with_groups(there, group_names(there, spec.group, []))
    if spec.on_leak != "warn" and (settled := settle_leaks(there, digests, spec.on_leak)) != there:
        there = settled
        check_classes(root, there, there)  # train may have lost all it had of one
    if spec.keep_together != "none" and not _comes_split(there, spec):
        drawn = {record.path: read[record.path] for record in there if record.split != "test"}
        same = copies(drawn, near=spec.keep_together == "near")
        there = _with_groups(there, group_names(there, None, same))
    there = settle_leaks(_split(spec, there, seed), digests, spec.on_leak)
    if spec.split != "sequential":  # which says itself what a split lacks
        check_classes(root, there, there)
    if spec.per_class is not None:
        there = _few(there, spec.per_class, seed)
    manifest = Manifest.of(root, [_sample(record, read[record.path]) for record in there])
    sizes = ", ".join(f"{len(manifest.split(name))} {name}" for name in SPLITS)
    log.info("%d classes; images: %s", len(manifest.classes), sizes)
    return manifest


def kept_manifest(path: Path, spec: DataSpec) -> Manifest:
    """A run's own. Raises UserError naming files that changed or went; new ones are said aloud."""
    manifest = Manifest.read(path, data_root(spec))
    verify(manifest)
    known = {sample.path for sample in manifest.samples}
    try:
        new = [r.path for r in list_records(spec, manifest.root) if r.path not in known]
    except UserError as error:  # the manifest has all that the run needs
        log.warning("not looked for new images: %s", error)
        new = []
    if new and spec.per_class is None:  # few-shot leaves most images out
        log.warning("%d images are not in the run's manifest, such as %s", len(new), new[0])
    return manifest


def data_root(spec: DataSpec) -> Path:
    """The folder that a manifest's paths are relative to; an archive is unpacked for it."""
    root = Path(spec.root).expanduser() if spec.root is not None else None
    if spec.source == "torchvision":
        return images_root(spec.name, root)
    if root is None:
        if spec.source == "elpv":
            return _elpv_package()
        if spec.source == "csv":
            return _table(spec).parent
        raise UserError("no images given: set data.root=DIR, a folder with one folder per class.")
    if not root.exists():
        raise UserError(f"no such folder: {root} (data.root).")
    if root.is_dir():
        return root
    if spec.source == "elpv" or not is_archive(root):
        raise UserError(
            f"data.root={root} is a file, and no zip or tar archive that is whole; it takes a "
            "folder with a folder per class, or such an archive."
        )
    return unpacked(root)


def list_records(spec: DataSpec, root: Path) -> list[Record]:
    """What the source lists, unread, but for what data.exclude leaves out."""
    return _included(spec.exclude, root, _listed(spec, root))


def _listed(spec: DataSpec, root: Path) -> list[Record]:
    if spec.source == "csv":
        return read_table(_table(spec), root, spec.columns or {})
    if spec.source == "torchvision":
        given = Path(spec.root).expanduser() if spec.root is not None else None
        return read_torchvision(str(spec.name), given)
    return read_elpv(root) if spec.source == "elpv" else scan_folder(root)


def _table(spec: DataSpec) -> Path:
    if spec.table is None:
        raise UserError("no table given: set data.table=FILE, with a path and a label per image.")
    table = Path(spec.table).expanduser()
    if not table.is_file():
        raise UserError(f"no such file: {table} (data.table).")
    return table


def _elpv_package() -> Path:
    spec = find_spec("elpv_dataset")
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            "data=elpv needs the elpv-dataset package: pip install elpv-dataset, "
            "or set data.root to the folder that holds its labels.csv."
        )
    return Path(spec.submodule_search_locations[0]) / "data"


def _included(exclude: str | None, root: Path, records: list[Record]) -> list[Record]:
    """The records without those whose paths the file `exclude` lists, one a line."""
    if exclude is None:
        return records
    file = Path(exclude).expanduser()
    try:
        lines = file.read_text("utf-8-sig", errors="surrogateescape").splitlines()
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror} (data.exclude).") from None
    known, left_out = {record.path for record in records}, set()
    for number, line in enumerate(lines, start=1):
        if text := line.strip():
            where = f"{file}, line {number}"
            path = find_below(root, text, where)
            if path not in known:
                raise UserError(f"{where}: no image {text} in {root}.{_nearest(text, known)}")
            left_out.add(path)
    log.info("%d images are left out by %s", len(left_out), file)
    return [record for record in records if record.path not in left_out]


def _nearest(text: str, paths: Iterable[str]) -> str:
    folder, _, name = text.rpartition("/")
    close = [p for p in paths if p.rpartition("/")[0] == folder or p.rpartition("/")[2] == name]
    near = get_close_matches(text, sorted(close, key=natural_key)[:1000], cutoff=0.5)
    return f" Did you mean {' or '.join(near)}?" if near else ""


def readable(
    scanned: Mapping[str, Scanned | UnreadableImage], on_error: str, *, option: str
) -> dict[str, Scanned]:
    """What was read, by path; what was not is named: as an error, or with skip in the log."""
    bad = [found for found in scanned.values() if isinstance(found, UnreadableImage)]
    if bad and on_error == "error":
        listed = "\n".join(f"  {error.path}: {error.reason}" for error in bad[:10])
        more = f"\n  and {len(bad) - 10} more" if len(bad) > 10 else ""
        raise UserError(
            f"{len(bad)} of {len(scanned)} images cannot be read:\n{listed}{more}\n"
            f"Replace or remove them, or set {option}=skip to go on without them."
        )
    for error in bad:
        log.warning("skipped: %s", error)
    return {path: found for path, found in scanned.items() if isinstance(found, Scanned)}


def _with_groups(records: Sequence[Record], names: Sequence[str]) -> list[Record]:
    return [replace(r, group=name) for r, name in zip(records, names, strict=True)]


def _comes_split(records: Sequence[Record], spec: DataSpec) -> bool:
    return spec.folds is None and {record.split for record in records} >= {"train", "val"}


def _split(spec: DataSpec, records: list[Record], seed: int) -> list[Record]:
    """The records, each with its split."""
    given = {record.split for record in records}
    if spec.source == "elpv":
        fixed = replace(spec, val=0.0, split="stratified", folds=None)
        rest, test = _parted(_draw(fixed, records, ELPV_TEST_SEED))
        return _draw(replace(spec, val=spec.val / (1 - spec.test), test=0.0), rest, seed) + test
    if given == {""}:
        return _draw(spec, records, seed)
    if "test" not in given:
        log.warning("there is no test split: this run cannot measure how good the model is")
    if _comes_split(records, spec):
        return records
    if spec.folds is None:
        log.warning("there is no val split: val is %g of the train images", spec.val)
    rest, test = _parted(records)
    return _draw(replace(spec, test=0.0), rest, seed) + test


def _parted(records: Iterable[Record]) -> tuple[list[Record], list[Record]]:
    rest: list[Record] = []
    test: list[Record] = []
    for record in records:
        (test if record.split == "test" else rest).append(record)
    return rest, test


def _draw(spec: DataSpec, records: list[Record], seed: int) -> list[Record]:
    drawn = draw_splits(
        [record.path for record in records],
        [record.stratum for record in records],
        [record.group for record in records],
        val=spec.val,
        test=spec.test,
        seed=seed,
        how=spec.split,
        folds=spec.folds,
        fold=spec.fold,
    )
    return [replace(r, split=split) for r, split in zip(records, drawn, strict=True)]


def _few(records: list[Record], per_class: int, seed: int) -> list[Record]:
    kept = few_shot(
        [record.path for record in records],
        [record.label for record in records],
        [record.split for record in records],
        n=per_class,
        seed=seed,
    )
    return [record for record, keep in zip(records, kept, strict=True) if keep]


def _sample(record: Record, found: Scanned) -> Sample:
    return Sample(
        record.path,
        record.label,
        record.split,
        record.group,
        found.sha256,
        found.width,
        found.height,
        found.phash,
        record.weight,
        record.soft,
    )


def find_images(place: Path, on_error: str, decode: Decoding) -> tuple[Path, list[Path]]:
    """The folder that paths are relative to, and the readable images in `place`, a file or folder.

    Raises UserError when there is none, or one cannot be read and `on_error` is not skip.
    """
    if place.is_file():
        root, paths = place.parent, [place.name]
    elif place.is_dir():
        others: Counter[str] = Counter()
        root, paths = place, sorted(images_below(place, others), key=natural_key)
        tell_of_others(others)
    else:
        raise UserError(f"no such file or folder: {place}.")
    if not paths:
        raise UserError(f"no images in {place}. Read are: {', '.join(sorted(EXTENSIONS))}.")
    read = readable(scan(root, paths, decode), on_error, option="on_error")
    if not read:
        raise UserError(f"no image in {place} can be read.")
    return root, [root / path for path in paths if path in read]
