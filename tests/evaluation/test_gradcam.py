"""Grad-CAM against a computation of its own, and on every network."""

import pytest
import torch
import torch.nn.functional as F

from tlx.evaluation.gradcam import grad_cam, target_block
from tlx.models.backbones import build_backbone
from tlx.models.catalog import BACKBONES
from tlx.models.classifier import Classifier
from tlx.models.folder import Architecture, build_classifier

# The side in pixels at which the last map still has several places.
QUICK = {
    "mobilenet_v3_small": 64, "regnet_x_400mf": 64, "resnet18": 64, "squeezenet1_1": 64,
    "swin_t": 64, "vit_b_32": 64,
}  # fmt: skip
SLOW = {
    "alexnet": 127, "convnext_tiny": 64, "densenet121": 64, "efficientnet_b0": 64,
    "googlenet": 64, "inception_v3": 139, "maxvit_t": 224, "mnasnet0_5": 64,
    "shufflenet_v2_x0_5": 64, "vgg11": 64,
}  # fmt: skip
EVERY_FAMILY = [
    *QUICK.items(),
    *(pytest.param(*item, marks=pytest.mark.slow) for item in SLOW.items()),
]
CLASSES = 8


def classifier_of(name: str, size: int, *, outputs: int = CLASSES, pool: str = "avg") -> Classifier:
    torch.manual_seed(0)
    design = Architecture(name, size, outputs, pool, (), "relu", 0.0)
    return build_classifier(design).requires_grad_(False).eval()


def images(size: int, number: int = 2) -> torch.Tensor:
    return torch.randn(number, 3, size, size, generator=torch.Generator().manual_seed(1))


def all_maps(classifier: Classifier, size: int) -> torch.Tensor:
    """(CLASSES, H, W): of one image, for each class."""
    x = images(size, 1).expand(CLASSES, -1, -1, -1)
    return grad_cam(classifier, x, torch.arange(CLASSES))


@pytest.mark.parametrize(("name", "size"), EVERY_FAMILY)
def test_maps_of_every_family_on_a_frozen_network(name, size):
    classifier = classifier_of(name, size)
    maps = all_maps(classifier, size)
    assert maps.shape == (CLASSES, size, size)
    assert torch.isfinite(maps).all()
    assert maps.min() >= 0
    # The highest point is 1, unless nothing at all speaks for the class.
    highest = maps.amax(dim=(1, 2))
    assert ((highest == 0) | (highest > 0.999)).all()
    assert highest.max() == pytest.approx(1)
    assert len(maps.unique(dim=0)) > 1
    assert all(p.grad is None and not p.requires_grad for p in classifier.parameters())


def test_equals_autograd_through_the_whole_of_vgg():
    classifier = classifier_of("vgg11", 96, pool="flatten")
    kept = {}
    layer = classifier.backbone.blocks[-1]
    layer.register_forward_hook(lambda _module, _inputs, output: kept.update(last=output))
    x = images(96, 1).requires_grad_()
    logits = classifier(x)
    gradient = torch.autograd.grad(logits[0, 1], kept["last"])[0][0]
    expected = torch.zeros(3, 3)
    for channel in range(512):
        expected += gradient[channel].sum() / 9 * kept["last"][0, channel].detach()
    expected = F.interpolate(expected.clamp(min=0)[None, None], (96, 96), mode="bilinear")[0, 0]
    assert expected.max() > 0
    found = grad_cam(classifier, x.detach(), torch.tensor([1]))[0]
    torch.testing.assert_close(found, expected / expected.max(), atol=1e-5, rtol=0)


def test_of_one_logit_the_first_class_is_its_negative():
    classifier = classifier_of("squeezenet1_1", 64, outputs=1)
    negated = classifier_of("squeezenet1_1", 64, outputs=1)
    negated.head.output.weight.data.neg_()
    second = grad_cam(classifier, images(64), torch.tensor([1, 1]))
    torch.testing.assert_close(grad_cam(negated, images(64), torch.tensor([0, 0])), second)


@pytest.mark.slow
@pytest.mark.parametrize("name", BACKBONES)
def test_every_network_has_a_layer_to_look_at(name):
    with torch.device("meta"):
        backbone = build_backbone(name)
    cut = target_block(backbone, 224)
    names = backbone.block_names
    if name.startswith("vit"):
        assert names[cut].startswith("layer")
        assert names[cut + 1 :] == ("norm",)
    else:
        assert cut == len(names)  # the last block's map has 7×7 places or so


@pytest.mark.parametrize(
    ("name", "size", "block"),
    [("resnet18", 32, "layer3"), ("swin_t", 32, "stage3"), ("vgg11", 32, "block4")],
)
def test_where_the_last_map_is_one_place_an_earlier_one_serves(name, size, block):
    classifier = classifier_of(name, size)
    cut = target_block(classifier.backbone, size)
    assert classifier.backbone.block_names[cut - 1] == block
    maps = all_maps(classifier, size)
    assert maps.shape == (CLASSES, 32, 32)
    assert max(len(of_class.unique()) for of_class in maps) > 4


def test_vectors_behind_the_maps_are_passed_over():
    design = Architecture("alexnet", 127, CLASSES, "avg", (), "relu", 0.0, classifier=True)
    with torch.device("meta"):
        backbone = build_classifier(design).backbone
    assert backbone.block_names[-2:] == ("fc1", "fc2")
    assert target_block(backbone, 127) == 5
