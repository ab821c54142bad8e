"""What a run was made with, for who wants to make it again."""

import platform
import subprocess
from importlib.metadata import version
from typing import Any

import tlx

PACKAGES = ("torch", "torchvision", "lightning", "numpy", "pillow", "simplejpeg")


def environment() -> dict[str, Any]:
    """Versions, the machine, and of the current folder's git checkout the commit; None if none."""
    return {
        "tlx": tlx.__version__,
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "git": _git(),
    }


def _git() -> dict[str, Any] | None:
    commit, changes = _output("git", "rev-parse", "HEAD"), _output("git", "status", "--porcelain")
    if commit is None or changes is None:
        return None
    return {"commit": commit, "changed": bool(changes)}


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
