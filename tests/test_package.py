"""What people install: the wheel, outside the checkout."""

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[1]


def run(*command, cwd):
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(command, cwd=cwd, env=clean, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_wheel_works_from_an_empty_folder(tmp_path):
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    run(*pip, "wheel", "--quiet", "--no-deps", "-w", tmp_path, CHECKOUT, cwd=tmp_path)
    (wheel,) = tmp_path.glob("tlx-*.whl")
    run(sys.executable, "-m", "venv", tmp_path / "env", cwd=tmp_path)
    python = tmp_path / "env/bin/python"
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", wheel, cwd=tmp_path)
    # The dependencies are this environment's: they weigh gigabytes.
    site = next((tmp_path / "env/lib").glob("python*")) / "site-packages"
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    empty = tmp_path / "empty"
    empty.mkdir()
    where = run(python, "-c", "import tlx; print(tlx.__file__)", cwd=empty)
    assert Path(where.strip()).is_relative_to(tmp_path)
    shown = run(
        tmp_path / "env/bin/tlx", "summary", "backbone=resnet50", "stage=head", "num_classes=10",
        "format=json", cwd=empty,
    )  # fmt: skip
    assert json.loads(shown)["trainable"] == 20_490
    assert list(empty.iterdir()) == []
