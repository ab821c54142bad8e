"""cnn4 against the arithmetic of Keras: 3×3 'valid' convolutions, each followed by a 2×2 pool."""

import pytest
import torch
import torch.nn.functional as F

from tlx.errors import UserError
from tlx.models.backbones import build_backbone
from tlx.models.classifier import parameter_table
from tlx.models.cnn import cnn4
from tlx.models.folder import Architecture, build_classifier


def test_figures_at_150_pixels() -> None:
    """Sides 150 → 148 → 74 → 72 → 36 → 34 → 17 → 15 → 7, so the dense layer takes 7·7·128."""
    with torch.device("meta"):
        design = Architecture("cnn4", 150, 5, "flatten", (512,), "relu", 0.0)
        classifier = build_classifier(design)
    assert classifier.backbone.feature_shape(150) == (128, 7, 7)
    assert {row.group: row.total for row in parameter_table(classifier)} == {
        "block1": (3 * 3 * 3 + 1) * 32,
        "block2": (3 * 3 * 32 + 1) * 64,
        "block3": (3 * 3 * 64 + 1) * 128,
        "block4": (3 * 3 * 128 + 1) * 128,
        "head": (6272 + 1) * 512 + (512 + 1) * 5,
    }
    assert sum(p.numel() for p in classifier.parameters()) == 3_455_173


def test_output_by_plain_operations() -> None:
    torch.manual_seed(0)
    backbone = build_backbone("cnn4")
    images = torch.randn(2, 3, 50, 46)
    expected = images
    for number in range(1, 5):
        conv = backbone.blocks.get_submodule(f"block{number}.conv")
        expected = F.max_pool2d(F.conv2d(expected, conv.weight, conv.bias).clamp(min=0), 2)
    assert torch.equal(backbone(images), expected)


def test_filled_as_keras_does() -> None:
    """Uniform in ±√(6 / (fan_in + fan_out)), with the 9 places of a kernel in either fan."""
    torch.manual_seed(0)
    for block, fans in zip(cnn4(), (3 + 32, 32 + 64, 64 + 128, 128 + 128), strict=True):
        limit = (6 / (9 * fans)) ** 0.5
        weight = block.conv.weight
        assert weight.abs().max().item() == pytest.approx(limit, rel=0.01)
        assert weight.abs().max().item() <= limit
        assert weight.std().item() == pytest.approx(limit / 3**0.5, rel=0.05)
        assert block.conv.bias.abs().max().item() == 0


def test_smallest_image() -> None:
    with torch.device("meta"):
        assert build_backbone("cnn4").min_size == 46  # 46 → 44 → 22 → 20 → 10 → 8 → 4 → 2 → 1
        with pytest.raises(UserError, match="too small for cnn4: take at least 46"):
            build_backbone("cnn4", image_size=45)


def test_its_own_weights_fit() -> None:
    state = cnn4().state_dict()
    found = build_backbone("cnn4", state_dict=state).blocks.state_dict()
    assert found.keys() == state.keys()
    assert all(torch.equal(found[key], state[key]) for key in state)
