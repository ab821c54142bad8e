"""python -m tlx.report: a finished run's report.html, again."""

import sys
from collections.abc import Sequence
from pathlib import Path

from tlx.commands import command, own_arguments
from tlx.errors import UserError, unknown

HELP = """\
tlx report: report.html again, from a finished run's folder.

  python -m tlx.report run=RUN [gradcam=true]

  run=RUN           a finished run's folder
  gradcam=true      true | false: show what the classifier looks at
  data.root=DIR     where the images are now, if they were moved
"""


@command(HELP)
def main(arguments: Sequence[str]) -> None:
    own = own_arguments(arguments, {"run": None, "gradcam": "true", "data.root": ""})
    if own["gradcam"] not in ("true", "false"):
        raise unknown("gradcam", own["gradcam"], ("true", "false"))
    root = Path(own["data.root"]) if own["data.root"] else None
    if root is not None and not root.is_dir():
        raise UserError(f"data.root={root}: no such folder.")
    run = Path(own["run"])
    if not (run / ".hydra" / "config.yaml").is_file():
        raise UserError(f"run={run} is no run's folder: it has no .hydra/config.yaml.")

    from tlx.evaluation.report import write_report

    print(f"The report is in {write_report(run, gradcam=own['gradcam'] == 'true', data_root=root)}")


if __name__ == "__main__":
    main(sys.argv[1:])
