"""What is wrong with a data set, worst first, each with what to do about it."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

from tlx.data.duplicates import FLAT, copies
from tlx.data.images import UnreadableImage
from tlx.data.manifest import SPLITS, Record, Sample, natural_key
from tlx.data.scan import Result, Scanned
from tlx.files import write_json

Severity = Literal["error", "warning", "note"]
SEVERITIES = ("error", "warning", "note")
FEW = 10  # images of a class below which it is hardly learned, and not measured
UNEQUAL, SKEWED = 1.5, 10  # times the smallest class: worth a note, a warning
LONG = 2.0  # long side over short side
DARK, BRIGHT = 8.0, 247.0  # mean grey levels
# causes of the doctor's that are told here
TOLD_OF_DATA = ("leak", "class_missing", "label_conflict", "small_images")
MANY = 0.1  # share of the images from which an oddity is a warning


@dataclass(frozen=True)
class Finding:
    """`paths` are all it is about; `groups` are those of copies; `fix` is what to do or to set.

    After an error the metrics would be wrong, or training would not start.
    """

    kind: str
    severity: Severity
    message: str
    paths: tuple[str, ...]
    fix: str
    groups: tuple[tuple[str, ...], ...] = ()


def find_problems(
    images: Sequence[Sample | Record], scanned: Mapping[str, Result], *, image_size: int
) -> list[Finding]:
    """Worst first. A record whose split is '' will be put into one by tlx.

    `scanned` may hold more paths than `images` (those that could not be read, once left out).
    """
    read = {i.path: s for i in images if isinstance(s := scanned[i.path], Scanned)}
    broken = [p for p, s in scanned.items() if isinstance(s, UnreadableImage)]
    readable = [image for image in images if image.path in read]
    findings = [
        *_unreadable(broken, scanned),
        *_copies(readable, read),
        *_groups(readable),
        *_classes(readable, sorted({image.label for image in images} - {""}, key=natural_key)),
        *_looks(read),
        *_sizes(read, image_size),
    ]
    return sorted(findings, key=lambda f: (SEVERITIES.index(f.severity), -len(f.paths)))


def as_json(findings: Iterable[Finding]) -> list[dict[str, Any]]:
    """File names that are not UTF-8 have their odd bytes as \\udc80 and the like."""
    return [
        asdict(finding)
        | {
            "message": _utf8(finding.message),
            "paths": [_utf8(path) for path in finding.paths],
            "groups": [[_utf8(path) for path in group] for group in finding.groups],
        }
        for finding in findings
    ]


def write_findings(path: Path, findings: Iterable[Finding]) -> None:
    write_json(path, {"findings": as_json(findings)})


def _utf8(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _unreadable(broken: list[str], scanned: Mapping[str, Result]) -> Iterator[Finding]:
    if broken:
        reasons = Counter(getattr(scanned[path], "reason", "") for path in broken)
        listed = "; ".join(f"{count}: {reason}" for reason, count in reasons.most_common(3))
        yield Finding(
            "unreadable", "error", f"{_count(broken)} cannot be read in full ({listed})",
            tuple(broken), "restore or remove them, or data.on_error=skip",
        )  # fmt: skip


def _copies(images: Sequence[Sample | Record], read: Mapping[str, Scanned]) -> Iterator[Finding]:
    """Copies that count twice: with two labels, in two splits, or side by side."""
    label_of = {image.path: image.label for image in images}
    split_of = {image.path: image.split for image in images}
    exact = copies(read, near=False)
    near = [g for g in copies(read, near=True) if len({read[p].sha256 for p in g}) > 1]
    for name, groups in (("exact", exact), ("near", near)):
        conflicts = [g for g in groups if len({label_of[path] for path in g} - {""}) > 1]
        leaks = [g for g in groups if len({split_of[path] for path in g}) > 1]
        plain = [g for g in groups if len({(label_of[p], split_of[p]) for p in g}) == 1]
        severity: Severity = "error" if name == "exact" else "warning"
        yield from _about(
            f"{name}_label_conflict", severity, conflicts, f"{name} copies with different labels",
            "correct the labels, or list the wrong ones in a file for data.exclude=FILE",
        )  # fmt: skip
        yield from _about(
            f"{name}_leak", severity, leaks,
            f"{name} copies in several of train, val and test: the metrics would flatter",
            "data.on_leak=regroup" if name == "exact"
            else "move each group into one split, or list the rest for data.exclude=FILE",
        )  # fmt: skip
        yield from _about(
            f"{name}_copies", "note", plain, f"{name} copies",
            "data.keep_together=near (the default) keeps them in one split",
        )  # fmt: skip


def _groups(images: Sequence[Sample | Record]) -> Iterator[Finding]:
    members: defaultdict[str, list[Sample | Record]] = defaultdict(list)
    for image in images:
        if image.group:
            members[image.group].append(image)
    torn = [name for name, found in members.items() if len({i.split for i in found}) > 1]
    if torn:
        paths = tuple(image.path for name in torn for image in members[name])
        count = f"{len(torn)} group{'s' * (len(torn) != 1)}, such as {torn[0]!r},"
        yield Finding(
            "group_leak", "error", f"{count} in several of train, val and test", paths,
            "data.on_leak=regroup",
        )  # fmt: skip


def _about(
    kind: str, severity: Severity, groups: Sequence[Sequence[str]], what: str, fix: str
) -> Iterator[Finding]:
    if groups:
        paths = tuple(path for group in groups for path in group)
        times = f"{len(groups)} picture{'s' * (len(groups) != 1)}"
        message = f"{_count(paths)} of {times} are {what}"
        yield Finding(kind, severity, message, paths, fix, tuple(map(tuple, groups)))


def _classes(images: Sequence[Sample | Record], names: list[str]) -> Iterator[Finding]:
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for image in images:
        counts[image.split][image.label] += 1
    learned = counts.get("train") or counts.get("") or Counter()
    if len(names) == 1:
        yield Finding(
            "one_class", "error", f"one class only, {names[0]!r}", (),
            "a classifier needs two: is data.root a level too high or too low?",
        )  # fmt: skip
    if images and not learned:
        held = " and ".join(sorted(counts))
        fix = "give some the split train, or none at all"
        yield Finding("no_train", "error", f"all images are for {held}", (), fix)
    for split in counts:
        if lacking := [name for name in names if not counts[split][name]]:
            yield _missing(split, lacking, names)
    if few := [name for name in learned if learned[name] < FEW]:
        listed = ", ".join(f"{name!r} ({learned[name]})" for name in sorted(few, key=natural_key))
        too_few = "" in counts and min(learned[name] for name in few) < len(SPLITS)
        yield Finding(
            "small_class", "error" if too_few else "warning",
            f"fewer than {FEW} images to learn from: {listed}", (),
            "add images, or remove the class",
        )  # fmt: skip
    if len(learned) > 1 and max(learned.values()) >= UNEQUAL * min(learned.values()):
        (largest, most), (smallest, least) = learned.most_common()[0], learned.most_common()[-1]
        share = f"always answering {largest!r} would be right in {most / learned.total():.1%}"
        yield Finding(
            "imbalance", "warning" if most >= SKEWED * least else "note",
            f"{largest!r} has {most / least:.1f} times the images of {smallest!r}; {share}", (),
            "data.class_weights=balanced or data.sampling=balanced; compare macro F1",
        )  # fmt: skip


def _missing(split: str, lacking: list[str], names: list[str]) -> Finding:
    listed = ", ".join(map(repr, lacking))
    message = f"{split or 'what can be read'} has no image of the class {listed}"
    if split in ("train", ""):
        fix = "add images of it, or remove it from everywhere"
        return Finding("class_missing", "error", message, (), fix)
    own = [name for name in names if name not in lacking]
    if not own:
        message = f"no image of {split} has a label: nothing can be measured on them"
        return Finding("class_missing", "warning", message, (), "label them, or only predict them")
    index = len(own) - 1
    if own[index] != names[index]:
        message += (
            f"; numbered by the folders of {split} alone, {own[index]!r} would be class {index}, "
            f"which is {names[index]!r}"
        )
    fix = f"add images of it to {split}; tlx numbers the classes once, for all splits"
    return Finding("class_missing", "warning", message, (), fix)


def _looks(read: Mapping[str, Scanned]) -> Iterator[Finding]:
    kinds: defaultdict[str, list[str]] = defaultdict(list)
    for path, found in read.items():
        if found.deviation < FLAT:
            kinds["constant"].append(path)
        elif found.mean < DARK:
            kinds["dark"].append(path)
        elif found.mean > BRIGHT:
            kinds["bright"].append(path)
    words = {"constant": "of one colour", "dark": "nearly black", "bright": "nearly white"}
    for kind, paths in kinds.items():
        yield Finding(
            kind, "warning", f"{_count(paths)} {_are(paths)} {words[kind]}", tuple(paths),
            "look at them; list those to leave out in a file for data.exclude=FILE",
        )  # fmt: skip
    grey = [path for path, found in read.items() if found.is_grey]
    colour = [path for path, found in read.items() if not found.is_grey]
    odd, others = sorted((grey, colour), key=len)
    if odd:
        names = ("grey", "colour") if odd is grey else ("colour", "grey")
        yield Finding(
            "mixed_colour", "note",
            f"{_count(odd)} {_are(odd)} in {names[0]} among {len(others)} in {names[1]}",
            tuple(odd), "see whether one class has most of them: it would be known by that",
        )  # fmt: skip


def _sizes(read: Mapping[str, Scanned], image_size: int) -> Iterator[Finding]:
    shorter = {path: min(found.width, found.height) for path, found in read.items()}
    if small := [path for path, side in shorter.items() if side < image_size]:
        middle = int(median(shorter.values()))
        share = len(small) / len(read)
        yield Finding(
            "small_image", "warning" if share >= MANY else "note",
            f"{_count(small)} ({share:.1%}) {_are(small)} smaller than the network's {image_size} "
            f"pixels; the shorter side's median is {middle}",
            tuple(small),
            f"data.image_size={middle} saves time where the network takes it; or find larger ones"
            if image_size // 2 <= middle < image_size  # below it pretrained weights tell less
            else "find larger ones: what is not there, enlarging does not add",
        )  # fmt: skip
    long = [p for p, s in read.items() if max(s.width, s.height) >= LONG * min(s.width, s.height)]
    if long:
        share = len(long) / len(read)
        yield Finding(
            "long_image", "warning" if share >= MANY else "note",
            f"{_count(long)} ({share:.1%}) {_are(long)} at least {LONG:g} times as long as wide: "
            "a crop of the centre leaves out half",
            tuple(long), "data.resize=squash",
        )  # fmt: skip


def _count(paths: Sequence[str]) -> str:
    return f"{len(paths)} image{'s' * (len(paths) != 1)}"


def _are(paths: Sequence[str]) -> str:
    return "is" if len(paths) == 1 else "are"
