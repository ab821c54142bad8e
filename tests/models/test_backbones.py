"""Each network against torchvision's own, built independently of ours."""

import itertools
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import get_model, get_model_weights, regnet
from torchvision.models.convnext import LayerNorm2d
from torchvision.models.vision_transformer import interpolate_embeddings

from tlx.errors import UserError
from tlx.models import catalog
from tlx.models.backbones import Backbone, build_backbone
from tlx.models.heads import Head

SMALL = (
    *("alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "googlenet", "inception_v3"),
    *("maxvit_t", "mnasnet0_5", "mobilenet_v3_small", "regnet_x_400mf", "resnet18"),
    *("shufflenet_v2_x0_5", "squeezenet1_1", "swin_t", "vgg11", "vit_b_32"),
)
# Too large to be filled and run in a test: their parameters are compared, not their outputs.
GIANTS = ("convnext_large", "regnet_y_128gf", "vit_h_14", "vit_l_16", "vit_l_32")

# Where torchvision's classifier begins, norm aside.
CLASSIFIER = {
    **dict.fromkeys(catalog.FAMILIES, "classifier"),
    **dict.fromkeys(("googlenet", "inception", "regnet", "resnet", "shufflenet"), "fc"),
    "convnext": "classifier.2",
    "maxvit": "classifier.3",
    "swin": "head",
    "vit": "heads",
}
EXTRAS = ("AuxLogits", "aux1", "aux2", "classifier.5")  # auxiliary heads, MaxViT's second layer

BLOCKS = {
    "alexnet": "block1 block2 block3 block4 block5",
    "convnext_tiny": "stem stage1 stage2 stage3 stage4",
    "densenet121": "stem denseblock1 transition1 denseblock2 transition2 denseblock3 transition3 "
    "denseblock4 norm5",
    "efficientnet_b0": "stem stage1 stage2 stage3 stage4 stage5 stage6 stage7 conv",
    "googlenet": "conv1 conv2 conv3 inception3a inception3b inception4a inception4b inception4c "
    "inception4d inception4e inception5a inception5b",
    "inception_v3": "Conv2d_1a_3x3 Conv2d_2a_3x3 Conv2d_2b_3x3 Conv2d_3b_1x1 Conv2d_4a_3x3 "
    "Mixed_5b Mixed_5c Mixed_5d Mixed_6a Mixed_6b Mixed_6c Mixed_6d Mixed_6e Mixed_7a Mixed_7b "
    "Mixed_7c",
    "maxvit_t": "stem stage1 stage2 stage3 stage4",
    "mnasnet0_5": "stem stage1 stage2 stage3 stage4 stage5 stage6 conv",
    "mobilenet_v3_small": "stem block1 block2 block3 block4 block5 block6 block7 block8 block9 "
    "block10 block11 conv",
    "regnet_x_400mf": "stem block1 block2 block3 block4",
    "resnet18": "stem layer1 layer2 layer3 layer4",
    "shufflenet_v2_x0_5": "stem stage2 stage3 stage4 conv5",
    "squeezenet1_1": "stem fire2 fire3 fire4 fire5 fire6 fire7 fire8 fire9",
    "swin_t": "stem stage1 stage2 stage3 stage4 norm",
    "vgg11_bn": "block1 block2 block3 block4 block5",
    "cnn4": "block1 block2 block3 block4",
    "vit_b_32": "embedding layer0 layer1 layer2 layer3 layer4 layer5 layer6 layer7 layer8 layer9 "
    "layer10 layer11 norm",
}

PATHS = {
    "alexnet": ("block3.conv1", nn.Conv2d),
    "convnext_tiny": ("stage2.downsample.1", nn.Conv2d),
    "densenet121": ("denseblock4.denselayer16.conv2", nn.Conv2d),
    "googlenet": ("inception3b.branch1.conv", nn.Conv2d),  # a pool follows it
    "inception_v3": ("Mixed_7b.branch3x3_1.conv", nn.Conv2d),
    "resnet18": ("layer4.1.conv2", nn.Conv2d),
    "squeezenet1_0": ("fire4.expand3x3", nn.Conv2d),  # a pool follows it
    "swin_t": ("stage2.1.attn.qkv", nn.Linear),
    "vgg11": ("block5.conv2", nn.Conv2d),
    "vgg11_bn": ("block5.bn2", nn.BatchNorm2d),
    "vit_b_32": ("layer11.mlp.3", nn.Linear),
}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Small operations wait for each other's threads longer than they compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@cache
def on_meta(name: str) -> Backbone:
    with torch.device("meta"):
        return build_backbone(name)


def original_on_meta(name: str, monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    quiet = {"init_weights": False} if name in ("inception_v3", "googlenet") else {}
    if catalog.family_of(name) != "regnet":
        with torch.device("meta"):
            return get_model(name, weights=None, **quiet)
    build = regnet._regnet

    def build_on_meta(*args: object, **kwargs: object) -> nn.Module:
        with torch.device("meta"):  # only now, for the widths are computed with real tensors
            return build(*args, **kwargs)

    monkeypatch.setattr(regnet, "_regnet", build_on_meta)
    return get_model(name, weights=None)


def original(name: str, monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """torchvision's network in evaluation, every tensor of it away from its neutral value."""
    torch.manual_seed(0)
    if catalog.family_of(name) in ("alexnet", "vgg"):  # no 120 million parameters for nothing
        model = original_on_meta(name, monkeypatch)
        model.set_submodule("classifier", nn.Identity())
        model.to_empty(device="cpu")
        for module in model.get_submodule("features"):
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
    else:
        quiet = {"init_weights": False} if name in ("inception_v3", "googlenet") else {}
        model = get_model(name, weights=None, **quiet)
    for key, tensor in model.state_dict().items():
        if not tensor.is_floating_point() or tensor.squeeze().dim() > 1:
            continue
        if key.endswith(("weight", "running_var", "layer_scale")):
            tensor.uniform_(0.5, 1.5)
        else:
            tensor.uniform_(-0.1, 0.1)
    return model.eval()


def run_original(model: nn.Module, classifier: str, images: Tensor) -> Tensor:
    """What `model` hands to its classifier."""
    handed: list[Tensor] = []
    model.get_submodule(classifier).register_forward_pre_hook(
        lambda _, args: handed.append(args[0].clone())
    )
    with torch.no_grad():
        model(images)
    return handed[0]


def check_coverage(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = original_on_meta(name, monkeypatch)
    skipped = tuple(f"{path}." for path in (CLASSIFIER[catalog.family_of(name)], *EXTRAS))
    expected = Counter(
        (key.rpartition(".")[2], tuple(tensor.shape))
        for key, tensor in itertools.chain(theirs.named_parameters(), theirs.named_buffers())
        if not key.startswith(skipped)
    )
    ours = on_meta(name)
    found = Counter(
        (key.rpartition(".")[2], tuple(tensor.shape))
        for key, tensor in itertools.chain(
            ours.named_parameters(remove_duplicate=False),
            ours.named_buffers(remove_duplicate=False),
        )
    )
    assert found == expected
    assert {tensor.device.type for tensor in ours.state_dict().values()} == {"meta"}


def check_output(name: str, image_size: int, monkeypatch: pytest.MonkeyPatch) -> tuple[int, ...]:
    family = catalog.family_of(name)
    theirs = original(name, monkeypatch)
    images = torch.randn(2, 3, image_size, image_size)
    expected = run_original(theirs, CLASSIFIER[family], images)
    ours = build_backbone(name, state_dict=theirs.state_dict()).eval()
    with torch.no_grad():
        features = found = ours(images)
    if family != "squeezenet":  # its classifier pools by itself
        head = Head(
            tuple(features.shape[1:]),
            num_outputs=1,
            pool="flatten" if family in ("alexnet", "vgg") else "avg",
            hidden=(),
            activation="relu",
            dropout=0.0,
            norm=ours.take_head_norm(),
        )
        with torch.no_grad():
            found = head.layers[:-1](head.pool(features))
    assert torch.isfinite(expected).all()
    assert expected.std() > 0
    assert torch.equal(found, expected)
    return tuple(features.shape[1:])


def test_catalog_is_all_of_torchvision() -> None:
    assert list(catalog.TORCHVISION) == sorted(
        torchvision.models.list_models(module=torchvision.models)
    )
    assert len(set(catalog.TORCHVISION)) == 80
    assert sorted({*catalog.TORCHVISION, "cnn4"}) == list(catalog.BACKBONES)


def test_catalog_does_not_import_torch() -> None:
    code = "import sys, tlx.models.catalog; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_family_of() -> None:
    assert catalog.family_of("wide_resnet50_2") == "resnet"
    with pytest.raises(UserError, match=r"unknown backbone 'resnet51'\. Did you mean resnet"):
        catalog.family_of("resnet51")


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow) if name == "maxvit_t" else name for name in BLOCKS],
)
def test_block_names(name: str) -> None:
    assert on_meta(name).block_names == tuple(BLOCKS[name].split())


@pytest.mark.parametrize("name", PATHS)
def test_inner_names(name: str) -> None:
    path, kind = PATHS[name]
    assert isinstance(on_meta(name).blocks.get_submodule(path), kind)


@pytest.mark.parametrize("name", ["convnext_tiny", "googlenet", "regnet_x_400mf", "vit_b_32"])
def test_parameters_are_covered_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check_coverage(name, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("name", catalog.TORCHVISION)
def test_parameters_are_covered_once_in_all(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check_coverage(name, monkeypatch)


@pytest.mark.parametrize("name", sorted(set(SMALL) - {"maxvit_t"}))
def test_output_is_torchvisions(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    native = catalog.family_of(name) in ("alexnet", "vgg", "vit")
    check_output(name, 224 if native else 80, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(catalog.TORCHVISION) - set(GIANTS)))
def test_output_is_torchvisions_in_all(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    image_size = min(299, *get_model_weights(name).DEFAULT.transforms().crop_size)
    shape = check_output(name, image_size, monkeypatch)
    backbone = on_meta(name)
    assert backbone.feature_shape(image_size) == shape
    assert backbone.num_features == (shape[0] if len(shape) == 3 else shape[1])


@pytest.mark.parametrize(
    ("name", "smallest"), [("alexnet", 63), ("squeezenet1_0", 21), ("vgg11", 32)]
)
def test_min_size(name: str, smallest: int) -> None:
    """The same as torchvision states, and as running the network on real numbers shows."""
    stated = get_model_weights(name).DEFAULT.meta["min_size"]
    assert on_meta(name).min_size == smallest == stated[0]
    backbone = build_backbone(name).eval()
    assert backbone(torch.zeros(1, 3, smallest, smallest)).numel() > 0
    with pytest.raises(RuntimeError):
        backbone(torch.zeros(1, 3, smallest - 1, smallest - 1))


@pytest.mark.parametrize(
    ("name", "image_size", "message"),
    [
        ("vgg11", 31, r"image_size=31 is too small for vgg11: take at least 32"),
        ("squeezenet1_1", 0, r"image_size=0 is too small for squeezenet1_1: take at least 17"),
        ("vit_b_32", 230, r"vit_b_32, which needs a multiple of 32: take 224 or 256"),
        ("vit_h_14", 10, r"vit_h_14, which needs a multiple of 14: take 14"),
        ("maxvit_t", 256, r"maxvit_t, which needs a multiple of 224: take 224 or 448"),
    ],
)
def test_sizes_that_do_not_fit(name: str, image_size: int, message: str) -> None:
    with torch.device("meta"), pytest.raises(UserError, match=message):
        build_backbone(name, image_size=image_size)


def test_fixed_size_takes_no_other() -> None:
    assert on_meta("vit_b_32").feature_shape(224) == (50, 768)
    with pytest.raises(UserError, match="built for image_size=224 and takes no other, such as 256"):
        on_meta("vit_b_32").feature_shape(256)


@pytest.mark.parametrize(("image_size", "grid", "expected_size"), [(None, 12, 384), (128, 7, 128)])
def test_position_embedding_fits_the_image(
    image_size: int | None, grid: int, expected_size: int
) -> None:
    with torch.device("meta"):
        state = get_model("vit_b_32", weights=None).state_dict()
    state = {key: torch.zeros(1).expand(tensor.shape) for key, tensor in state.items()}
    torch.manual_seed(0)
    state["encoder.pos_embedding"] = torch.randn(1, 1 + grid * grid, 768)
    expected = interpolate_embeddings(expected_size, 32, dict(state))["encoder.pos_embedding"]
    backbone = build_backbone("vit_b_32", image_size=image_size, state_dict=state)
    found = backbone.blocks.get_parameter("embedding.pos_embedding")
    assert backbone.image_size == expected_size
    assert torch.equal(found, expected)
    assert found.shape[1] == 1 + (expected_size // 32) ** 2
    assert state["encoder.pos_embedding"].shape[1] == 1 + grid * grid


def test_weights_without_classifier_are_enough() -> None:
    state = get_model("squeezenet1_1", weights=None).state_dict()
    features = {key: value for key, value in state.items() if key.startswith("features.")}
    backbone = build_backbone("squeezenet1_1", state_dict=features)
    found = backbone.blocks.get_parameter("fire9.expand3x3.weight")
    assert torch.equal(found, features["features.12.expand3x3.weight"])


def test_weights_are_copied_as_float32() -> None:
    state = get_model("squeezenet1_1", weights=None).state_dict()
    half = {key: value.half() for key, value in state.items()}
    weight = build_backbone("squeezenet1_1", state_dict=half).blocks.stem.conv.weight
    assert weight.dtype == torch.float32
    weight = build_backbone("squeezenet1_1", state_dict=state).blocks.stem.conv.weight
    assert weight.requires_grad
    assert weight.data_ptr() != state["features.0.weight"].data_ptr()


def test_batch_norm_counters_may_be_absent() -> None:
    state = get_model("resnet18", weights=None).state_dict()
    older = {key: value for key, value in state.items() if "num_batches_tracked" not in key}
    backbone = build_backbone("resnet18", state_dict=older)
    assert backbone.blocks.get_buffer("layer4.1.bn2.num_batches_tracked").item() == 0


def test_densenet_weights_of_older_files() -> None:
    state = get_model("densenet121", weights=None).state_dict()
    older = {
        key.replace(".norm1.", ".norm.1.").replace(".conv2.", ".conv.2."): value
        for key, value in state.items()
    }
    assert "features.denseblock1.denselayer1.norm.1.weight" in older
    backbone = build_backbone("densenet121", state_dict=older)
    found = backbone.blocks.get_parameter("denseblock1.denselayer1.conv2.weight")
    assert torch.equal(found, state["features.denseblock1.denselayer1.conv2.weight"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features.0.weight": None}, r"'squeezenet1_1'.*Missing.*\"features\.0\.weight\""),
        ({"layer1.weight": torch.ones(1)}, r"'squeezenet1_1'.*Unexpected.*\"layer1\.weight\""),
        ({"features.0.bias": torch.ones(3)}, r"features\.0\.bias.*\[3\].*\[64\]"),
    ],
)
def test_weights_that_do_not_fit(change: dict[str, Tensor | None], message: str) -> None:
    state = {**get_model("squeezenet1_1", weights=None).state_dict(), **change}
    with pytest.raises(UserError, match=message):
        build_backbone(
            "squeezenet1_1", state_dict={k: v for k, v in state.items() if v is not None}
        )


def test_weights_of_another_network_give_a_short_error() -> None:
    with pytest.raises(UserError) as caught:
        build_backbone("vgg11", state_dict=get_model("squeezenet1_1", weights=None).state_dict())
    assert len(str(caught.value)) < 1200


def test_random_weights_are_torchvisions() -> None:
    torch.manual_seed(3)
    theirs = get_model("resnet18", weights=None)
    torch.manual_seed(3)
    ours = build_backbone("resnet18")
    assert torch.equal(ours.blocks.layer4[1].conv2.weight, theirs.layer4[1].conv2.weight)


def test_vgg_is_filled_as_torchvision_does_but_not_its_classifier() -> None:
    backbone = build_backbone("vgg11")
    for convolution in (backbone.blocks.block1.conv1, backbone.blocks.block5.conv2):
        fan_out = convolution.out_channels * 3 * 3
        std = convolution.weight.std().item()
        assert std == pytest.approx((2 / fan_out) ** 0.5, rel=0.05)  # He et al. 2015, fan_out
        assert convolution.bias.abs().max().item() == 0


@pytest.mark.parametrize(
    "name",
    ["cnn4", "squeezenet1_1"]
    + [pytest.param(name, marks=pytest.mark.slow) for name in SMALL if name != "squeezenet1_1"],
)
def test_running_from_a_block_equals_running_all(name: str) -> None:
    torch.manual_seed(0)
    backbone = build_backbone(name).eval()
    image_size = backbone.image_size or 96
    images = torch.randn(1, 3, image_size, image_size)
    with torch.no_grad():
        expected = backbone(images)
        for index, block in enumerate(backbone.block_names):
            before = backbone(images, stop=index)
            copy = before.clone()
            assert torch.equal(backbone(before, start=index), expected)
            assert torch.equal(backbone(before, start=block), expected)
            assert torch.equal(before, copy)  # a block leaves its input as it was
    with pytest.raises(UserError, match=f"unknown block of {name} 'nowhere'"):
        backbone(images, start="nowhere")


@pytest.mark.parametrize(
    "name", ["vgg11", "resnet18", "shufflenet_v2_x0_5", "swin_t", "densenet121"]
)
def test_running_from_a_place_inside_a_block_equals_running_all(name: str) -> None:
    torch.manual_seed(0)
    backbone = build_backbone(name).eval()
    x = torch.randn(1, 3, 64, 64)
    assert len(backbone.places) > len(backbone.blocks)
    with torch.no_grad():
        expected = backbone(x)
        for place, path in backbone.places.items():
            assert len(backbone.before(place)) == sum(place)
            assert backbone.blocks.get_submodule(path) not in backbone.before(place)
            assert torch.equal(backbone(backbone(x, 0, place), place), expected), path


@pytest.mark.parametrize(("name", "channels"), [("convnext_tiny", 768), ("maxvit_t", 512)])
def test_head_norm_changes_owner(name: str, channels: int) -> None:
    with torch.device("meta"):
        backbone = build_backbone(name)
    before = sum(p.numel() for p in backbone.parameters())
    norm = backbone.take_head_norm()
    assert isinstance(norm, LayerNorm2d)
    after = sum(p.numel() for p in backbone.parameters())
    assert before - after == sum(p.numel() for p in norm.parameters()) == 2 * channels
    assert backbone.take_head_norm() is None


@pytest.mark.parametrize(("name", "width"), [("vgg11", 512), ("swin_t", 768), ("vit_b_32", 768)])
def test_num_features(name: str, width: int) -> None:
    assert on_meta(name).num_features == width


def test_feature_shape() -> None:
    assert on_meta("vgg11").feature_shape(150) == (512, 4, 4)


def test_is_convolutional() -> None:
    assert on_meta("resnet18").is_convolutional
    assert not on_meta("vit_b_32").is_convolutional
    assert not on_meta("swin_t").is_convolutional
