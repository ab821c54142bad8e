"""A run that was killed ends as if it had not been."""

import errno
import fcntl
import json
import logging
import multiprocessing
import os
import random
import re
import signal
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from tlx import train
from tlx.composition import compose, resumed
from tlx.config import parse
from tlx.errors import UserError
from tlx.training.checkpoints import Checkpoints, Interrupted, resume_point
from tlx.training.job import hold, prepare
from tlx.training.module import StageModule
from tlx.training.run import train_stages
from tlx.training.screen import Bar

THREE_STAGES = [
    "stage=finetune", "+stage.all={train_from: all, epochs: 2, lr: 1e-3}", "stage.head.epochs=2",
    "stage.top.epochs=2", "stage.top.patience=1",
]  # fmt: skip
SETTINGS = [
    "backbone=shufflenet_v2_x0_5", "backbone.weights=null", "data=folder", "data.image_size=32",
    "data.batch_size=4", "trainer=cpu", "verbosity=plain", "report=none", "augment=light",
    "head.hidden=[8]", "head.dropout=0.5", "scheduler=plateau", "cache.views=1",
    "trainer.precision=32",  # auto is measured, in each run anew
    *THREE_STAGES,
]  # fmt: skip


def start(*arguments):
    """Run `tlx train` in a process forked from this one, which has torch imported already."""

    def main():
        os.setsid()
        torch.set_num_threads(1)
        with open(os.devnull, "w") as null:
            os.dup2(null.fileno(), 1)
            os.dup2(null.fileno(), 2)
        sys.argv = ["tlx.train", *arguments]
        train.main(list(arguments))

    process = multiprocessing.get_context("fork").Process(target=main)
    process.start()
    return process


def finish(process):
    process.join(120)
    assert process.exitcode == 0


def outcome(folder):
    """All that a run says, without its times."""
    metrics = json.loads((folder / "metrics.json").read_text())
    del metrics["seconds"]
    for stage in metrics["stages"]:
        del stage["seconds"]
    files = ["model/model.safetensors", "predictions/val.csv", "predictions/test.csv"]
    return metrics, [(folder / name).read_bytes() for name in files]


@pytest.mark.slow
@pytest.mark.parametrize("third", range(3))
def test_thirty_kills_change_nothing(image_folder, tmp_path, third):
    arguments = [*SETTINGS, f"data.root={image_folder}"]
    whole = tmp_path / "whole"
    began = time.monotonic()
    finish(start(*arguments, f"hydra.run.dir={whole}"))
    duration = time.monotonic() - began
    expected = outcome(whole)
    moment = random.Random(third)
    for number in range(10):
        folder = tmp_path / f"run{number}"
        process = start(*arguments, f"hydra.run.dir={folder}")
        if number == 0:  # one kill at least falls into each stage
            begun = folder / "checkpoints" / ("head", "top", "all")[third]
            while process.is_alive() and not begun.exists():
                time.sleep(0.01)
            assert begun.exists()
        else:
            time.sleep(moment.uniform(0.02, 1) * duration)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        if (folder / "metrics.json").exists():
            assert number > 0  # the kill came too late
        elif (folder / "manifest.csv").exists():
            finish(start(f"resume={folder}"))
        else:  # killed before there was anything: the same command again
            finish(start(*arguments, f"hydra.run.dir={folder}"))
        assert outcome(folder) == expected, f"run {number}"


@pytest.fixture
def job(image_folder, tmp_path):
    def make(folder, *overrides):
        config = parse(compose([*SETTINGS, f"data.root={image_folder}", *overrides]))
        return prepare(config, tmp_path / folder)

    return make


def interrupt_at(job, monkeypatch, stage, epoch, batch):
    """Train until a signal comes in the given step."""
    original = Checkpoints.on_train_batch_end

    def hook(self, trainer, module, *rest):
        if (module.stage.name, trainer.current_epoch, rest[-1]) == (stage, epoch, batch):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)
        original(self, trainer, module, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "on_train_batch_end", hook)
        with pytest.raises(Interrupted) as stop:
            train_stages(job)
    assert stop.value.exit_code == 128 + signal.SIGTERM


@pytest.mark.parametrize(
    ("moment", "overrides"),
    [
        (("head", 0, 1), ()),
        (("top", 1, 3), ()),
        (("all", 0, 2), ()),
        (("all", 0, 0), ("trainer.accumulate=2",)),  # half of a step's gradients are there
        (("all", 0, 3), ("verbosity=rich",)),  # the epoch's last step
    ],
)
def test_a_signal_resumes_exactly(job, tmp_path, monkeypatch, moment, overrides):
    monkeypatch.setattr(Bar.__init__, "__kwdefaults__", {"every": 0.0})  # drawn at each step
    expected = train_stages(job("whole", *overrides))
    interrupt_at(job("cut", *overrides), monkeypatch, *moment)
    results = train_stages(job("cut", *overrides))
    assert [(r.best, r.best_epoch, r.steps) for r in results] == [
        (r.best, r.best_epoch, r.steps) for r in expected
    ]
    for name in ("head", "top", "all"):
        whole, cut = (
            (tmp_path / folder / "checkpoints" / name / "weights.safetensors").read_bytes()
            for folder in ("whole", "cut")
        )
        assert whole == cut, name
        whole, cut = (
            torch.load(tmp_path / f"{folder}/checkpoints/{name}/last.ckpt", weights_only=True)
            for folder in ("whole", "cut")
        )
        assert whole["lr_schedulers"] == cut["lr_schedulers"], name


def test_a_first_epoch_whose_loss_is_no_number_is_not_the_best(job, monkeypatch):
    original = StageModule._log

    def log(self, split, seen):
        if split == "val" and self.trainer.current_epoch == 0:
            seen[0] = seen[0] * float("nan")
        original(self, split, seen)

    monkeypatch.setattr(StageModule, "_log", log)
    assert train_stages(job("run"))[0].best_epoch == 2


def test_an_epoch_whose_loss_is_no_number_is_not_the_best_by_its_accuracy(job, monkeypatch):
    original = StageModule._log

    def log(self, split, seen):
        if split == "val":
            is_lost = self.trainer.current_epoch == 1
            seen[:] = [torch.tensor([[float("nan") if is_lost else 0.7, float(is_lost)]])]
        original(self, split, seen)

    monkeypatch.setattr(StageModule, "_log", log)
    assert train_stages(job("run", "monitor=accuracy"))[0].best_epoch == 1


def test_seconds_are_those_of_all_processes(job, tmp_path, monkeypatch):
    interrupt_at(job("cut"), monkeypatch, "head", 0, 1)
    path = tmp_path / "cut/checkpoints/head/last.ckpt"
    state = torch.load(path, weights_only=True)
    state["callbacks"]["Checkpoints"]["seconds"] = 1000.0
    torch.save(state, path)
    assert train_stages(job("cut"))[0].seconds > 1000


def test_checkpoints_within_an_epoch_and_the_last_weights_by_option(job, tmp_path):
    """`checkpoint_steps` leaves every third step's state; `hand_over=last` the last epoch's."""
    run = job("often", "trainer.checkpoint_steps=3", "stage.head.hand_over=last",
              "stage.head.lr=0.5")  # fmt: skip
    train_stages(run)
    place = tmp_path / "often/checkpoints/head"
    before = torch.load(place / "previous.ckpt", weights_only=True)
    assert before["global_step"] == 6  # of 8; step 8 ends the second epoch
    last = torch.load(place / "last.ckpt", weights_only=True)["state_dict"]
    weights = load_file(place / "weights.safetensors")
    for name, value in last.items():
        assert torch.equal(value, weights[name.removeprefix("classifier.")])
    parameters = {f"classifier.{name}" for name, _ in run.model.classifier.named_parameters()}
    assert {name.split(".")[1] for name in parameters & last.keys()} == {"head"}
    assert {name.split(".")[1] for name in parameters} == {"head", "backbone"}


def test_other_frozen_weights_are_no_resume(job, tmp_path):
    """A checkpoint leaves them out; that they are the same is checked."""
    train_stages(job("run"))
    (tmp_path / "run/checkpoints/head/done.json").unlink()
    other = job("run")
    with torch.no_grad():
        next(other.model.classifier.backbone.parameters()).add_(1)
    with pytest.raises(UserError, match="stage head cannot go on: its frozen weights are not"):
        train_stages(other)


def test_a_damaged_checkpoint_falls_back_to_the_one_before(job, tmp_path, caplog):
    expected = train_stages(job("whole"))
    train_stages(job("broken"))
    place = tmp_path / "broken" / "checkpoints" / "all"
    (place / "done.json").unlink()
    last = place / "last.ckpt"
    last.write_bytes(last.read_bytes()[:-1000])
    assert resume_point(place) == place / "previous.ckpt"
    assert "last.ckpt is damaged" in caplog.text
    results = train_stages(job("broken"))
    assert results[-1].best == expected[-1].best
    assert (place / "weights.safetensors").read_bytes() == (
        tmp_path / "whole/checkpoints/all/weights.safetensors"
    ).read_bytes()


def test_what_would_change_the_result_is_refused(tmp_path, capsys):
    with pytest.raises(UserError, match="is no run's folder"):
        resumed([f"resume={tmp_path}"])
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra/config.yaml").write_text("seed: 3\ndata: {num_workers: null}\n")
    with pytest.raises(UserError, match="change its result: optimizer.lr, seed"):
        resumed([f"resume={tmp_path}", "seed=4", "optimizer.lr=1", "data.num_workers=2"])
    raw, folder = resumed([f"resume={tmp_path}", "data.num_workers=2"])
    assert (raw, folder) == ({"seed": 3, "data": {"num_workers": 2}}, tmp_path)


def test_seconds_of_an_epoch_that_is_resumed_within_are_of_this_process(job, monkeypatch, caplog):
    weeks = time.time() - 1e6
    monkeypatch.setattr(time, "monotonic", lambda: time.time() - weeks)
    caplog.set_level(logging.INFO)
    interrupt_at(job("cut"), monkeypatch, "head", 1, 2)
    caplog.clear()
    train_stages(job("cut"))
    lines = [m for m in caplog.messages if re.match(r"\w+ \d+/\d+  loss", m)]
    assert lines[0].startswith("head 2/")
    assert all(float(line.split()[-2]) < 1000 for line in lines)


def test_what_a_kill_left_half_written_goes(job, tmp_path, monkeypatch):
    interrupt_at(job("cut"), monkeypatch, "head", 1, 2)
    left = tmp_path / "cut/checkpoints/head/.last.ckpt.123"
    left.write_bytes(b"half")
    train_stages(job("cut"))
    assert not left.exists()


def test_a_disk_without_locks_is_said_and_trained_on(tmp_path, monkeypatch, caplog):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with hold(tmp_path):
        assert f"cannot be locked ([Errno {errno.ENOLCK}] No locks available)" in caplog.text


def test_two_processes_cannot_train_one_run(tmp_path):
    with (
        hold(tmp_path),
        pytest.raises(UserError, match="another process is training"),
        hold(tmp_path),
    ):
        pass
