"""Whether there is a classification to learn in what was found."""

import logging
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from tlx.data.manifest import Record, natural_key
from tlx.errors import UserError

log = logging.getLogger(__name__)


def check_classes(root: Path, records: list[Record], readable: list[Record]) -> None:
    """Raises UserError when the classes cannot be learned; says aloud which split lacks one."""
    labels = _labels_by_split(readable)
    for split, listed in _labels_by_split(records).items():
        if lost := listed - labels[split]:
            raise UserError(
                f"no image of the class {_listed(lost)} in {f'{split} of ' * bool(split)}{root} "
                "can be read: replace the files or remove the class."
            )
    trained = labels["train"] | labels[""]
    if not trained:
        held = " and ".join(split for split, found in labels.items() if found)
        raise UserError(f"all images in {root} are for {held}: there is none to train on.")
    if len(trained) < 2:
        raise UserError(
            f"one class only ({_listed(trained)}) in {root}: a classifier needs at least two. In "
            "class folders: is data.root a level too high or too low?"
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
        if record.label:
            labels[record.split].add(record.label)
    return labels


def _listed(names: Iterable[str]) -> str:
    ordered = sorted(names, key=natural_key)
    more = f" and {len(ordered) - 10} more" if len(ordered) > 10 else ""
    return ", ".join(repr(name) for name in ordered[:10]) + more
