"""Named groups, and schedules against their formulas."""

import itertools
import math

import pytest
import torch
from safetensors.torch import load_file
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau

from test_module import job
from test_unfreezing import classifier, learning, stage
from tlx.composition import compose, conf_dir
from tlx.config import parse
from tlx.errors import UserError
from tlx.specs import OptimizerSpec
from tlx.training.module import StageModule
from tlx.training.optim import (
    build_optimizer,
    build_scheduler,
    check_schedule,
    is_decayed,
    layer_group_rates,
    optimizer_class,
)
from tlx.training.plan import check
from tlx.training.run import train_stages
from tlx.training.unfreezing import apply_stage

SETTINGS = {"warmup": 0.2, "final": 0.1, "factor": 0.1, "patience": 0}
NORMS = (torch.nn.LayerNorm, torch.nn.GroupNorm, torch.nn.modules.batchnorm._BatchNorm)


def optimizer_of(model, *overrides):
    settings = stage(*overrides)
    apply_stage(model, settings)
    return build_optimizer(settings, model)


def names_by_group(model, optimizer):
    """Parameter group → the names of its parameters, without the layer group's own."""
    names = {}
    for name, module in model.groups.items():
        names |= {id(p): path for path, p in module.named_parameters(prefix=name)}
    return {g["name"]: {names[id(p)] for p in g["params"]} for g in optimizer.param_groups}


def test_one_named_group_for_each_layer_group_that_learns():
    model = classifier()
    optimizer = optimizer_of(model, "stage.head.train_from=layer4", "optimizer=sgd")
    assert [group["name"] for group in optimizer.param_groups] == ["layer4", "head"]
    grouped = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    assert {group["momentum"] for group in optimizer.param_groups} == {0.9}


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_each_earlier_layer_group_has_a_lower_rate(optimizer):
    found = optimizer_of(
        classifier(), "stage.head.train_from=layer2", f"optimizer={optimizer}",
        "stage.head.lr=0.5", "stage.head.lr_decay=0.1",
    )  # fmt: skip
    rates = layer_group_rates(found)
    assert rates == pytest.approx({"layer2": 5e-4, "layer3": 5e-3, "layer4": 0.05, "head": 0.5})
    assert list(rates) == ["layer2", "layer3", "layer4", "head"]


def test_weight_decay_spares_norms_and_biases():
    model = classifier()
    optimizer = optimizer_of(model, "stage.head.train_from=layer4", "optimizer=adamw")
    assert [(g["name"], g["weight_decay"]) for g in optimizer.param_groups] == [
        ("layer4", 0.05), ("layer4.no_decay", 0.0), ("head", 0.05), ("head.no_decay", 0.0)
    ]  # fmt: skip
    norms = ["0.bn1", "0.bn2", "0.downsample.1", "1.bn1", "1.bn2"]
    groups = names_by_group(model, optimizer)
    assert groups["layer4.no_decay"] == {
        f"layer4.{norm}.{p}" for norm in norms for p in ("weight", "bias")
    }
    assert groups["layer4"] == {
        f"layer4.{c}.weight" for c in ("0.conv1", "0.conv2", "0.downsample.0", "1.conv1", "1.conv2")
    }
    assert groups["head"] == {"head.layers.output.weight"}


def test_weight_decay_that_is_the_optimizers_default_spares_them_too():
    overrides = "stage.head.optimizer={_target_: torch.optim.AdamW}"
    optimizer = optimizer_of(classifier(), overrides)
    decays = {group["name"]: group["weight_decay"] for group in optimizer.param_groups}
    assert decays == {"head": 0.01, "head.no_decay": 0.0}


@pytest.mark.parametrize(
    ("backbone", "others"),
    [
        ("vgg16_bn", set()),
        ("mobilenet_v3_small", set()),
        ("inception_v3", set()),
        ("vit_b_16", {"embedding.class_token", "embedding.encoder.pos_embedding"}),
        ("swin_v2_t", {"logit_scale"}),
        ("swin_t", {"relative_position_bias_table"}),
        ("convnext_tiny", {"layer_scale"}),
    ],
)
def test_what_is_spared_is_norms_biases_scales_and_tokens(backbone, others):
    with torch.device("meta"):
        model = classifier(backbone, image_size=224)
    spared = {name for name, p in model.named_parameters() if not is_decayed(name, p)}
    norms = {
        f"{path}.{name}"
        for path, module in model.named_modules()
        if isinstance(module, NORMS)
        for name, _ in module.named_parameters()
    }
    biases = {name for name, _ in model.named_parameters() if name.endswith("bias")}
    assert norms | biases <= spared
    assert {name.rsplit(".", 1)[-1] for name in spared - norms - biases} == {
        name.rsplit(".", 1)[-1] for name in others
    }


@pytest.mark.parametrize(
    ("optimizer", "settings", "fused"),
    [
        ("adam", [], True), ("adamw", [], True), ("sgd", [], True), ("rmsprop", [], None),
        ("adam", ["+optimizer.fused=false"], False), ("adam", ["+optimizer.foreach=true"], None),
    ],
)  # fmt: skip
def test_fused_where_pytorch_has_it_unless_told_otherwise(optimizer, settings, fused):
    found = optimizer_of(classifier(), f"optimizer={optimizer}", *settings)
    assert found.defaults.get("fused") is fused


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_a_fused_step_is_the_step(optimizer):
    """Against the same optimizer one tensor after the other, over five steps."""
    weights = []
    for fused in ("true", "false"):
        found = optimizer_of(classifier(), f"optimizer={optimizer}", f"+optimizer.fused={fused}")
        parameters = [p for group in found.param_groups for p in group["params"]]
        with torch.no_grad():
            for p in parameters:
                p.copy_(torch.linspace(-1, 1, p.numel()).view_as(p))
        for step in range(1, 6):
            for p in parameters:
                p.grad = torch.linspace(-step, 1, p.numel()).view_as(p)
            found.step()
        weights.append(torch.cat([p.detach().flatten() for p in parameters]))
    torch.testing.assert_close(*weights, atol=1e-6, rtol=0)


def test_with_l2_sp_only_the_head_decays_toward_zero():
    optimizer = optimizer_of(
        classifier(), "stage.head.train_from=layer4", "optimizer=adamw", "stage.head.l2_sp=0.01"
    )
    decays = {group["name"]: group["weight_decay"] for group in optimizer.param_groups}
    assert decays == {"layer4": 0.0, "head": 0.05, "head.no_decay": 0.0}


def rates(name, steps=10, **changes):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    scheduler = build_scheduler({"name": name, **SETTINGS, **changes}, optimizer, steps)
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


@pytest.mark.parametrize(("steps", "peak", "warmup"), [(11, 2, 0.2), (50, 15, 0.3), (3, 1, 0.5)])
def test_one_cycle_equals_torch_where_torch_can(steps, peak, warmup):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    reference = OneCycleLR(
        optimizer, 0.5, total_steps=steps, pct_start=(peak + 1) / steps,
        final_div_factor=1 / (25 * 0.1), cycle_momentum=False,
    )  # fmt: skip
    expected = []
    for _ in range(steps):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        reference.step()
    assert rates("one_cycle", steps, warmup=warmup) == pytest.approx(expected)


@pytest.mark.parametrize("warmup", [0, 0.25, 0.5, 1])
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_one_cycle_of_any_length_has_its_peak(steps, warmup):
    assert max(rates("one_cycle", steps, warmup=warmup)) == pytest.approx(0.5)


def test_plateau_falls_when_the_loss_stands_still():
    assert rates("plateau", steps=3) == pytest.approx([0.5, 0.5, 0.05])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "cosin"}, "unknown scheduler name 'cosin'. Did you mean cosine"),
        ({"name": "cosine", "warmup": 2, "final": 0}, "scheduler.warmup=2 is outside 0 to 1"),
        (
            {"name": "cosine", "final": 0},
            r"needs warmup, .*: 'stage.NAME.scheduler={name: cosine, f",
        ),
        ({"name": "plateau", "factor": 1.0, "patience": 1}, "factor=1 would lower no rate"),
        ({"name": "plateau", "factor": 0.5, "patience": 2.5}, "patience=2.5: a number of epochs"),
        (
            {"name": "constant", "warmup": 0, "warm_up": 0.1},
            "unknown setting of the scheduler constant 'warm_up'. Did you mean warmup",
        ),
    ],
)
def test_a_wrong_schedule_is_named(settings, message):
    with pytest.raises(UserError, match=message):
        check_schedule(settings)


def test_a_wrong_optimizer_is_named():
    with pytest.raises(UserError, match="'torch.optim.Adan' is no optimizer class"):
        optimizer_class(OptimizerSpec("torch.optim.Adan", 0.1, {}))
    with pytest.raises(UserError, match="unknown setting of torch.optim.SGD 'betas'.*~o"):
        optimizer_class(OptimizerSpec("torch.optim.SGD", 0.1, {"betas": [0.9, 0.99]}))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("lr_decay=0", "stage.head.lr_decay=0: it must be above 0 and at most 1"),
        ("lr_decay=1.5", "stage.head.lr_decay=1.5: it must be"),
        ("l2_sp=-1", "stage.head.l2_sp=-1: a strength of 0 or more"),
        ("ema=1", "stage.head.ema=1: a decay between 0 and 1"),
        ("ema=0", "stage.head.ema=0: a decay between 0 and 1"),
        ("lr=fined", "stage.head.lr='fined' is not valid; it takes a number or find or null"),
    ],
)
def test_a_wrong_rate_is_named(setting, message):
    with pytest.raises(UserError, match=message):
        stage(f"stage.head.{setting}")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["stage.top.l2_sp=0.1", "backbone.weights=null"], "stage.top.l2_sp=0.1 holds weights"),
        (
            ["optimizer=sgd", "optimizer.momentum=0", "+optimizer.nesterov=true"],
            "optimizer torch.optim.SGD: Nesterov momentum requires",
        ),
        (
            ["optimizer.betas=[0.9]"],
            r"optimizer torch.optim.AdamW: list index .* \(with betas=\[0.9\], ",
        ),
        (["+optimizer.differentiable=true"], "optimizer torch.optim.AdamW: a leaf Variable"),
        (
            [
                "optimizer=sgd",
                "~optimizer.momentum",
                "~optimizer.weight_decay",
                "optimizer._target_=torch.optim.SparseAdam",
            ],
            "optimizer torch.optim.SparseAdam: SparseAdam does not support dense gradients",
        ),
        (["data.batch_size=31", "trainer=ddp"], "batch_size=31 cannot be shared by 2 processes"),
        (["stage.top.lr=find", "trainer=ddp"], "stage.top.lr=find: the sweep runs in one process"),
    ],
)
def test_what_cannot_be_is_refused_before_work(overrides, message):
    with pytest.raises(UserError, match=message):
        check(parse(compose(["stage=finetune", *overrides])))


SCHEDULES = ["constant", "cosine", "one_cycle", "plateau"]
STAGES = ["head", "finetune", "full", "scratch", "gradual"]
DIAGONAL = set(zip(["one_cycle", "cosine", "plateau", "constant"], STAGES[:4], strict=True))
TINY = (
    "backbone=shufflenet_v2_x0_5", "data.batch_size=7", "trainer.limit_epochs=2", "optimizer=sgd",
    "optimizer.lr=0.1", "trainer.precision=32",
)  # fmt: skip


EVERY_CHOICE = [
    pytest.param(*choice, marks=[] if choice in DIAGONAL else [pytest.mark.slow])
    for choice in itertools.product(SCHEDULES, STAGES)
]


def test_these_are_all_schedules_and_stage_lists():
    assert {path.stem for path in (conf_dir() / "scheduler").glob("*.yaml")} == set(SCHEDULES)
    assert {path.stem for path in (conf_dir() / "stage").glob("*.yaml")} == set(STAGES)


@pytest.mark.parametrize(("schedule", "stages"), EVERY_CHOICE)
def test_what_has_a_gradient_moves_and_nothing_else(
    image_folder, tmp_path, monkeypatch, schedule, stages
):
    run = job(image_folder, tmp_path, *TINY, f"scheduler={schedule}", f"stage={stages}")
    classifier, driven = run.model.classifier, {}

    def spy(self, optimizer):
        names = driven.setdefault(self.stage.name, set())
        names |= {
            name for name, p in classifier.named_parameters() if p.grad is not None and p.grad.any()
        }

    monkeypatch.setattr(StageModule, "on_before_optimizer_step", spy)
    start = {name: p.detach().clone() for name, p in classifier.named_parameters()}
    results = train_stages(run)
    assert [result.steps for result in results] == [2 * 2] * len(run.config.stages)
    for trained in run.config.stages:
        apply_stage(classifier, trained)
        assert driven[trained.name] == learning(classifier)
        place = tmp_path / "checkpoints" / trained.name
        last = torch.load(place / "last.ckpt", weights_only=True)["state_dict"]
        found = load_file(place / "weights.safetensors")  # has what a checkpoint leaves out
        found |= {name.removeprefix("classifier."): tensor for name, tensor in last.items()}
        moved = {name for name, tensor in start.items() if not torch.equal(found[name], tensor)}
        assert moved == driven[trained.name]
        start = load_file(place / "weights.safetensors")
        start = {name: start[name] for name, _ in classifier.named_parameters()}


@pytest.mark.parametrize(
    ("setting", "an_epoch"),
    [("trainer.accumulate=1", 5), ("trainer.accumulate=2", 3), ("trainer.limit_train=2", 2)],
)
def test_a_schedule_counts_the_stages_own_steps(
    image_folder, tmp_path, monkeypatch, setting, an_epoch
):
    """14 training images, 3 a batch: 4 batches and one of two images, for 2 epochs a stage."""
    run = job(
        image_folder, tmp_path, *TINY, "data.batch_size=3", "stage=finetune", "scheduler=one_cycle",
        "scheduler.final=0.5", "stage.top.lr_scale=0.1", setting,
    )  # fmt: skip
    used = {}

    def spy(self, optimizer):
        used.setdefault(self.stage.name, []).append(optimizer.param_groups[-1]["lr"])

    monkeypatch.setattr(StageModule, "on_before_optimizer_step", spy)
    assert [result.steps for result in train_stages(run)] == [2 * an_epoch] * 2
    expected = rates("one_cycle", 2 * an_epoch, warmup=0.3, final=0.5)
    assert used["head"] == pytest.approx([0.2 * rate for rate in expected])
    assert used["top"] == pytest.approx([0.02 * rate for rate in expected])
