"""Classifiers: figures of known networks, layer groups, and gradients of every family."""

from collections.abc import Iterator

import pytest
import torch

from tlx.errors import UserError
from tlx.models import catalog
from tlx.models.backbones import build_backbone
from tlx.models.classifier import Classifier, GroupParameters, parameter_table
from tlx.models.heads import Head

# One small member of each family, with an image as small as leaves every parameter at work.
SIZES = {
    "alexnet": 63,
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
    ("name", "block"), [("resnet18", "layer4"), ("swin_t", "stage4"), ("vit_b_32", "layer11")]
)
def test_top_is_the_last_block_that_is_more_than_a_norm(name: str, block: str) -> None:
    model = on_meta(name, 224, 2)
    assert list(model.groups)[model.locate("top")] == block


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
