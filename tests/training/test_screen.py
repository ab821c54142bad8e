"""What a terminal shows while a stage trains, read as a terminal of 80 columns would."""

import io
import logging
import re
import sys

import pytest
from rich.console import Console

from test_unfreezing import trained
from tlx.training import screen
from tlx.training.screen import Bar, has_bar, set_verbosity

SETTINGS = ["backbone=squeezenet1_1", "data.keep_together=none", "data.image_size=32",
            "stage.head.epochs=2", "stage.top.epochs=2", "data.batch_size=4"]  # fmt: skip


@pytest.fixture
def terminal(monkeypatch):
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, width=80, color_system=None)
    monkeypatch.setattr(screen, "Progress", lambda *a, **k: _progress(console, a, k))
    return output


def _progress(console, columns, settings):
    from rich.progress import Progress

    return Progress(*columns, console=console, **settings)


def lines(output):
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output.getvalue())
    return [line.rstrip() for line in re.split(r"[\r\n]+", plain) if line.strip()]


def test_the_bar_tells_loss_accuracy_speed_and_time_left_below_the_log(
    image_folder, tmp_path, terminal, monkeypatch
):
    original = Bar.__init__
    monkeypatch.setattr(Bar, "__init__", lambda self, *a: original(self, *a, every=0.0))
    handler = logging.StreamHandler(sys.stdout)
    stream, root = handler.stream, logging.getLogger()
    monkeypatch.setattr(root, "handlers", [handler])  # whatever tests before it left
    root.setLevel(logging.INFO)
    trained(image_folder, tmp_path, *SETTINGS, "verbosity=rich")
    assert handler.stream is stream  # given back
    shown = lines(terminal)
    assert all(len(line) <= 80 for line in shown)
    form = re.compile(
        r"(head|top) ([12])/2 [━╸╺ ]+ loss (\d\.\d{3})  val acc (-|[01]\.\d{3})  (\d+) img/s  "
        r"left (\d\d:\d\d), run (\d\d:\d\d)"
    )
    found = [form.fullmatch(line) for line in shown if "img/s" in line]
    assert None not in found
    assert {(m[1], m[2], m[4] == "-") for m in found} == {
        ("head", "1", True), ("head", "2", False), ("top", "1", True), ("top", "2", False),
    }  # fmt: skip
    assert all(m[6] <= m[7] for m in found)  # the run's time left is never below the stage's
    assert all(m[6] == m[7] for m in found if m[1] == "top")  # the last stage
    said = [line[:8].strip() for line in shown if re.match(r"\w+ \d/2  loss .* \d+ s$", line)]
    assert said == ["head 1/2", "head 2/2", "top 1/2", "top 2/2"]


def test_quiet_shows_warnings_only_and_the_log_file_all(tmp_path, capsys):
    shows = logging.StreamHandler(sys.stdout)
    keeps = logging.FileHandler(tmp_path / "train.log")
    root = logging.getLogger()
    root.setLevel(logging.INFO)
    root.addHandler(shows)
    root.addHandler(keeps)
    try:
        set_verbosity("quiet")
        logging.getLogger("tlx.some").info("an epoch")
        logging.getLogger("tlx.some").warning("a doubt")
    finally:
        root.removeHandler(shows)
        root.removeHandler(keeps)
        keeps.close()
    assert capsys.readouterr().out == "a doubt\n"
    assert (tmp_path / "train.log").read_text() == "an epoch\na doubt\n"


@pytest.mark.parametrize(
    ("verbosity", "is_terminal", "expected"),
    [("auto", True, True), ("auto", False, False), ("rich", False, True), ("plain", True, False),
     ("quiet", True, False)],
)  # fmt: skip
def test_auto_draws_a_bar_on_a_terminal_only(monkeypatch, verbosity, is_terminal, expected):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: is_terminal, raising=False)
    assert has_bar(verbosity) is expected
