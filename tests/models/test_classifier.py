"""Classifiers: figures of known networks, layer groups, and gradients of every family."""

from collections.abc import Iterator

import pytest
import torch

from tlx.errors import UserError
from tlx.models import catalog
from tlx.models.backbones import build_backbone
from tlx.models.classifier import Boundary, Classifier, GroupParameters, parameter_table
from tlx.models.heads import Head

# One small member of each family, with an image as small as leaves every parameter at work.
SIZES = {
    "alexnet": 63,
    "cnn4": 46,
    "convnext_tiny": 64,
    "densenet121": 64,
    "efficientnet_b0": 64,
    "googlenet": 64,
    "inception_v3": 96,
    "maxvit_t": 224,
    "mnasnet0_5": 64,
    "mobilenet_v2": 64,
    "mobilenet_v3_small": 64,
    "regnet_x_400mf": 64,
    "resnet18": 64,
    "shufflenet_v2_x0_5": 64,
    "squeezenet1_1": 64,
    "swin_t": 64,
    "vgg11": 32,
    "vit_b_32": 64,
}
LARGER = ("convnext_tiny", "densenet121", "inception_v3", "maxvit_t", "swin_t", "vit_b_32")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Small operations wait for each other's threads longer than they compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def classifier(
    name: str, image_size: int, num_outputs: int, pool: str = "avg", hidden: tuple[int, ...] = ()
) -> Classifier:
    backbone = build_backbone(name, image_size=image_size)
    head = Head(
        backbone.feature_shape(image_size),
        num_outputs,
        pool=pool,
        hidden=hidden,
        activation="relu",
        dropout=0.0,
        norm=backbone.take_head_norm(),
    )
    return Classifier(backbone, head)


def on_meta(*args: object, **kwargs: object) -> Classifier:
    with torch.device("meta"):
        return classifier(*args, **kwargs)


def count(rows: tuple[GroupParameters, ...]) -> int:
    return sum(row.total for row in rows)


def test_figures_of_vgg16_at_150_pixels() -> None:
    table = parameter_table(on_meta("vgg16", 150, 1, pool="flatten", hidden=(256,)))
    assert count(table) == 16_812_353
    assert table[-1] == GroupParameters("head", 2_097_665, 2_097_665)


def test_figures_of_vgg16_at_299_pixels() -> None:
    model = on_meta("vgg16", 299, 5, pool="flatten", hidden=(256,))
    table = parameter_table(model)
    assert count(table) == 25_333_061
    assert count(table[model.locate("block5") :]) == 17_697_797


def test_figures_of_resnet50() -> None:
    table = parameter_table(on_meta("resnet50", 224, 10))
    assert count(table) == 23_528_522
    assert table[-1].total == 20_490


def test_trainable_is_what_requires_a_gradient() -> None:
    model = on_meta("resnet18", 224, 10)
    for group in ("stem", "layer1", "layer2", "layer3", "layer4"):
        model.groups[group].requires_grad_(False)
    model.groups["layer4"][1].conv2.requires_grad_(True)
    trainable = {row.group: row.trainable for row in parameter_table(model)}
    assert trainable == {
        **dict.fromkeys(("stem", "layer1", "layer2", "layer3"), 0),
        "layer4": 512 * 512 * 3 * 3,
        "head": 512 * 10 + 10,
    }


@pytest.mark.parametrize("name", ["convnext_tiny", "vit_b_32"])
def test_groups_hold_every_parameter_once(name: str) -> None:
    model = on_meta(name, 224, 3)
    grouped = [id(p) for group in model.groups.values() for p in group.parameters()]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters())
    assert list(model.groups) == [*model.backbone.block_names, "head"]


def test_locate() -> None:
    model = on_meta("resnet18", 224, 2)
    names = ["all", "stem", "layer1", "layer2", "layer3", "layer4", "head"]
    assert [model.locate(name) for name in names] == [0, 0, 1, 2, 3, 4, 5]
    message = (
        r"unknown train_from 'layer5'\. Did you mean .*"
        r"Valid: stem, layer1, layer2, layer3, layer4, head, top, all\."
    )
    with pytest.raises(UserError, match=message):
        model.locate("layer5")


@pytest.mark.parametrize(
    ("name", "weighted"),
    [
        ("resnet18", "stem layer1 layer2 layer3 layer4"),
        ("densenet121", "stem denseblock1 transition1 denseblock2 transition2 denseblock3 "
                        "transition3 denseblock4"),
        ("swin_t", "stem stage1 stage2 stage3 stage4"),
        ("vit_b_32", "embedding layer0 layer1 layer2 layer3 layer4 layer5 layer6 layer7 layer8 "
                     "layer9 layer10 layer11"),
    ],
)  # fmt: skip
def test_top_and_counts_pass_over_a_block_that_is_just_a_norm(name: str, weighted: str) -> None:
    model = on_meta(name, 224, 2)
    blocks = weighted.split()
    assert model.weighted_blocks == blocks
    assert model.boundary("top").path == blocks[-1]
    found = [model.boundary(f"-{count}").path for count in range(1, len(blocks) + 1)]
    assert found == blocks[::-1]


@pytest.mark.parametrize(
    ("name", "train_from", "expected"),
    [
        ("resnet18", "all", Boundary(0, "stem")),
        ("resnet18", "head", Boundary(5, "head")),
        ("resnet18", "-2", Boundary(3, "layer3")),
        ("resnet18", "layer4.1", Boundary(4, "layer4.1")),
        ("inception_v3", "Mixed_7b.branch3x3_1", Boundary(14, "Mixed_7b.branch3x3_1")),
        ("vgg16", "block5.conv2", Boundary(4, "block5.conv2")),
    ],
)
def test_boundary(name: str, train_from: str, expected: Boundary) -> None:
    model = on_meta(name, 96, 2)
    assert model.boundary(train_from) == expected
    assert model.locate(train_from) == expected.group
    inside = {"layer4.1": 1, "block5.conv2": 2}.get(train_from, 0)
    assert model.cut(train_from) == (expected.group, inside)


@pytest.mark.parametrize(
    ("train_from", "message"),
    [
        ("layer4.2", r"unknown train_from 'layer4\.2'\. Did you mean layer4\.1 or layer4\.0 or"),
        ("layer4.1.conv3", r"Did you mean layer4\.1\.conv2 or layer4\.1\.conv1"),
        ("layer4.", r"unknown train_from 'layer4\.'\. Did you mean layer4"),
        ("layr4.1", r"Did you mean layer4"),
        ("haed", r"Did you mean head\? Valid: stem, layer1, layer2, layer3, layer4, head, top"),
        ("head.layers.output", r"train_from=head\.layers\.output: the head .* as a whole; .*=head"),
        ("head.nothing", r"train_from=head\.nothing: the head .* as a whole"),
        ("-6", r"train_from=-6: resnet18 has 5 blocks to count, stem to layer4; .*train_from=all"),
        ("-0", r"unknown train_from '-0'"),
        ("2", r"unknown train_from '2'"),
        ("", r"unknown train_from ''"),
    ],
)
def test_no_such_boundary(train_from: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        on_meta("resnet18", 64, 2).boundary(train_from)


def learning(model: Classifier, train_from: str) -> set[str]:
    return {
        f"{path}.{name}"
        for path, module, learns in model.modules_from(train_from)
        for name, _ in module.named_parameters(recurse=False)
        if learns
    }


@pytest.mark.parametrize(
    ("name", "train_from", "expected"),
    [
        ("vgg16", "block5.conv2", "block5.conv2.{weight,bias} block5.conv3.{weight,bias}"),
        ("vgg16", "block5.relu3", ""),
        ("resnet18", "layer4.1", "layer4.1.conv1.weight layer4.1.bn1.{weight,bias} "
                                 "layer4.1.conv2.weight layer4.1.bn2.{weight,bias}"),
        ("resnet18", "layer4.1.bn2", "layer4.1.bn2.{weight,bias}"),
        # What holds the module where learning starts comes before it: in_proj is frozen.
        ("vit_b_32", "layer11.self_attention.out_proj",
         "layer11.self_attention.out_proj.{weight,bias} layer11.ln_2.{weight,bias} "
         "layer11.mlp.0.{weight,bias} layer11.mlp.3.{weight,bias} norm.{weight,bias}"),
    ],
)  # fmt: skip
def test_what_learns_from_inside_a_block(name: str, train_from: str, expected: str) -> None:
    names = {"head.layers.output.weight", "head.layers.output.bias"}
    for word in expected.split():
        stem = word.removesuffix("{weight,bias}")
        names |= {word} if stem == word else {f"{stem}weight", f"{stem}bias"}
    assert learning(on_meta(name, 224, 2), train_from) == names


def test_inside_inception_branches_learn_in_their_order() -> None:
    found = learning(on_meta("inception_v3", 96, 2), "Mixed_7b.branch3x3_1")
    modules = {name.rpartition(".")[0].removesuffix(".conv").removesuffix(".bn") for name in found}
    branches = "3x3_1 3x3_2a 3x3_2b 3x3dbl_1 3x3dbl_2 3x3dbl_3a 3x3dbl_3b _pool"
    everything = f"1x1 {branches}"
    assert modules == {
        *(f"Mixed_7b.branch{b}" for b in branches.split()),
        *(f"Mixed_7c.branch{b}" for b in everything.split()),
        "head.layers.output",
    }
    assert len(found) == 3 * (8 + 9) + 2  # a convolution and a BatchNorm's two each; the head's


def test_a_norm_that_belongs_to_the_head_is_not_forgotten() -> None:
    with torch.device("meta"):
        backbone = build_backbone("convnext_tiny")
        head = Head((768, 7, 7), 2, pool="avg", hidden=(), activation="relu", dropout=0.0)
    with pytest.raises(ValueError, match="take_head_norm"):
        Classifier(backbone, head)


@pytest.mark.parametrize(
    ("name", "image_size"),
    [("resnet18", 48), pytest.param("vit_b_32", 32, marks=pytest.mark.slow)],
)
def test_starting_at_a_block_gives_the_same_logits(name: str, image_size: int) -> None:
    torch.manual_seed(0)
    model = classifier(name, image_size, 3).eval()
    images = torch.randn(2, 3, image_size, image_size)
    last = len(model.backbone.blocks)
    with torch.no_grad():
        expected = model(images)
        features = model.backbone(images)
        assert torch.equal(model(model.backbone(images, stop=2), start=2), expected)
        assert torch.equal(model(features, start=last), expected)
        assert torch.equal(model(model.head.pool(features), start=last), expected)
    assert expected.shape == (2, 3)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow) if name in LARGER else name for name in SIZES],
)
def test_every_parameter_gets_a_gradient(name: str) -> None:
    torch.manual_seed(0)
    image_size = SIZES[name]
    backbone = build_backbone(name, image_size=image_size if name == "vit_b_32" else None)
    images = torch.randn(2, 3, image_size, image_size)
    with torch.no_grad():
        shape = tuple(backbone(images).shape[1:])
    norm = backbone.take_head_norm()
    head = Head(shape, 2, pool="avg", hidden=(8,), activation="gelu", dropout=0.1, norm=norm)
    model = Classifier(backbone, head)
    model(images).square().sum().backward()
    without = [key for key, p in model.named_parameters() if p.grad is None]
    assert without == []


def test_gradients_are_tested_in_every_family() -> None:
    assert {catalog.family_of(name) for name in SIZES} == set(catalog.FAMILIES)
