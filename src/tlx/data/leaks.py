"""Splits that came given but share images or groups: said, refused or mended."""

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

from tlx.data.manifest import SPLITS, Record
from tlx.errors import UserError

log = logging.getLogger(__name__)


def settle_leaks(
    records: Sequence[Record], digests: Mapping[str, str], on_leak: str
) -> list[Record]:
    """The records, with no image or group in two of the given splits unless `on_leak` is warn.

    regroup puts all of them where the strictest of their splits is: test before val before train.
    So what is measured keeps every image it had, and training loses what it must not have seen.
    Raises UserError naming the files when `on_leak` is error.
    """
    leaks = [same for same in _alike(records, digests) if len({r.split for r in same}) > 1]
    if not leaks:
        return list(records)
    told = _told(leaks)
    if on_leak == "error":
        raise UserError(
            f"{told}\nWhat is measured on images that were trained on flatters. Remove one of each "
            "(data.exclude=FILE lists paths to leave out), or set data.on_leak=regroup (they leave "
            "the split before) or data.on_leak=warn (they stay)."
        )
    log.warning("%s", told)
    if on_leak == "warn":
        return list(records)
    strictest: dict[str, str] = {}
    for same in leaks:
        split = max((strictest.get(r.path, r.split) for r in same), key=SPLITS.index)
        strictest.update({record.path: split for record in same})
    moved = [replace(record, split=strictest.get(record.path, record.split)) for record in records]
    # one that moved may take its group or its copies along
    return settle_leaks(moved, digests, "regroup")


def _alike(records: Sequence[Record], digests: Mapping[str, str]) -> list[list[Record]]:
    """Those of equal content and those of one group, where the split is given."""
    sets: defaultdict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in records:
        if record.split:
            sets["content", digests[record.path]].append(record)
            if record.group:
                sets["group", record.group].append(record)
    return list(sets.values())


def _told(leaks: Sequence[Sequence[Record]]) -> str:
    lines = []
    for same in leaks[:10]:
        one_of_each = {record.split: record.path for record in reversed(same)}
        lines.append("  " + ", ".join(f"{path} ({split})" for split, path in one_of_each.items()))
    more = f"\n  and {len(leaks) - 10} more" if len(leaks) > 10 else ""
    return f"{len(leaks)} images or groups are in two splits:\n" + "\n".join(lines) + more
