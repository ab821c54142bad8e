"""The hidden layers of torchvision's classifier as blocks, against torchvision's own forward."""

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import get_model

from tlx.errors import UserError
from tlx.models.backbones import Backbone, build_backbone
from tlx.models.classifier import parameter_table
from tlx.models.folder import Architecture, build_classifier


@pytest.fixture(scope="module")
def alexnet() -> nn.Module:
    torch.manual_seed(0)
    return get_model("alexnet", weights=None).eval()


@pytest.fixture(scope="module")
def ours(alexnet: nn.Module) -> Backbone:
    return build_backbone("alexnet", classifier=True, state_dict=alexnet.state_dict()).eval()


def hidden(model: nn.Module, images: Tensor) -> Tensor:
    """What torchvision's network hands to the last layer of its classifier."""
    with torch.no_grad():
        return model.classifier[:6](model.avgpool(model.features(images)).flatten(1))


@pytest.mark.parametrize("image_size", [63, 224])
def test_output_is_torchvisions(alexnet: nn.Module, ours: Backbone, image_size: int) -> None:
    images = torch.randn(2, 3, image_size, image_size)
    with torch.no_grad():
        found = ours(images)
    assert found.shape == (2, 4096)
    assert found.std() > 0
    assert torch.equal(found, hidden(alexnet, images))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vgg16", "vgg11_bn"])
def test_output_is_torchvisions_in_vgg(name: str) -> None:
    torch.manual_seed(0)
    theirs = get_model(name, weights=None).eval()
    backbone = build_backbone(name, classifier=True, state_dict=theirs.state_dict()).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(backbone(images), hidden(theirs, images))


def test_running_from_a_block_equals_running_all(ours: Backbone) -> None:
    images = torch.randn(2, 3, 63, 63)
    with torch.no_grad():
        expected = ours(images)
        for index, block in enumerate(ours.block_names):
            before = ours(images, stop=index)
            copy = before.clone()
            assert torch.equal(ours(before, start=block), expected)
            assert torch.equal(before, copy)  # a block leaves its input as it was


@pytest.mark.parametrize("name", ["alexnet", "vgg11", "vgg16_bn"])
def test_blocks_and_parameters(name: str) -> None:
    with torch.device("meta"):
        theirs = get_model(name, weights=None)
        backbone = build_backbone(name, classifier=True)
    names = ("block1", "block2", "block3", "block4", "block5", "fc1", "fc2")
    assert backbone.block_names == names
    assert isinstance(backbone.blocks.get_submodule("fc2.linear"), nn.Linear)
    last = sum(p.numel() for p in theirs.classifier[6].parameters())
    expected = sum(p.numel() for p in theirs.parameters()) - last
    assert sum(p.numel() for p in backbone.parameters()) == expected
    assert backbone.feature_shape(224) == backbone.feature_shape(96) == (4096,)
    assert backbone.num_features == 4096


@pytest.mark.parametrize("pool", ["avg", "flatten"])
def test_a_classifier_of_vgg16(pool: str) -> None:
    design = Architecture("vgg16", 224, 2, pool, (), "relu", 0.0, classifier=True)
    with torch.device("meta"):
        model = build_classifier(design)
    totals = {row.group: row.total for row in parameter_table(model)}
    assert totals["fc1"] == 25_088 * 4096 + 4096
    assert totals["fc2"] == 4096 * 4096 + 4096
    assert totals["head"] == 4096 * 2 + 2
    assert sum(totals.values()) == 134_268_738
    assert model.boundary("top").path == "fc2"
    assert model.boundary("fc1.linear").group == 5


def test_random_layers_are_torchvisions() -> None:
    torch.manual_seed(3)
    theirs = get_model("alexnet", weights=None)
    torch.manual_seed(3)
    backbone = build_backbone("alexnet", classifier=True)
    assert torch.equal(backbone.blocks.fc2.linear.weight, theirs.classifier[4].weight)


def test_weights_without_classifier_do_not_do(alexnet: nn.Module) -> None:
    features = {k: v for k, v in alexnet.state_dict().items() if k.startswith("features.")}
    with pytest.raises(UserError, match="these weights have no classifier, .*backbone.classifier"):
        build_backbone("alexnet", classifier=True, state_dict=features)


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1", "mobilenet_v3_small", "cnn4"])
def test_other_families_have_none_to_keep(name: str) -> None:
    message = f"backbone.classifier=true is not for {name}: only the families alexnet and vgg"
    with pytest.raises(UserError, match=message):
        build_backbone(name, classifier=True)
