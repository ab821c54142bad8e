"""What a stage lets learn, and what it leaves as it is."""

import pytest
import torch

from tlx.config import compose, parse
from tlx.models.folder import Architecture, build_classifier
from tlx.training.unfreezing import apply_stage


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


def test_top_is_the_last_block_with_weight_matrices():
    for backbone, block, size in [
        ("vgg16", "block5", 64), ("resnet18", "layer4", 64), ("vit_b_16", "layer11", 224),
        ("densenet121", "denseblock4", 64), ("inception_v3", "Mixed_7c", 96),
        ("squeezenet1_1", "fire9", 64), ("swin_t", "stage4", 64),
    ]:  # fmt: skip
        with torch.device("meta"):
            model = classifier(backbone, image_size=size)
        assert list(model.groups)[model.locate("top")] == block


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


@pytest.mark.parametrize("backbone", ["resnet18", "densenet121", "mobilenet_v3_small"])
def test_frozen_blocks_compute_the_same_in_training_and_evaluation(backbone):
    model = classifier(backbone)
    images = torch.randn(2, 3, 64, 64)
    apply_stage(model, stage())
    in_training = model.backbone(images)
    model.eval()
    assert torch.equal(in_training, model.backbone(images))
