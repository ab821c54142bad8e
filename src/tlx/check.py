"""python -m tlx.check: what is wrong with a folder of photographs, and what to do about it."""

import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tlx.commands import command, file_to_write, split_arguments
from tlx.composition import compose
from tlx.config import parse
from tlx.errors import UserError
from tlx.specs import Config

if TYPE_CHECKING:
    from tlx.data.checks import Finding

HELP = """\
tlx check: what is wrong with a folder of photographs, worst first, and what to do about it.

  python -m tlx.check data.root=DIR [format=json] [output=FILE]

Files that cannot be read; copies and near copies, across splits or with different labels; classes
missing, tiny or unequal; sizes; black, white and grey pictures. Nothing is changed.

Takes train's settings (python -m tlx.train --help) and
  format=json     one JSON object: images, classes, findings
  output=FILE     the same object in a file

Exits with 1 when a finding is an error, else with 0.
"""
SHOWN = 3  # paths of each finding on the screen


@command(HELP)
def main(arguments: Sequence[str]) -> None:
    own, overrides = split_arguments(arguments, {"format": "table", "output": ""})
    if own["format"] not in ("table", "json"):
        raise UserError(f"format={own['format']} is not valid; it takes table | json.")
    output = file_to_write(own["output"]) if own["output"] else None
    if not any(override.startswith("data=") for override in overrides):
        overrides = ["data=folder", *overrides]
    from tlx.data.checks import as_json
    from tlx.files import write_json

    classes, findings = check(parse(compose(overrides)))
    images = classes.total()
    del classes[""]  # test images may lack a label
    found = {"images": images, "classes": dict(classes), "findings": as_json(findings)}
    if output is not None:
        write_json(output, found)
    if own["format"] == "json":
        print(json.dumps(found))
    else:
        _show(found)
    if any(finding.severity == "error" for finding in findings):
        sys.exit(1)


def check(config: Config) -> "tuple[Counter[str], list[Finding]]":
    """How many images each class has, and what is wrong with them. Splits are those given."""
    from tlx.data.checks import find_problems
    from tlx.data.groups import group_names
    from tlx.data.images import Decoding
    from tlx.data.scan import scan
    from tlx.data.sources import data_root, list_records
    from tlx.training.plan import preprocessing

    root = data_root(config.data)
    records = list_records(config.data, root)
    names = group_names(records, config.data.group, [])
    records = [replace(record, group=name) for record, name in zip(records, names, strict=True)]
    decode = Decoding(alpha=config.data.alpha, icc=config.data.icc)
    scanned = scan(root, [record.path for record in records], decode)
    size = preprocessing(config).image_size
    classes = Counter(record.label for record in records)
    return classes, find_problems(records, scanned, image_size=size)


def _show(found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    title = f"{found['images']} images in {len(found['classes'])} classes"
    if not found["findings"]:
        console.print(f"{title}: nothing found.")
        return
    table = Table(title=title, show_lines=True)
    for name in ("", "finding", "what to do"):
        table.add_column(name, overflow="fold")
    styles = {"error": "bold red", "warning": "yellow", "note": ""}
    for finding in found["findings"]:
        paths = finding["paths"]
        more = [f"and {len(paths) - SHOWN} more"] if len(paths) > SHOWN else []
        text = escape("\n  ".join([finding["message"], *paths[:SHOWN], *more]))
        severity = finding["severity"]
        table.add_row(severity, text, escape(finding["fix"]), style=styles[severity])
    console.print(table)


if __name__ == "__main__":
    main(sys.argv[1:])
