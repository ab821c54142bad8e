"""python -m tlx.doctor: why is my network not learning?"""

import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tlx.commands import command, file_to_write, run_folder, split_arguments
from tlx.errors import UserError, unknown

if TYPE_CHECKING:
    from tlx.diagnosis.findings import Examination

HELP = """\
tlx doctor: what keeps a network from learning, or makes its result wrong, likeliest cause first.

  python -m tlx.doctor backbone=vgg16 stage=finetune data=folder data.root=DIR
  python -m tlx.doctor run=RUN

Before a training it examines images, settings and network, with a short probe that changes
nothing; it takes train's settings (python -m tlx.train --help). With run=RUN it examines what a
run left behind, as far as that goes: data.root=DIR says where the images are now, if moved.

  format=json     one JSON object: findings, examined, not_examined
  output=FILE     the same object in a file, and pictures beside it
  quick=true      true | false: the cheap checks only, those that train makes itself

Exits with 1 when a finding is an error, else with 0. docs/doctor.md explains every cause.
"""
OWN = {"format": "table", "output": "", "quick": "false", "run": ""}


@command(HELP)
def main(arguments: Sequence[str]) -> None:
    own, others = split_arguments(arguments, OWN)
    for key, valid in (("format", ("table", "json")), ("quick", ("true", "false"))):
        if own[key] not in valid:
            raise UserError(f"{key}={own[key]} is not valid; it takes {' | '.join(valid)}.")
    if named := next((a for a in others if a.startswith("resume=")), None):
        raise UserError(f"{named}: to examine a run, run={named.partition('=')[2]}")
    output = file_to_write(own["output"]) if own["output"] else None
    if any(argument.startswith("run=") for argument in arguments):
        found = _after(own["run"], others, quick=own["quick"] == "true", output=output)
    else:
        found = _before(others, quick=own["quick"] == "true", output=output)
    if output is not None:
        from tlx.files import write_json

        write_json(output, found.to_dict())
    if own["format"] == "json":
        print(json.dumps(found.to_dict()))
    else:
        _show(found)
    if found.has_error:
        sys.exit(1)


def _before(overrides: Sequence[str], *, quick: bool, output: Path | None) -> "Examination":
    from tlx.composition import compose
    from tlx.config import parse

    config = parse(compose(overrides))
    from tlx.diagnosis.before import examine_config

    log = logging.getLogger("tlx")
    level = log.level
    log.setLevel(logging.ERROR)  # what train would warn of is found here
    try:
        return examine_config(config, quick=quick, output=output)
    finally:
        log.setLevel(level)


def _after(run: str, others: Sequence[str], *, quick: bool, output: Path | None) -> "Examination":
    images, others = split_arguments(others, {"data.root": ""})
    for argument in others:
        raise unknown("argument", argument.partition("=")[0], [*OWN, "data.root"])
    folder = run_folder(run)
    from tlx.diagnosis.after import examine_run
    from tlx.evaluation.finished import moved_root

    root = moved_root(folder, images["data.root"])
    return examine_run(folder, root=root, quick=quick, output=output)


def _show(found: "Examination") -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from tlx.diagnosis.findings import CAUSES

    console = Console()
    styles = {"error": "bold red", "warning": "yellow", "note": ""}
    table = Table(title="likeliest cause first", show_lines=True, show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    for finding in found.findings:
        lines = [f"{CAUSES[finding.cause]}: {finding.evidence}", f"→ {finding.fix}"]
        lines += [finding.picture] if finding.picture is not None else []
        text = escape("\n".join([*lines, finding.page]))
        table.add_row(finding.severity, text, style=styles[finding.severity])
    console.print(table if found.findings else "Nothing found.")
    console.print(f"Examined: {', '.join(found.examined) or 'nothing'}.", highlight=False)
    for missing in found.not_examined:
        line = f"Could not be examined: {missing.what}: {missing.why}"
        console.print(escape(line), highlight=False)


if __name__ == "__main__":
    main(sys.argv[1:])
