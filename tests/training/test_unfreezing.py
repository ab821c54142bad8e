"""What a stage lets learn, and what it leaves as it is."""

import json
import logging

import pytest
import torch
from torchvision.ops import StochasticDepth

from tlx.composition import compose
from tlx.config import parse
from tlx.errors import UserError
from tlx.models.folder import Architecture, build_classifier
from tlx.training.job import prepare
from tlx.training.module import StageModule
from tlx.training.plan import check, meta_classifier
from tlx.training.run import train_stages
from tlx.training.unfreezing import (
    StagedUnfreezing,
    apply_stage,
    check_refreezing,
    plain_stages,
)


def classifier(backbone="resnet18", **changes):
    settings = {
        "backbone": backbone, "image_size": 64, "num_outputs": 3, "pool": "avg", "hidden": (),
        "activation": "relu", "dropout": 0.0,
    }  # fmt: skip
    torch.manual_seed(0)
    return build_classifier(Architecture(**{**settings, **changes}))


def stage(*overrides, name="head"):
    stages = parse(compose(["stage=finetune", *overrides])).stages
    return next(s for s in stages if s.name == name)


def learning(model):
    return {name for name, p in model.named_parameters() if p.requires_grad}


def test_head_alone_learns():
    model = classifier()
    apply_stage(model, stage())
    assert learning(model) == {"head.layers.output.weight", "head.layers.output.bias"}


def test_everything_from_the_block_on_learns_and_nothing_else():
    model = classifier()
    apply_stage(model, stage("stage.head.train_from=layer3"))
    expected = {
        name for name, _ in model.named_parameters()
        if name.startswith(("backbone.blocks.layer3.", "backbone.blocks.layer4.", "head."))
    }  # fmt: skip
    assert learning(model) == expected
    assert len(expected) == 15 + 15 + 2  # 5 convolutions and 5 BatchNorms of 2 a block; the head


def test_a_stage_undoes_what_was_set_before():
    model = classifier()
    apply_stage(model, stage("stage.head.train_from=all"))
    apply_stage(model, stage())
    assert len(learning(model)) == 2
    assert not any(m.training for m in model.backbone.modules() if m is not model.backbone.blocks
                   and m is not model.backbone)  # fmt: skip


@pytest.mark.parametrize("policy", ["frozen", "statistics", "trainable"])
def test_batchnorm_policy_in_frozen_blocks(policy):
    model = classifier()
    apply_stage(model, stage(f"stage.head.batchnorm={policy}"))
    norms = [m for m in model.backbone.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    before = [(m.running_mean.clone(), m.weight.clone()) for m in norms]
    assert len(norms) == 20
    model(torch.randn(4, 3, 64, 64)).sum().backward()
    moved = [
        not torch.equal(m.running_mean, mean) for m, (mean, _) in zip(norms, before, strict=True)
    ]
    assert moved == [policy != "frozen"] * 20
    assert all((m.weight.grad is not None) == (policy == "trainable") for m in norms)


@pytest.mark.parametrize("policy", ["frozen", "statistics", "trainable"])
def test_batchnorm_policy_in_blocks_that_learn(policy):
    model = classifier()
    apply_stage(
        model, stage("stage.head.train_from=layer4", f"stage.head.batchnorm_learning={policy}")
    )
    norms = {path: m for path, m in model.backbone.blocks.named_modules()
             if isinstance(m, torch.nn.BatchNorm2d)}  # fmt: skip
    before = {path: m.running_mean.clone() for path, m in norms.items()}
    model(torch.randn(4, 3, 64, 64)).sum().backward()
    moved = {path for path, m in norms.items() if not torch.equal(m.running_mean, before[path])}
    with_gradient = {path for path, m in norms.items() if m.weight.grad is not None}
    top = {path for path in norms if path.startswith("layer4.")}
    assert len(top) == 5
    assert moved == (set() if policy == "frozen" else top)
    assert with_gradient == (top if policy == "trainable" else set())
    assert model.backbone.blocks.layer4[1].conv2.weight.grad is not None


def test_every_batchnorm_learns_while_the_convolutions_stay_frozen():
    model = classifier()
    apply_stage(model, stage("stage.head.batchnorm=trainable", "stage.head.batchnorm_momentum=0.1"))
    norms = {f"backbone.blocks.{path}.{name}" for path, m in model.backbone.blocks.named_modules()
             if isinstance(m, torch.nn.BatchNorm2d) for name in ("weight", "bias")}  # fmt: skip
    assert len(norms) == 40
    assert learning(model) == norms | {"head.layers.output.weight", "head.layers.output.bias"}


def test_momentum_lasts_as_long_as_its_stage():
    model = classifier("mobilenet_v3_small")  # torchvision gives it 0.01

    def momenta():
        return {m.momentum for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)}

    assert momenta() == {0.01}
    apply_stage(model, stage("stage.head.batchnorm_momentum=0.1"))
    assert momenta() == {0.1}
    apply_stage(model, stage())
    assert momenta() == {0.01}


def test_momentum_weighs_the_new_statistics():
    model = classifier()
    apply_stage(
        model, stage("stage.head.batchnorm=statistics", "stage.head.batchnorm_momentum=0.25")
    )
    images = torch.randn(4, 3, 64, 64)
    stem = model.backbone.blocks.stem
    of_batch = stem.conv1(images).mean(dim=(0, 2, 3))
    model(images)
    torch.testing.assert_close(stem.bn1.running_mean, 0.75 * 0 + 0.25 * of_batch)


@pytest.mark.parametrize("momentum", [0, 1.5])
def test_a_momentum_outside_its_range_is_refused(momentum):
    with pytest.raises(
        UserError, match=f"batchnorm_momentum={momentum} is not above 0 and at most 1"
    ):
        stage(f"stage.head.batchnorm_momentum={momentum}")


@pytest.mark.parametrize(
    ("backbone", "settings", "messages"),
    [
        ("squeezenet1_1", {"batchnorm_learning": "frozen", "batchnorm_momentum": 0.1},
         ["stage.head: batchnorm_learning=frozen, batchnorm_momentum=0.1 has no effect: "
          "squeezenet1_1 has no BatchNorm."]),
        ("squeezenet1_1", {"batchnorm": "statistics"},
         ["stage.head: batchnorm=statistics has no effect: squeezenet1_1 has no BatchNorm."]),
        ("squeezenet1_1", {}, []),
        ("resnet18", {"batchnorm": "statistics"}, []),
    ],
)  # fmt: skip
def test_a_policy_without_batchnorm_warns(backbone, settings, messages, caplog):
    chosen = stage(*(f"stage.head.{key}={value}" for key, value in settings.items()))
    callback = StagedUnfreezing(classifier(backbone), chosen)

    class Trainer:
        is_global_zero = True

    with caplog.at_level(logging.WARNING):
        callback.setup(Trainer(), None, "fit")
    assert [record.getMessage() for record in caplog.records] == messages


# ---- Lists of stages


def planned(*overrides, model=None):
    """(name, train_from, epochs, trainable) of each stage, as `check` lets it pass."""
    config = parse(compose(["data=folder", "data.root=/", *overrides]))
    if model is None:
        check(config)
        model = meta_classifier(config, num_classes=10)
    found = []
    for chosen in plain_stages(model, config.stages):
        apply_stage(model, chosen)
        trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
        found.append((chosen.name, chosen.train_from, chosen.epochs, trainable))
    return found


def test_trainable_parameters_of_vgg16_by_hand():
    head = 512 * 10 + 10
    block5 = 3 * (512 * 512 * 9 + 512)
    block4 = (256 * 512 * 9 + 512) + 2 * (512 * 512 * 9 + 512)
    block3 = (128 * 256 * 9 + 256) + 2 * (256 * 256 * 9 + 256)
    block2 = (64 * 128 * 9 + 128) + (128 * 128 * 9 + 128)
    block1 = (3 * 64 * 9 + 64) + (64 * 64 * 9 + 64)
    assert planned("backbone=vgg16", "stage=gradual") == [
        ("head", "head", 5, head),
        ("unfreeze-block5", "block5", 2, head + block5),
        ("unfreeze-block4", "block4", 2, head + block5 + block4),
        ("unfreeze-block3", "block3", 2, head + block5 + block4 + block3),
        ("unfreeze-block2", "block2", 2, head + block5 + block4 + block3 + block2),
        ("unfreeze-block1", "block1", 2, head + block5 + block4 + block3 + block2 + block1),
    ]
    assert planned("backbone=vgg16", "stage.top.train_from=block5.conv2") == [
        ("head", "head", 8, head),
        ("top", "block5.conv2", 3, head + 2 * (512 * 512 * 9 + 512)),
    ]


def test_trainable_parameters_of_resnet50_by_hand():
    def bottleneck(inputs, width):  # 1×1, 3×3 and 1×1 convolutions, BatchNorm's two after each
        outputs = 4 * width
        return (
            (inputs * width + 2 * width)
            + (width * width * 9 + 2 * width)
            + (width * outputs + 2 * outputs)
        )

    def layer(inputs, width, count):  # the first bottleneck has a 1×1 convolution beside it
        first = bottleneck(inputs, width) + inputs * 4 * width + 2 * 4 * width
        return first + (count - 1) * bottleneck(4 * width, width)

    head = 2048 * 10 + 10
    layer4, layer3 = layer(1024, 512, 3), layer(512, 256, 6)
    everything = 3 * 64 * 49 + 2 * 64 + layer(64, 64, 3) + layer(256, 128, 4) + layer3 + layer4
    config = parse(compose(["backbone=resnet50"]))
    model = meta_classifier(config, num_classes=10)
    assert planned("stage=finetune", model=model) == [
        ("head", "head", 8, head),
        ("top", "top", 3, head + layer4),
    ]
    for train_from, learns in [
        ("-2", layer4 + layer3),
        ("layer4.1", 2 * bottleneck(2048, 512)),
        ("layer4.2.conv3", 512 * 2048 + 2 * 2048),
        ("all", everything),
    ]:
        _, top = planned(f"stage.top.train_from={train_from}", model=model)
        assert top == ("top", train_from, 3, head + learns)


def test_gradual_goes_from_the_top_block_down_to_train_from():
    model = meta_classifier(parse(compose(["backbone=resnet18"])), num_classes=10)
    for train_from, steps in [
        ("-2", ["layer4", "layer3"]),
        ("layer3.1", ["layer4", "layer3.1"]),
        ("top", ["layer4"]),
        ("head", ["head"]),
    ]:
        found = planned("stage=gradual", f"stage.unfreeze.train_from={train_from}", model=model)
        names = [(name, first) for name, first, _, _ in found[1:]]
        assert names == [(f"unfreeze-{step}", step) for step in steps]


def test_gradual_unfreezes_every_block_of_swin_without_a_step_for_its_norm():
    found = [first for _, first, _, _ in planned("backbone=swin_t", "stage=gradual")]
    assert found == ["head", "stage4", "stage3", "stage2", "stage1", "stem"]


def test_two_stages_of_one_name_are_refused():
    with pytest.raises(UserError, match="two stages are called unfreeze-layer4"):
        planned("backbone=resnet18", "stage=gradual", "+stage.unfreeze-layer4=${stage.head}")


def test_freezing_again_what_was_trained_is_an_error():
    model = meta_classifier(parse(compose(["backbone=resnet18"])), num_classes=10)
    for overrides, message in [
        (["stage.head.train_from=layer4", "stage.top.train_from=layer4.0.bn1"],
         r"freezes again 1 tensors .* from layer4.0.conv1.weight on"),
        (["stage.head.batchnorm=trainable"],
         r"freezes again 30 tensors that stage head trained, from stem.bn1.weight on"),
    ]:  # fmt: skip
        with pytest.raises(UserError, match=message):
            check_refreezing(model, parse(compose(overrides)).stages)
    for head, top in [("layer4", "layer4"), ("head", "all"), ("layer4.1", "layer4.0")]:
        given = [f"stage.head.train_from={head}", f"stage.top.train_from={top}"]
        check_refreezing(model, parse(compose(given)).stages)


def test_freezing_again_can_be_allowed():
    overrides = ["backbone=resnet18", "stage.head.train_from=layer3"]
    message = (
        r"stage top \(train_from=top\) freezes again 15 tensors that stage head trained, "
        r"from layer3.0.conv1.weight on.*allow_refreeze=true"
    )
    with pytest.raises(UserError, match=message):
        planned(*overrides)
    assert len(planned(*overrides, "allow_refreeze=true")) == 2


# ---- Trained by the real code


def trained(image_folder, tmp_path, *overrides):
    """The network's state before and after, the job, and what each stage gave."""
    overrides = [
        "backbone.weights=null", "data=folder", f"data.root={image_folder}", "data.image_size=64",
        "data.batch_size=4", "data.num_workers=0", "trainer=cpu", "verbosity=plain", "report=none",
        "cache=off", "trainer.precision=32", *overrides,  # auto is measured, each time anew
    ]  # fmt: skip
    config = parse(compose(overrides))
    check(config)
    job = prepare(config, tmp_path)
    before = {name: value.clone() for name, value in job.model.classifier.state_dict().items()}
    results = train_stages(job)
    last = tmp_path / "checkpoints" / results[-1].name / "last.ckpt"
    state = torch.load(last, weights_only=True)["state_dict"]
    handed_over = job.model.classifier.state_dict()  # has what a checkpoint leaves out
    after = {name: state.get(f"classifier.{name}", handed_over[name]) for name in before}
    return before, after, job, results


def moved(before, after):
    return {name for name in before if not torch.equal(before[name], after[name])}


NETWORKS = [
    ("resnet18", "layer4.1", 32),
    ("densenet121", "top", 32),
    ("mobilenet_v3_small", "-2", 32),
    *(
        pytest.param(*row, marks=pytest.mark.slow)
        for row in [
            ("vgg11", "block5.conv2", 32),
            ("inception_v3", "Mixed_7c.branch3x3_1", 96),
            ("vit_b_32", "layer11", 32),
            ("swin_t", "stage4", 64),
            ("convnext_tiny", "stage4", 64),
        ]
    ),
]


@pytest.mark.parametrize(("backbone", "train_from", "image_size"), NETWORKS)
def test_what_learns_moves_and_the_rest_does_not_by_one_bit(
    backbone, train_from, image_size, image_folder, tmp_path
):
    before, after, job, _ = trained(
        image_folder, tmp_path, f"backbone={backbone}", f"data.image_size={image_size}",
        "stage=head", f"stage.head.train_from={train_from}", "stage.head.epochs=2",
        "trainer.limit_train=2", "trainer.limit_eval=1", "optimizer=adamw", "optimizer.lr=0.01",
        "scheduler=constant",
    )  # fmt: skip
    model = job.model.classifier
    apply_stage(model, job.config.stages[0])
    expected = learning(model)
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.BatchNorm2d) and module.training:
            buffers = ("running_mean", "running_var", "num_batches_tracked")
            expected |= {f"{name}.{buffer}" for buffer in buffers}
    assert moved(before, after) == expected
    assert len(expected) < len(before) / 2


@pytest.mark.parametrize("policy", ["statistics", "trainable"])
def test_a_policy_moves_exactly_what_it_names(policy, image_folder, tmp_path):
    before, after, job, _ = trained(
        image_folder, tmp_path, "backbone=resnet18", "stage=head", "stage.head.epochs=1",
        f"stage.head.batchnorm={policy}", "trainer.limit_train=2", "optimizer.lr=0.01",
    )  # fmt: skip
    parts = ["running_mean", "running_var", "num_batches_tracked"]
    parts += ["weight", "bias"] if policy == "trainable" else []
    norms = [
        n for n, m in job.model.classifier.named_modules() if isinstance(m, torch.nn.BatchNorm2d)
    ]
    expected = {f"{name}.{part}" for name in norms for part in parts}
    assert moved(before, after) == expected | {
        "head.layers.output.weight",
        "head.layers.output.bias",
    }


@pytest.mark.parametrize(("backbone", "train_from", "image_size"), NETWORKS)
def test_frozen_blocks_compute_the_same_in_training_and_evaluation(
    backbone, train_from, image_size
):
    model = classifier(backbone, image_size=image_size, dropout=0.5)
    images = torch.randn(2, 3, image_size, image_size)
    apply_stage(model, stage(f"stage.head.train_from={train_from}"))
    stop = model.locate(train_from)
    in_training = model.backbone(images, stop=stop)
    assert not in_training.requires_grad
    apply_stage(model, stage())
    whole = model.backbone(images)
    assert any(m.training for m in model.head.modules())
    model.eval()
    assert torch.equal(in_training, model.backbone(images, stop=stop))
    assert torch.equal(whole, model.backbone(images))


@pytest.mark.parametrize(
    "backbone", ["efficientnet_b0", *(pytest.param(n, marks=pytest.mark.slow) for n in
                                      ("swin_t", "convnext_tiny"))]
)  # fmt: skip
def test_stochastic_depth_is_off_in_frozen_blocks_and_on_in_others(backbone):
    torch.manual_seed(0)
    model = classifier(backbone)
    images = torch.randn(2, 3, 64, 64)
    apply_stage(model, stage("stage.head.train_from=-2"))
    depth = {path: m.training for path, m in model.backbone.blocks.named_modules()
             if isinstance(m, StochasticDepth)}  # fmt: skip
    first = model.boundary("-2").group
    late = set(list(model.groups)[first:])
    assert depth == {path: path.partition(".")[0] in late for path in depth}
    assert set(depth.values()) == {True, False}
    frozen = [model.backbone(images, stop=first) for _ in range(3)]
    assert torch.equal(frozen[0], frozen[1])
    assert torch.equal(frozen[0], frozen[2])
    apply_stage(model, stage("stage.head.train_from=all", "stage.head.batchnorm_learning=frozen"))
    learning_blocks = [model.backbone(images, stop=first) for _ in range(8)]
    assert any(not torch.equal(learning_blocks[0], other) for other in learning_blocks[1:])


def test_every_step_sees_the_modes_of_the_stage(image_folder, tmp_path, monkeypatch):
    """Also after validation, which switches them, and after extracting, which leaves eval mode."""
    seen = []
    original = StageModule.training_step

    def spy(self, batch, batch_idx):
        seen.append(
            {path for path, module, _ in self.classifier.modules_from("all") if module.training}
        )
        return original(self, batch, batch_idx)

    monkeypatch.setattr(StageModule, "training_step", spy)
    _, _, job, _ = trained(
        image_folder, tmp_path, "backbone=resnet18", "cache=on", "stage=head",
        "stage.head.train_from=layer4.1", "stage.head.epochs=2", "data.image_size=32",
    )  # fmt: skip
    expected = {"layer4.1", "layer4.1.conv1", "layer4.1.bn1", "layer4.1.relu", "layer4.1.conv2",
                "layer4.1.bn2", "head", "head.pool", "head.layers", "head.layers.flatten",
                "head.layers.output"}  # fmt: skip
    assert job.model.classifier.locate("layer4.1") == 4
    assert len(seen) >= 8
    assert all(modes == expected for modes in seen)


def test_gradual_steps_end_on_a_plateau(image_folder, tmp_path):
    *_, results = trained(
        image_folder, tmp_path, "backbone=mobilenet_v3_small", "data.image_size=32",
        "stage=gradual", "stage.unfreeze.train_from=-2", "stage.head.epochs=1",
        "stage.unfreeze.epochs=9", "stage.unfreeze.patience=2", "stage.unfreeze.lr=1e-12",
        "stage.unfreeze.batchnorm_learning=frozen", "scheduler=constant", "trainer.limit_train=1",
    )  # fmt: skip
    found = [(r.name, r.train_from, r.epochs, r.best_epoch) for r in results]
    assert found == [
        ("head", "head", 1, 1),
        ("unfreeze-conv", "conv", 3, 1),  # nothing is learned at that rate: 1 + 2 epochs
        ("unfreeze-block11", "block11", 3, 1),
    ]
    done = json.loads((tmp_path / "checkpoints/unfreeze-block11/done.json").read_text())
    assert done["trainable_parameters"] == results[2].trainable_parameters
