"""The stand-in commands, read from where they are documented: the heads of conf/experiment."""

import shlex
from collections.abc import Iterator
from pathlib import Path

EXPERIMENTS = Path(__file__).resolve().parents[2] / "conf" / "experiment"


def names() -> list[str]:
    return sorted(path.stem for path in EXPERIMENTS.glob("*.yaml"))


def documented(name: str) -> list[list[str]]:
    """Every command in the head of an experiment's file, as arguments of tlx.train."""
    return list(_commands((EXPERIMENTS / f"{name}.yaml").read_text("utf-8")))


def stand_ins(name: str) -> dict[str, list[str]]:
    """Those on ELPV, each by a label: the experiment's name, with the backbone where it differs."""
    found = {}
    for arguments in documented(name):
        if "data=elpv" in arguments:
            backbone = [a.partition("=")[2] for a in arguments if a.startswith("backbone=")]
            found["-".join([name, *backbone])] = arguments
    return found


def _commands(text: str) -> Iterator[list[str]]:
    lines = [line[1:].strip() for line in text.splitlines() if line.startswith("#")]
    for command in "\n".join(lines).replace("\\\n", " ").splitlines():
        if command.startswith("python -m tlx.train "):
            yield shlex.split(command)[3:]
