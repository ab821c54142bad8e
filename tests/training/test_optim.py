"""Named groups, and schedules against their formulas."""

import math

import pytest
import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau

from test_unfreezing import classifier, stage
from tlx.config import OptimizerSpec
from tlx.errors import UserError
from tlx.training.optim import build_optimizer, build_scheduler, check_schedule, optimizer_class
from tlx.training.unfreezing import apply_stage

SGD = OptimizerSpec("torch.optim.SGD", lr=0.5, settings={"momentum": 0.9})
SETTINGS = {"warmup": 0.2, "final": 0.1, "factor": 0.1, "patience": 0}


def test_one_named_group_for_each_layer_group_that_learns():
    model = classifier()
    apply_stage(model, stage("stage.head.train_from=layer4"))
    optimizer = build_optimizer(SGD, model)
    assert [group["name"] for group in optimizer.param_groups] == ["layer4", "head"]
    grouped = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    assert {group["momentum"] for group in optimizer.param_groups} == {0.9}


def rates(name, steps=10):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    scheduler = build_scheduler({"name": name, **SETTINGS}, optimizer, steps)
    seen = []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step(1.0) if isinstance(scheduler, ReduceLROnPlateau) else scheduler.step()
    return seen


def test_constant_rises_over_the_warm_up_only():
    assert rates("constant") == pytest.approx([0.5 / 3, 1.0 / 3] + [0.5] * 8)


def test_cosine_falls_to_its_final_fraction():
    cosine = [0.5 * (0.1 + 0.9 * (1 + math.cos(math.pi * k / 8)) / 2) for k in range(8)]
    assert rates("cosine") == pytest.approx([0.5 / 3, 1.0 / 3, *cosine])


def test_one_cycle_peaks_at_the_rate_and_ends_at_its_final_fraction():
    seen = rates("one_cycle", steps=11)
    assert seen[0] == pytest.approx(0.5 / 25)
    assert max(seen) == pytest.approx(0.5, rel=0.1)
    assert seen[-1] == pytest.approx(0.05)


def test_plateau_falls_when_the_loss_stands_still():
    assert rates("plateau", steps=3) == pytest.approx([0.5, 0.5, 0.05])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "cosin"}, "unknown scheduler name 'cosin'. Did you mean cosine"),
        ({"name": "cosine", "warmup": 2, "final": 0}, "scheduler.warmup=2 is outside 0 to 1"),
        ({"name": "cosine", "final": 0}, "scheduler.warmup=None: cosine needs a number"),
        ({"name": "one_cycle", "warmup": 0.3, "final": 0}, "a fraction above 0"),
    ],
)
def test_a_wrong_schedule_is_named(settings, message):
    with pytest.raises(UserError, match=message):
        check_schedule(settings)


def test_a_wrong_optimizer_is_named():
    with pytest.raises(UserError, match="'torch.optim.Adan' is no optimizer class"):
        optimizer_class(OptimizerSpec("torch.optim.Adan", 0.1, {}))
    with pytest.raises(UserError, match="unknown setting of torch.optim.SGD 'betas'"):
        optimizer_class(OptimizerSpec("torch.optim.SGD", 0.1, {"betas": [0.9, 0.99]}))
