"""Images that belong together, so that no split comes between them."""

import logging
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence

from tlx.data.manifest import Record, natural_key
from tlx.errors import UserError

log = logging.getLogger(__name__)


def group_names(
    records: Sequence[Record], pattern: str | None, copies: Iterable[Sequence[str]]
) -> list[str]:
    """The group of each record, '' when it is alone.

    Together are those with an equal `group` or match of `pattern` in their paths (of its first
    bracket, if it has one), those in one list of `copies`, and whatever these link. A group is
    called by its first name among these, or else by its first path.
    """
    sets: defaultdict[str, list[str]] = defaultdict(list)
    for record in records:
        if record.group:
            sets[record.group].append(record.path)
    for path, match in _matches(records, pattern).items():
        sets[match].append(path)
    leaders = _connect([*sets.values(), *copies])
    names: dict[str, str] = {}
    for name in sorted(sets, key=natural_key):
        names.setdefault(leaders[sets[name][0]], name)
    return [
        names.get(leader, leader) if (leader := leaders.get(record.path)) is not None else ""
        for record in records
    ]


def _matches(records: Sequence[Record], pattern: str | None) -> dict[str, str]:
    if pattern is None:
        return {}
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise UserError(f"data.group={pattern!r} is no regular expression: {error}.") from None
    found = {record.path: expression.search(record.path) for record in records}
    first = 1 if expression.groups else 0
    matches = {path: match[first] for path, match in found.items() if match and match[first]}
    if not matches:
        raise UserError(
            f"data.group={pattern!r} matches none of the {len(records)} paths, such as "
            f"{records[0].path}. (A table's column is named by 'data.columns={{group: NAME}}'.)"
        )
    if alone := [path for path in found if path not in matches]:
        log.warning("data.group does not match %d paths, such as %s", len(alone), alone[0])
    return matches


def _connect(sets: Iterable[Sequence[str]]) -> dict[str, str]:
    """The first path, in natural order, of those that each path is linked with (union-find)."""
    parent: dict[str, str] = {}

    def root(path: str) -> str:
        while parent.setdefault(path, path) != path:
            parent[path] = parent[parent[path]]
            path = parent[path]
        return path

    for paths in sets:
        for path in paths:
            parent[root(path)] = root(paths[0])
    first: dict[str, str] = {}
    for path in sorted(parent, key=natural_key):
        first.setdefault(root(path), path)
    return {path: first[root(path)] for path in parent}
