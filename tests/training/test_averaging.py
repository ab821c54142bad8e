"""The average against one written by hand, in what is saved, evaluated and resumed."""

import pytest
import torch
from lightning.pytorch import Callback
from safetensors.torch import load_file

from test_module import job
from tlx.training import run as runs
from tlx.training.averaging import WeightAverage
from tlx.training.checkpoints import Interrupted
from tlx.training.module import StageModule
from tlx.training.run import train_stages

SETTINGS = (
    "backbone=shufflenet_v2_x0_5", "stage=finetune", "stage.head.epochs=1",
    "stage.top.epochs=3", "stage.top.ema=0.4",
    "optimizer=sgd", "optimizer.lr=0.1", "scheduler=constant", "monitor=loss",
    "trainer.precision=32",
)  # fmt: skip


def tensors(module):
    return {k: v.detach().clone() for k, v in module.classifier.state_dict().items()}


@pytest.fixture
def steps(monkeypatch):
    """The state after each optimizer step of stage top, and as val saw it."""
    seen = {"trained": [], "evaluated": []}

    class Spy(Callback):
        def on_train_start(self, trainer, pl_module):
            seen.setdefault("start", tensors(pl_module))

        def on_train_batch_end(self, trainer, pl_module, *args, **kwargs):
            if trainer.global_step > len(seen["trained"]):
                seen["trained"].append(tensors(pl_module))

        def on_train_epoch_start(self, trainer, pl_module):
            if seen["trained"]:
                seen["between"] = tensors(pl_module), len(seen["trained"])

    original = runs.build_trainer

    def build_trainer(*args, callbacks, **kwargs):
        if any(isinstance(c, WeightAverage) for c in callbacks):
            callbacks = [*callbacks, Spy()]
        return original(*args, callbacks=callbacks, **kwargs)

    validation_step = StageModule.validation_step

    def spied(self, batch, batch_idx):
        if self.stage.name == "top" and batch_idx == 0:
            seen["evaluated"].append(tensors(self))
        validation_step(self, batch, batch_idx)

    monkeypatch.setattr(runs, "build_trainer", build_trainer)
    monkeypatch.setattr(StageModule, "validation_step", spied)
    return seen


@pytest.mark.parametrize("accumulate", [1, 2])
def test_val_and_the_best_weights_are_the_average(image_folder, tmp_path, steps, accumulate):
    run = job(
        image_folder, tmp_path, *SETTINGS, "data.batch_size=5", f"trainer.accumulate={accumulate}"
    )
    top = train_stages(run)[-1]

    averages, average = [], steps["start"]
    for number, trained in enumerate(steps["trained"], start=1):
        decay = min(0.4, (1 + number) / (10 + number))
        average = {
            name: tensor + (1 - decay) * (trained[name] - tensor)
            if tensor.is_floating_point()
            else trained[name]
            for name, tensor in average.items()
        }
        averages.append(average)
    an_epoch = top.steps // 3
    assert top.steps == len(averages) == 3 * {1: 3, 2: 2}[accumulate]
    for epoch in range(3):
        torch.testing.assert_close(steps["evaluated"][epoch], averages[an_epoch * (epoch + 1) - 1])
    best = load_file(tmp_path / "checkpoints/top/weights.safetensors")
    torch.testing.assert_close(best, averages[an_epoch * top.best_epoch - 1])
    handed_on = dict(run.model.classifier.state_dict())
    assert all(torch.equal(handed_on[name], tensor) for name, tensor in best.items())

    # training went on from its own weights, which the checkpoint has
    between, number = steps["between"]
    assert all(torch.equal(v, steps["trained"][number - 1][k]) for k, v in between.items())
    last = torch.load(tmp_path / "checkpoints/top/last.ckpt", weights_only=True)["state_dict"]
    for name, tensor in last.items():
        assert torch.equal(steps["trained"][-1][name.removeprefix("classifier.")], tensor)

    # and what is frozen did not move by one bit
    frozen = [name for name in best if ".conv5." not in name and not name.startswith("head.")]
    assert len(frozen) == len(best) - 6 - 2  # a convolution and a BatchNorm; the head
    assert all(torch.equal(best[name], steps["start"][name]) for name in frozen)


def test_a_resumed_average_is_the_same(image_folder, tmp_path, monkeypatch):
    settings = (*SETTINGS, "data.batch_size=5")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    parts.mkdir()
    train_stages(job(image_folder, whole, *settings))

    original = StageModule.training_step

    def stop_once(self, batch, batch_idx):
        if self.stage.name == "top" and (self.current_epoch, batch_idx) == (1, 1):
            monkeypatch.setattr(StageModule, "training_step", original)
            for callback in self.trainer.checkpoint_callbacks:
                callback.interrupted_by = 15
        return original(self, batch, batch_idx)

    monkeypatch.setattr(StageModule, "training_step", stop_once)
    with pytest.raises(Interrupted):
        train_stages(job(image_folder, parts, *settings))
    train_stages(job(image_folder, parts, *settings))
    a, b = (load_file(p / "checkpoints/top/weights.safetensors") for p in (whole, parts))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    a, b = (
        torch.load(p / "checkpoints/top/last.ckpt", weights_only=True)["callbacks"]["WeightAverage"]
        for p in (whole, parts)
    )
    assert a["step"] == b["step"] == 9
    assert all(torch.equal(a["average"][name], b["average"][name]) for name in a["average"])
