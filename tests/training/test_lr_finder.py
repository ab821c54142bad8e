"""The sweep changes nothing but the stage's rate; the choice, on curves whose answer is known."""

import copy
import json
import logging
import math
import random
import xml.etree.ElementTree as ET

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from test_module import job
from tlx.training import lr_finder
from tlx.training.inputs import image_data
from tlx.training.lr_finder import Sweep, choose, find_rate, plot, smooth, sweep
from tlx.training.module import StageModule
from tlx.training.run import train_stages
from tlx.training.unfreezing import apply_stage

FIND = (
    "backbone=shufflenet_v2_x0_5", "stage=finetune", "stage.head.epochs=1", "stage.top.epochs=1",
    "optimizer=adamw", "head.dropout=0.5", "trainer.precision=32", "cache=off",
)  # fmt: skip


def curve(fall_at, *, depth=0.9, noise=0.0):
    """Losses around 1 that fall steepest at 10**fall_at and rise from 10 times that on."""
    rates = [10 ** (-6 + 7 * k / 99) for k in range(100)]
    generator = torch.Generator().manual_seed(0)
    losses = []
    for rate in rates:
        place = math.log10(rate) - fall_at
        loss = 1 - depth / (1 + math.exp(-4 * place)) + max(0, place - 1.5) ** 2
        losses.append(loss + noise * torch.randn(1, generator=generator).item())
    return Sweep(tuple(rates), tuple(losses), (1.0,) * 100)


@pytest.mark.parametrize("fall_at", [-4, -2.5, -1])
def test_the_choice_is_midway_from_the_steepest_to_the_lowest_loss(fall_at):
    clean = curve(fall_at)
    line = smooth(clean.compared)
    enough = line.min() + 0.05 * (line[0] - line.min())
    lowest = math.log10(clean.rates[int((line <= enough).nonzero()[0])])
    expected = (fall_at + lowest) / 2
    assert fall_at + 0.2 < expected < lowest
    assert math.log10(choose(clean).rate) == pytest.approx(expected, abs=0.05)
    assert math.log10(choose(curve(fall_at, noise=0.05)).rate) == pytest.approx(expected, abs=0.3)


def test_how_hard_a_batch_is_does_not_move_the_choice():
    clean = curve(-3)
    hard = 2 * torch.rand(100, generator=torch.Generator().manual_seed(1))
    noisy = [tuple(v + h for v, h in zip(vs, hard.tolist(), strict=True))
             for vs in (clean.losses, clean.untrained)]  # fmt: skip
    assert choose(Sweep(clean.rates, *noisy)).rate == pytest.approx(choose(clean).rate)
    assert choose(Sweep(clean.rates, noisy[0], clean.untrained)).rate != choose(clean).rate


def test_where_the_loss_is_nothing_batches_do_not_choose():
    clean = curve(-3, depth=1.0)
    losses = [loss if k < 55 else 0.0 for k, loss in enumerate(clean.losses)]
    hard = (1 + torch.rand(100, generator=torch.Generator().manual_seed(2))).tolist()
    tried = Sweep(clean.rates, tuple(a * b for a, b in zip(losses, hard, strict=True)), tuple(hard))
    found = choose(tried)
    assert found.rate is not None
    assert -3.5 < math.log10(found.rate) < -2
    assert "-" not in found.reason.split("from ")[1].split(" at ")[0]


def test_a_sweep_that_ends_while_the_loss_falls_leaves_the_default():
    losses = tuple(1 - k / 25 for k in range(20))
    found = choose(Sweep(tuple(10 ** (-6 + 7 * k / 19) for k in range(20)), losses, (1.0,) * 20))
    assert found.rate is None
    assert "still fell at the last rate" in found.reason


def test_a_curve_that_says_nothing_leaves_the_default():
    assert choose(curve(-3, depth=0.0)).rate is None
    assert "fell at no rate" in choose(curve(-3, depth=0.02)).reason
    assert (
        choose(Sweep((1e-6,), (9.0,), (9.0,))).reason
        == "the loss diverged within 1 steps of the sweep"
    )


def test_smoothing_keeps_a_constant_and_does_not_lag():
    assert smooth(torch.full((20,), 0.7)).tolist() == pytest.approx([0.7] * 20)
    line = torch.arange(60.0)
    assert smooth(line)[20:40].tolist() == pytest.approx(line[20:40].tolist())


def states(classifier):
    state = {k: v.clone() for k, v in classifier.state_dict().items()}
    flags = {k: p.requires_grad for k, p in classifier.named_parameters()}
    modes = {k: m.training for k, m in classifier.named_modules()}
    grads = {k: p.grad for k, p in classifier.named_parameters()}
    chance = torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())
    return state, (flags, modes, grads, chance)


def test_the_sweep_leaves_everything_as_it_was(image_folder, tmp_path):
    run = job(image_folder, tmp_path, *FIND, "stage.head.train_from=all")
    classifier, stage = run.model.classifier, run.config.stages[0]
    apply_stage(classifier, stage)
    module = StageModule(classifier, run.model.preprocess, stage, seed=0)
    trained = torch.optim.AdamW(classifier.parameters())
    classifier(torch.randn(4, 3, 32, 32)).sum().backward()
    trained.step()
    trained.zero_grad()
    memory = [v.clone() for state in trained.state.values() for v in state.values()]
    before, others = states(classifier)

    found = sweep(
        module, image_data(run), device=torch.device("cpu"), bf16=False, clip=1.0, limit=2
    )
    assert 10 <= len(found.losses) == len(found.rates) <= 20
    assert found.rates[0] == 1e-6
    after, others_after = states(classifier)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert others == others_after
    remembered = [v for state in trained.state.values() for v in state.values()]
    assert len(memory) >= 3 * 2
    assert all(torch.equal(a, b) for a, b in zip(memory, remembered, strict=True))


def test_a_sweep_equals_a_plain_loop(image_folder, tmp_path):
    run = job(image_folder, tmp_path, *FIND, "optimizer=sgd", "head.dropout=0")
    stage = run.config.stages[0]
    apply_stage(run.model.classifier, stage)
    module = StageModule(run.model.classifier, run.model.preprocess, stage, seed=0)
    found = sweep(
        module, image_data(run), device=torch.device("cpu"), bf16=False, clip=None, limit=None
    )
    apply_stage(run.model.classifier, stage)
    head = run.model.classifier.head
    optimizer = torch.optim.SGD(head.parameters(), lr=1, momentum=0.9)
    losses, untrained, data = [], [], image_data(run)
    first = copy.deepcopy(module)
    loader = data.train_dataloader()
    for step, rate in enumerate(found.rates[:12]):
        if step % len(loader) == 0:
            loader.sampler.set_epoch(step // len(loader))
            batches = iter(loader)
        images, labels, _ = next(batches)
        loss = torch.nn.functional.cross_entropy(module(images), labels)
        losses.append(loss.item())
        untrained.append(torch.nn.functional.cross_entropy(first(images), labels).item())
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert found.rates[1] / found.rates[0] == pytest.approx(10 ** (7 / 99))
    assert found.losses[:12] == pytest.approx(losses, abs=1e-6)
    assert found.untrained[:12] == pytest.approx(untrained, abs=1e-6)


def test_a_stage_trains_at_the_rate_found_and_a_resumed_one_at_the_same(
    image_folder, tmp_path, caplog, monkeypatch
):
    caplog.set_level(logging.INFO, "tlx")
    monkeypatch.setattr(lr_finder, "STEPS", 30)
    run = job(image_folder, tmp_path, *FIND, "stage.top.lr=find", "scheduler=constant")
    train_stages(run)
    place = tmp_path / "checkpoints/top"
    found = json.loads((place / "lr.json").read_text())
    assert len(found["rates"]) == len(found["losses"]) >= 10
    last = torch.load(place / "last.ckpt", weights_only=True)
    used = {g["lr"] for g in last["optimizer_states"][0]["param_groups"]}
    assert used == {found["lr"]}
    assert not (tmp_path / "checkpoints/head/lr.json").exists()
    assert f"Stage top: learning rate {found['lr']:.1e}: " in caplog.text
    ET.fromstring((place / "lr.svg").read_text())

    def fail():
        raise AssertionError("swept again")

    again = find_rate(run.config.stages[1], place, fail)
    assert again.optimizer.lr == found["lr"]

    # the sweep before it did not change the stage: the same rate given by hand is the same run
    other = tmp_path / "other"
    other.mkdir()
    given = f"stage.top.lr={found['lr']!r}"
    train_stages(job(image_folder, other, *FIND, given, "scheduler=constant"))
    one, two = (load_file(p / "checkpoints/top/weights.safetensors") for p in (tmp_path, other))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_the_drawing_marks_every_batch_and_the_rate():
    tried = curve(-3, noise=0.02)
    drawing = ET.fromstring(plot(tried, 1e-3, "top"))
    space = "{http://www.w3.org/2000/svg}"
    assert len(drawing.findall(f"{space}circle")) == 100
    (mark,) = drawing.findall(f"{space}line")
    assert float(mark.get("x1")) == pytest.approx(60 + 520 * 3 / 7, abs=0.1)
    ticks = [t.text for t in drawing.findall(f"{space}text")]
    assert {"1e-6", "1e-3", "1e1"} <= set(ticks)
