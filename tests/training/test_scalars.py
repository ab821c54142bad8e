"""What a stage writes while it trains, read back from the event files."""

import math
from types import SimpleNamespace

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from torch import nn

from test_unfreezing import trained
from tlx.training import throughput
from tlx.training.norms import group_norms
from tlx.training.scalars import Scalars
from tlx.training.throughput import Throughput

SETTINGS = [
    "backbone=squeezenet1_1", "data.image_size=32", "data.keep_together=none", "stage=finetune",
    "stage.head.epochs=3", "stage.top.epochs=1", "scheduler=constant",
]  # fmt: skip


def series(events, tag):
    return [(event.step, event.value) for event in events.Scalars(tag)]


def steps(events, tag):
    return [step for step, _ in series(events, tag)]


def test_a_rate_is_that_of_its_step(image_folder, tmp_path):
    cosine = "scheduler={name: cosine, warmup: 0, final: 0}"
    trained(image_folder, tmp_path, *SETTINGS[:3], "stage=head", "stage.head.epochs=3",
            "stage.head.lr=0.01", f"stage.head.{cosine}")  # fmt: skip
    rates = series(EventAccumulator(str(tmp_path), {"scalars": 0}).Reload(), "lr/head")
    assert [step for step, _ in rates] == [4, 8, 10, 12]
    for step, rate in rates:  # the first of 12 steps has the whole rate
        expected = 0.01 * (1 + math.cos(math.pi * (step - 1) / 12)) / 2
        assert rate == pytest.approx(expected, rel=1e-5)


def test_every_series_of_two_stages_is_on_one_axis(image_folder, tmp_path):
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra/config.yaml").write_text("seed: 0\nloss: <b>\n")
    *_, results = trained(image_folder, tmp_path, *SETTINGS)
    assert [result.steps for result in results] == [12, 4]  # 14 images in batches of 4
    events = EventAccumulator(str(tmp_path), {"tensors": 0, "scalars": 0}).Reload()
    for tag in ("train/loss", "train/accuracy", "val/loss", "val/accuracy", "lr/head"):
        assert {4, 8, 12, 16} <= set(steps(events, tag)), tag
    assert steps(events, "train/loss_step") == [10]
    assert steps(events, "gradient_norm/head") == steps(events, "weight_norm/head") == [1, 11, 13]
    assert steps(events, "gradient_norm/fire9") == [13]
    assert not any(tag.endswith("_norm/fire8") for tag in events.Tags()["scalars"])
    assert steps(events, "speed/images_per_second") == [4, 8, 10, 12, 16]
    waiting = [value for _, value in series(events, "speed/waiting_for_data")]
    assert all(0 < value < 1 for value in waiting)
    assert steps(events, "stage/trainable_parameters") == [0, 12]

    (config,) = events.Tensors("config/text_summary")
    text = config.tensor_proto.string_val[0].decode()
    assert text == "```yaml\nseed: 0\nloss: <b>\n\n```"
    (layout,) = events.Tensors("custom_scalars__config__")
    found = layout_pb2.Layout.FromString(layout.tensor_proto.string_val[0])
    charts = {chart.title: list(chart.multiline.tag) for c in found.category for chart in c.chart}
    assert charts["loss"] == ["train/loss$", "val/loss$"]
    assert charts["accuracy"] == ["train/accuracy$", "val/accuracy$"]


def test_the_norms_are_those_of_the_gradient_as_one_vector():
    torch.manual_seed(0)
    groups = {"frozen": nn.Linear(3, 3), "block": nn.Linear(4, 5), "head": nn.Linear(5, 2)}
    groups["frozen"].requires_grad_(False)
    groups["head"](groups["block"](torch.randn(7, 4))).square().sum().backward()
    expected = {}
    for name in ("block", "head"):
        parameters = list(groups[name].parameters())
        gradients = [value for p in parameters for value in p.grad.flatten().tolist()]
        weights = [value for p in parameters for value in p.flatten().tolist()]
        expected[f"gradient_norm/{name}"] = math.hypot(*gradients)
        expected[f"weight_norm/{name}"] = math.hypot(*weights)
    assert group_norms(groups) == pytest.approx(expected, rel=1e-6)
    assert group_norms({"frozen": groups["frozen"]}) == {}


def test_norms_leave_training_as_it_is(image_folder, tmp_path, monkeypatch):
    _, first, *_ = trained(image_folder, tmp_path / "with", *SETTINGS)
    for hook in ("on_before_optimizer_step", "on_train_batch_end"):
        monkeypatch.setattr(Scalars, hook, lambda *_, **__: None)
    _, second, *_ = trained(image_folder, tmp_path / "without", *SETTINGS)
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_accumulated_batches_are_one_step_and_are_written_once(image_folder, tmp_path):
    trained(image_folder, tmp_path, *SETTINGS, "trainer.accumulate=2", "stage.head.epochs=5")
    events = EventAccumulator(str(tmp_path), {"scalars": 0}).Reload()
    assert steps(events, "train/loss_step") == [10]  # 4 batches an epoch are 2 steps
    assert steps(events, "gradient_norm/head") == [1, 11]
    assert steps(events, "lr/head") == sorted(set(steps(events, "lr/head")))


def test_speed_counts_the_time_between_batches_as_waiting(monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: clock.now)
    speed = Throughput()

    def batch(waits, computes):
        clock.now += waits
        speed.batch_arrived()
        clock.now += computes
        speed.batch_done(8)

    batch(1.0, 3.0)
    batch(0.0, 4.0)
    expected = {"speed/images_per_second": 16 / 8.0, "speed/waiting_for_data": 1 / 8.0}
    assert speed.read() == pytest.approx(expected)
    assert speed.read() == {}
    clock.now += 100  # val
    speed.begin()
    batch(2.0, 2.0)
    expected = {"speed/images_per_second": 2.0, "speed/waiting_for_data": 0.5}
    assert speed.read() == pytest.approx(expected)
    clock.now += 5  # callbacks wait for a GPU
    ended = clock.now
    clock.now += 1
    speed.batch_arrived(ended)
    clock.now += 2
    speed.batch_done(16)
    expected = {"speed/images_per_second": 2.0, "speed/waiting_for_data": 1 / 8}
    assert speed.read() == pytest.approx(expected)
    batch(2.0, 2.0)
    expected = {"speed/images_per_second": 2.0, "speed/waiting_for_data": 0.5}
    assert speed.read() == pytest.approx(expected)
