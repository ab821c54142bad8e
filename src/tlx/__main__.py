"""tlx NAME is python -m tlx.NAME."""

import runpy
import sys

from tlx.commands import command

COMMANDS = {
    "check": "what is wrong with a folder of photographs",
    "split": "a folder of photographs as train, validation and test folders",
    "summary": "the parameter table of a configuration",
    "doctor": "why is my network not learning? before a training, or of a run",
    "train": "train a classifier on your photographs",
    "evaluate": "metrics of a finished run, again",
    "report": "a finished run's report.html, again",
    "compare": "several runs side by side, and whether they differ",
    "predict": "classes and probabilities for images",
    "cache": "what is kept on this machine to compute it only once",
}


@command()
def main() -> None:
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        print("tlx COMMAND [KEY=VALUE …]\n")
        for each, text in COMMANDS.items():
            print(f"  {each:10}{text}")
        print("\ntlx COMMAND --help says more.")
        return
    if name not in COMMANDS:
        from tlx.errors import unknown

        raise unknown("command", name, COMMANDS)
    del sys.argv[1]
    # as python -m does, so that processes which a training starts get the same command
    runpy.run_module(f"tlx.{name}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
