"""Whether train, val and test mean the same classes, share nothing, and are served as they are."""

import json
import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from tlx.data.datasets import ImageDataset
from tlx.data.manifest import SPLITS, Manifest, Sample, natural_key
from tlx.data.sources import list_records
from tlx.diagnosis.case import Case
from tlx.diagnosis.findings import Finding, Severity

MANY = 0.01  # share of the images measured on, from which near copies are more than a note
READ, VIEWS = 3, 3  # images of a split that are read, and how often each


def class_order(case: Case) -> Iterator[Finding]:
    """Classes of the splits that came given, and the order of the network's outputs."""
    manifest = case.job.manifest
    yield from class_order_of_run(case.job.model.classes, manifest)
    labels: defaultdict[str, set[str]] = defaultdict(set)
    given = {r.path for r in list_records(case.job.config.data, manifest.root) if r.split}
    for sample in manifest.samples:
        if sample.label:
            labels[sample.split if sample.path in given else "train"].add(sample.label)
    yield from differing_classes(labels)


def class_order_of_run(model_classes: Sequence[str], manifest: Manifest) -> Iterator[Finding]:
    """Whether the network's outputs are numbered as the manifest numbers the classes."""
    pairs = [
        (place, old, new)
        for place, (old, new) in enumerate(zip(model_classes, manifest.classes, strict=False))
        if old != new
    ]
    if not pairs and len(model_classes) == len(manifest.classes):
        return
    place, old, new = pairs[0] if pairs else (len(manifest.classes), "another class", "none")
    yield Finding(
        "class_order", "error",
        f"the network has {len(model_classes)} classes and the manifest {len(manifest.classes)}, "
        f"{len(pairs)} in another place: output {place} means {old!r}, the manifest has {new!r}",
        "train again on this manifest; or give back the manifest that the run was trained with",
        {"classes": len(manifest.classes), "misplaced": len(pairs)},
    )  # fmt: skip


def differing_classes(labels: Mapping[str, Collection[str]]) -> Iterator[Finding]:
    """From the labels of each split: names that mean one class, and classes a split lacks."""
    alike: defaultdict[str, list[str]] = defaultdict(list)
    for name in sorted(set().union(*labels.values()), key=natural_key):
        alike[_bare(name)].append(name)
    twins = [names for names in alike.values() if len(names) > 1]
    for names in twins:
        where = "; ".join(
            f"{split} has {' and '.join(repr(n) for n in names if n in found) or 'neither'}"
            for split, found in labels.items()
        )
        torn = any(0 < len(found & set(names)) < len(names) for found in map(set, labels.values()))
        yield Finding(
            "class_order", "error" if torn else "warning",
            f"{' and '.join(map(repr, names))} are numbered as different classes: {where}",
            "rename the folders (or labels) so that one class has one name",
            {"names": len(names)},
        )  # fmt: skip
    twice = {name for names in twins for name in names}
    train = sorted(labels.get("train", ()), key=natural_key)
    for split in labels.keys() - {"train"}:
        lacking = [name for name in train if name not in labels[split]]
        if lacking and not twice & set(lacking):
            yield _lacking(split, lacking, train)


def _bare(name: str) -> str:
    """What is left of a class's name without case, spaces and the like after letters, and an
    English plural: 1-1 and 11 are two classes.

    Of single letters case is all there is: 'a' and 'A' are two classes.
    """
    if len(name.strip()) == 1:
        return name.strip()
    return re.sub(r"(?<=[^\W\d_])[\s_-]+", "", name).casefold().removesuffix("s")


def _lacking(split: str, lacking: Sequence[str], train: Sequence[str]) -> Finding:
    own = [name for name in train if name not in lacking]
    moved = [name for place, name in enumerate(own) if train[place] != name]
    evidence = f"{split} has no image of {', '.join(map(repr, lacking))}, which train has"
    if moved:
        evidence += (
            f"; numbered by the folders of {split} alone, {moved[0]!r} would be class "
            f"{own.index(moved[0])} and not {train.index(moved[0])}"
        )
    return Finding(
        "class_missing", "warning", evidence,
        f"add images of it to {split}; tlx itself numbers the classes once, for all splits",
        {"missing": len(lacking), "moved": len(moved)},
    )  # fmt: skip


def leak(case: Case) -> Iterator[Finding]:
    """Equal files and groups by the manifest; near copies by what preparing the run has found."""
    samples = case.job.manifest.samples
    yield from _shared(samples, {s.path: s.sha256 for s in samples}, "byte for byte", "error")
    groups = {s.path: s.group for s in samples if s.group}
    yield from _shared(samples, groups, "as members of one group", "error")
    near = [group for finding in _of_images(case) if finding["kind"] == "near_leak"
            for group in finding["groups"]]  # fmt: skip
    pictures = {path: str(number) for number, group in enumerate(near) for path in group}
    yield from _shared(samples, pictures, "as near copies", "warning")


def label_conflict(case: Case) -> Iterator[Finding]:
    """As `tlx.check` has it."""
    for finding in _of_images(case):
        if finding["kind"].endswith("_label_conflict"):
            first = " and ".join(finding["groups"][0])
            yield Finding(
                "label_conflict", finding["severity"],
                f"{finding['message']}, such as {first}", finding["fix"],
                {"images": len(finding["paths"]), "pictures": len(finding["groups"])},
            )  # fmt: skip


def _of_images(case: Case) -> list[dict[str, Any]]:
    """What preparing the run has found."""
    path = case.job.folder / "findings.json"
    found: list[dict[str, Any]] = []
    return json.loads(path.read_text("utf-8"))["findings"] if path.exists() else found


def _shared(
    samples: Sequence[Sample], key_of: Mapping[str, str], how: str, severity: Severity
) -> Iterator[Finding]:
    """Images to measure on whose key an earlier split has too."""
    seen: dict[str, Sample] = {}
    for split, earlier in zip(SPLITS, ("", "train", "train or val"), strict=True):
        own = [s for s in samples if s.split == split and s.path in key_of]
        if both := [s for s in own if key_of[s.path] in seen]:
            n = sum(s.split == split for s in samples)
            one, other = both[0], seen[key_of[both[0].path]]
            yield Finding(
                "leak", severity if severity == "error" or len(both) >= MANY * n else "note",
                f"{len(both)} of {n} {split} images ({len(both) / n:.1%}) are {how} also in "
                f"{earlier}, such as {one.path} and {other.path} ({other.split})",
                "data.on_leak=regroup" if severity == "error"
                else "list them in a file for data.exclude=FILE; where tlx draws the split, "
                "data.keep_together=near",
                {"images": len(both), "share": len(both) / n},
            )  # fmt: skip
        for sample in own:
            seen.setdefault(key_of[sample.path], sample)


def augmented_evaluation(case: Case) -> Iterator[Finding]:
    """Read twice, val and test must give the plain picture, pixel for pixel."""
    data = case.data
    for split in ("val", "test"):
        indices = case.indices(split, READ)
        served = data.dataset(split)
        files = [data.manifest.root / data.manifest.split(split)[i].path for i in indices]
        plain = ImageDataset(files, [0] * len(files), data.preprocess, decoding=data.decoding)
        differences = [
            (served[index, view][0].float() - plain[place, 0][0].float()).abs().mean().item()
            for place, index in enumerate(indices)
            for view in range(VIEWS)
        ]
        changed = sum(difference > 0 for difference in differences)
        if changed:
            mean = sum(differences) / len(differences)
            yield Finding(
                "augmented_evaluation", "error",
                f"{changed} of {len(differences)} readings of {split} images are not the picture "
                f"itself, by {mean:.1f} of 255 levels on average",
                "augment train alone: ImageData.dataset gives val and test no augmentation; "
                "for views in testing there is tta",
                {"changed": changed, "readings": len(differences), "levels": mean},
            )  # fmt: skip
