"""BatchNorm's drift against its formula, and the gap between the modes against a plain copy."""

import copy
import logging
import math

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from test_unfreezing import classifier, stage, trained
from tlx.models.outputs import sample_losses
from tlx.models.preprocess import Preprocess
from tlx.training.drift import BatchNormDrift, Drift, drift, mode_gap, statistics
from tlx.training.module import StageModule
from tlx.training.unfreezing import apply_stage


def test_drift_is_the_root_mean_square_over_a_blocks_channels():
    model = classifier("resnet18")
    bn1 = model.backbone.blocks.stem.bn1  # 64 channels, the only ones of its block
    bn1.running_mean.fill_(2.0)
    bn1.running_var.fill_(4.0 - bn1.eps)
    pretrained = statistics(model)
    nothing = Drift(0.0, 0.0)
    blocks = ["stem", "layer1", "layer2", "layer3", "layer4"]
    assert drift(model, pretrained) == dict.fromkeys(blocks, nothing)
    bn1.running_mean[:16] += 3.0  # 1.5 standard deviations in a quarter of the channels
    bn1.running_var[:32] = 4.0 * math.e**2 - bn1.eps  # e times as wide in half of them
    found = drift(model, pretrained)
    stem = found.pop("stem")
    assert stem.mean == pytest.approx(1.5 / 2, rel=1e-6)
    assert stem.scale == pytest.approx(1 / math.sqrt(2), rel=1e-6)
    assert found == dict.fromkeys(blocks[1:], nothing)


def test_drift_does_not_depend_on_the_scale_of_the_features():
    found = []
    for scale in (1.0, 1000.0):
        torch.manual_seed(0)
        model = classifier("resnet18")
        bn1 = model.backbone.blocks.stem.bn1
        bn1.running_var.fill_(scale**2)
        pretrained = statistics(model)
        bn1.running_mean.normal_().mul_(scale)
        bn1.running_var.mul_(2)
        found.append(drift(model, pretrained)["stem"])
    assert found[0].mean == pytest.approx(found[1].mean, rel=1e-4)
    assert found[0].scale == pytest.approx(math.log(2) / 2, rel=1e-4)
    assert found[1].scale == pytest.approx(math.log(2) / 2, rel=1e-4)


def module(backbone="resnet18", *overrides, dropout=0.0):
    model = classifier(backbone, dropout=dropout)
    chosen = stage(*overrides)
    apply_stage(model, chosen)
    preprocess = Preprocess.for_weights(backbone, image_size=64)
    return StageModule(model, preprocess, chosen, seed=0)


def batch():
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (6, 3, 64, 64), dtype=torch.uint8, generator=generator)
    return images, torch.tensor([0, 1, 2, 0, 1, 2]), torch.arange(6)


@pytest.mark.parametrize(
    "overrides",
    [
        ["stage.head.batchnorm=statistics"],
        ["stage.head.batchnorm=trainable"],
        ["stage.head.train_from=layer4.1"],
    ],
)
def test_the_gap_is_that_of_a_plain_copy_and_leaves_no_trace(overrides):
    trains = module("resnet18", *overrides, dropout=0.5)
    images, labels, _ = batch()
    plain = copy.deepcopy(trains)
    torch.manual_seed(5)
    with torch.no_grad():
        in_training = sample_losses(plain(images), labels).mean()
        plain = copy.deepcopy(trains).eval()
        in_evaluation = sample_losses(plain(images), labels).mean()
    expected = float(in_training) - float(in_evaluation)

    state = {name: value.clone() for name, value in trains.state_dict().items()}
    modes = [m.training for m in trains.modules()]
    torch.manual_seed(5)
    generator = torch.get_rng_state()
    assert mode_gap(trains, batch()) == expected != 0
    assert torch.equal(torch.get_rng_state(), generator)
    assert [m.training for m in trains.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in trains.state_dict().items())
    assert all(p.grad is None for p in trains.parameters())


def test_the_gap_is_zero_without_work_where_nothing_acts_differently(monkeypatch):
    monkeypatch.setattr(StageModule, "forward", None)  # calling it would raise
    assert mode_gap(module("resnet18"), batch()) == 0.0
    assert mode_gap(module("squeezenet1_1", "stage.head.train_from=all"), batch()) == 0.0


def scalars(folder):
    events = EventAccumulator(str(folder)).Reload()
    return {
        tag: {event.step: event.value for event in events.Scalars(tag)}
        for tag in events.Tags()["scalars"]
        if tag.startswith(("batchnorm_drift", "mode_gap"))
    }


def said(caplog):
    name = "tlx.training.drift"
    return [record.getMessage() for record in caplog.records if record.name == name]


def test_a_run_logs_drift_and_gap_and_is_not_changed_by_it(
    image_folder, tmp_path, caplog, monkeypatch
):
    overrides = [
        "backbone=resnet18", "data.image_size=32", "stage=head", "stage.head.epochs=2",
        "stage.head.batchnorm=statistics", "trainer.limit_train=2", "head.dropout=0.5",
    ]  # fmt: skip
    with caplog.at_level(logging.INFO, logger="tlx.training.drift"):
        before, after, *_ = trained(image_folder, tmp_path / "with", *overrides)
    found = scalars(tmp_path / "with")
    blocks = ["stem", "layer1", "layer2", "layer3", "layer4"]
    assert set(found) == {"mode_gap/loss"} | {
        f"batchnorm_drift_{kind}/{block}" for block in blocks for kind in ("mean", "scale")
    }
    assert {tuple(values) for values in found.values()} == {(2, 4)}  # steps: 2 epochs of 2
    mean, var = (f"backbone.blocks.stem.bn1.running_{kind}" for kind in ("mean", "var"))
    shift = (after[mean] - before[mean]) / (before[var] + 1e-5).sqrt()
    factor = ((after[var] + 1e-5) / (before[var] + 1e-5)).log() / 2
    for kind, value in (("mean", shift), ("scale", factor)):
        expected = value.square().mean().sqrt().item()
        assert found[f"batchnorm_drift_{kind}/stem"][4] == pytest.approx(expected, rel=1e-5) != 0
    assert all(gap != 0 for gap in found["mode_gap/loss"].values())
    lines = said(caplog)
    assert len(lines) == 2
    assert all(line.startswith("BatchNorm's statistics moved in 5 of 5 blocks") for line in lines)

    monkeypatch.setattr(BatchNormDrift, "on_train_epoch_end", lambda *_: None)
    trained(image_folder, tmp_path / "without", *overrides)
    checkpoints = [
        torch.load(tmp_path / run / "checkpoints/head/last.ckpt", weights_only=True)
        for run in ("with", "without")
    ]
    first, second = ([c["state_dict"], c["optimizer_states"][0]["state"]] for c in checkpoints)
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_a_run_with_frozen_batchnorm_logs_zeros_and_no_line(image_folder, tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="tlx.training.drift"):
        trained(
            image_folder, tmp_path, "backbone=mobilenet_v3_small", "data.image_size=32",
            "stage=head", "stage.head.epochs=1", "trainer.limit_train=2",
        )  # fmt: skip
    found = scalars(tmp_path)
    assert len(found) == 1 + 2 * 13
    assert {value for values in found.values() for value in values.values()} == {0.0}
    assert said(caplog) == []
