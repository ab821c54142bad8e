"""python -m tlx.cache: what tlx keeps on this machine to compute it only once."""

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tlx.commands import command, split_arguments
from tlx.errors import UserError, unknown

if TYPE_CHECKING:
    from tlx.training.cache_folder import Item

HELP = """\
tlx cache: what tlx keeps on this machine to compute it only once.

  python -m tlx.cache [list | size | verify | clear] [dir=DIR] [older=DAYS] [format=json]

  list      every entry: what it holds, its size, its last use, whether a process uses it (default)
  size      how many entries there are, and their size
  verify    compare every entry with its checksums, and name foreign files; exits with 1 when an
            entry is damaged
  clear     remove all entries that no process uses

  dir=DIR        the folder (default: features and images in tlx's own, TLX_CACHE_DIR or
                 ~/.cache/tlx)
  older=DAYS     clear: only what was last used so long ago
  format=json    one JSON object

Runs find out by themselves what is missing: clearing costs time, never results. Archives that were
unpacked (archives/ in tlx's own folder) and what scans have found (scan/) are not among these.
"""
ACTIONS = ("list", "size", "verify", "clear")
DAY = 86_400  # seconds


@command(HELP)
def main(arguments: Sequence[str]) -> None:
    own, others = split_arguments(arguments, {"dir": "", "older": "", "format": "table"})
    action, *more = others or ["list"]
    for argument in more:
        raise unknown("argument", argument.partition("=")[0], ("dir", "older", "format"))
    if action not in ACTIONS:
        raise unknown("action", action, ACTIONS)
    if own["format"] not in ("table", "json"):
        raise UserError(f"format={own['format']} is not valid; it takes table | json.")
    if own["older"] and action != "clear":
        raise UserError(f"older={own['older']} is for clear: tlx cache clear older=30.")
    folders = _folders(own["dir"])
    if action == "clear":
        found = _clear(folders, _days(own["older"]))
    elif action == "size":
        found = _size(folders)
    else:
        found = _entries(folders, verified=action == "verify")
    if own["format"] == "json":
        print(json.dumps(found))
    else:
        _show(found)
    if action == "verify" and any(row["state"] == "damaged" for row in found["entries"]):
        sys.exit(1)


def _folders(given: str) -> list[Path]:
    from tlx.files import cache_dir

    if not given:
        return [cache_dir() / "features", cache_dir() / "images"]
    folder = Path(given).expanduser()
    if not folder.is_dir():
        raise UserError(f"dir={given}: no such folder.")
    return [folder]


def _days(text: str) -> float:
    try:
        days = float(text or 0)
    except ValueError:
        days = -1.0
    if not days >= 0:
        raise UserError(f"older={text} is not a number of days, 0 or more.")
    return days


def _entries(folders: Sequence[Path], *, verified: bool) -> dict[str, Any]:
    """Each entry as a row; with `verified`, what is wrong with it too."""
    from tlx.training.cache_folder import contents, problem

    rows = []
    for folder in folders:
        for item in contents(folder):
            row = _row(item)
            if verified:
                try:
                    row["problem"] = problem(item)
                except FileNotFoundError:  # another process has just removed it
                    continue
                if row["problem"] is not None and item.state == "whole":
                    row["state"] = "damaged"
            rows.append(row)
    return {"folders": [str(folder) for folder in folders], "entries": rows}


def _row(item: "Item") -> dict[str, Any]:
    used = time.strftime("%Y-%m-%d %H:%M", time.localtime(item.last_used))
    return {
        "entry": str(item.path),
        "state": item.state,
        "in_use": item.in_use,
        "bytes": item.bytes,
        "last_used": used,
        **{key: item.about.get(key) for key in ("backbone", "before", "split", "view", "images")},
        **{key: item.about.get(key) for key in ("image_size", "dtype", "created", "tlx")},
    }


def _size(folders: Sequence[Path]) -> dict[str, Any]:
    from tlx.training.cache_folder import contents

    items = [item for folder in folders for item in contents(folder)]
    own = [item for item in items if item.state != "foreign"]
    return {
        "folders": [str(folder) for folder in folders],
        "count": len(own),
        "bytes": sum(item.bytes for item in own),
        "in_use": sum(item.bytes for item in own if item.in_use),
        "foreign": len(items) - len(own),
    }


def _clear(folders: Sequence[Path], days: float) -> dict[str, Any]:
    from tlx.files import waiting
    from tlx.training.cache_folder import contents, remove, remove_idle_locks

    removed: list[Item] = []
    kept: list[Item] = []
    for folder in folders:
        if not folder.is_dir():
            continue
        try:
            with waiting(folder / ".lock"):
                for item in contents(folder):
                    if item.state == "foreign" or time.time() - item.last_used < days * DAY:
                        continue
                    (removed if remove(item.path) else kept).append(item)
                remove_idle_locks(folder)
        except OSError as error:
            raise UserError(f"{folder} cannot be cleared: {error}.") from None
    return {"removed": len(removed), "bytes": sum(i.bytes for i in removed), "in_use": len(kept)}


def _show(found: dict[str, Any]) -> None:
    from tlx.training.cache_folder import readable

    if "removed" in found:
        print(f"{found['removed']} entries removed, {readable(found['bytes'])}; "
              f"{found['in_use']} are in use.")  # fmt: skip
        return
    print("\n".join(found["folders"]))
    if "count" in found:
        print(f"{found['count']} entries, {readable(found['bytes'])}, of which in use "
              f"{readable(found['in_use'])}; {found['foreign']} foreign files.")  # fmt: skip
        return
    for row in found["entries"]:
        what = f"{row['backbone']} before {row['before']}" if row["backbone"] else ""
        view = "" if row["view"] is None else f" view {row['view']}"
        split = row["split"] or "decoded"
        images = "" if row["images"] is None else f"{row['images']} {split} images{view}"
        state = row["state"] + (", in use" if row["in_use"] else "")
        cells = [Path(row["entry"]).name[:12], state, readable(row["bytes"]), row["last_used"]]
        print("  ".join(cell for cell in (*cells, what, images) if cell))
        if row.get("problem"):
            print(f"    {row['entry']} {row['problem']}")


if __name__ == "__main__":
    main(sys.argv[1:])
