"""python -m tlx.report: a finished run's report.html, again."""

import sys
from collections.abc import Sequence

from tlx.commands import command, own_arguments, run_folder
from tlx.errors import unknown

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
    run = run_folder(own["run"], write=True)

    from tlx.evaluation.finished import moved_root
    from tlx.evaluation.report import write_report

    root = moved_root(run, own["data.root"])
    print(f"The report is in {write_report(run, gradcam=own['gradcam'] == 'true', data_root=root)}")


if __name__ == "__main__":
    main(sys.argv[1:])
